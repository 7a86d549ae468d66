"""The proof: a workload under a schedule of faults, and the checker that counts what became of it.

What is run
    workload.py    the orders
    faults.py      what can go wrong, as data; schedule.py: which fault strikes which order
    variants.py    who runs it, naive or hardened; roles.py: what each worker does
Running it
    command.py     `onceward prove`, with its options.py
    run.py         one variant, from empty databases until it is quiet
    place.py       the two clusters; crew.py: the processes; nursery.py: forks the workers
    passage.py     each boundary that a worker passes is told to control.py, which lets it go on, or strikes
    around.py      sources and sinks around others, to be watched or to fail
    provider/      the payment provider, with Stripe's documented rules; provider_hook.py: faults inside it
Judging it
    checker.py     counts; imports nothing of Onceward
    outcome.py     the verdict, and the JSON; report.py: the terminal; pages/: HTML
Going on from there
    ablation.py    `--ablate`: which layers; layers.py: how each is taken away
    sweep/         `--every-syscall`
    soak/          `--for 30m`
    explorer/      `onceward explore`
    demos/         `onceward demo`
    docs.py        the tables of docs/guarantees.md; alongside.py: where that file is
"""
