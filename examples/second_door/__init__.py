"""The second door: Onceward's rows in a loop of your own, over a queue of your own.

    place an order ──order.placed──▶ charge the card, mark it paid ──order.paid──▶ book it: balance = balance + amount

`handlers.py` is what to read: `book` writes to Postgres only (`Inbox.take`), `charge` touches the outside (`Inbox.claim`,
`Intents`, `Inbox.finish`). `loop.py` is the loop, `jobs.py` the queue (a plain table), `card.py` the provider.

    PYTHONPATH=examples python -m second_door --database postgresql://localhost/play --orders 3
"""
