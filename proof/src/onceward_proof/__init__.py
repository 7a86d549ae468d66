"""The proof: a workload under a schedule of faults, and the checker that counts what became of it.

What is run
    workload.py    the orders
    faults.py      what can go wrong, as data; schedule.py: which fault strikes which order
    variants.py    who runs it, naive or hardened; bundled.py: where the reference service and the write-up are
Running it
    command.py     `onceward prove`, with its options.py
    run.py         one variant, from empty databases until it is quiet
    clusters.py    the two clusters, and a variant's databases in them
    processes.py   a variant's processes: the provider, and the supervisor of all workers
    workers/       what a worker is told, what it does, and what it reports
    control.py     hears every report, lets it go on, or strikes
    provider/      the payment provider, with Stripe's documented rules; provider_hook.py: faults inside it
Judging it
    checker.py     counts; imports nothing of Onceward
    outcome.py     the verdict, and the JSON; report.py: the terminal; lines.py: fitted to its width; pages/: HTML
    kept.py        where the schedule of a run is kept
Going on from there
    ablation.py    `--ablate`: which layers; layer_removal.py: how each is removed
    sweep/         `--every-syscall`
    soak/          `--for 30m`
    explorer/      `onceward explore`
    demos/         `onceward demo`
    docs.py        the tables of docs/guarantees.md
"""
