"""A payment provider that obeys Stripe's documented idempotency rules, with faults on demand; a process of its own.

It stands in for a paid service. The official SDK drives it; its ledger is durable and outlives every kill. It imports
nothing of Onceward: what Onceward is checked against must not come from its own code.

    ledger.py      what was charged, and which answer each idempotency key has (SQLite)
    call.py        one request, parsed, and its connection
    answers.py     Stripe's answers and error objects         endpoints.py   charges
    hook.py        the one seam at which faults strike        faults.py      faults on demand, through that seam
    app.py         parse, authenticate, idempotency layer     admin.py       /_admin/: clock, window, faults, ledger
    server.py      as a process: serve, ProviderProcess, main

Sources of the rules: docs.stripe.com/api/idempotent_requests and docs.stripe.com/error-low-level.
"""
