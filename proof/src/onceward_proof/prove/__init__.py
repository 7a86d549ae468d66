"""`onceward prove`: each variant of the service under the same faults, from empty databases until it is quiet.

What is run
    workload.py       the orders
    faults.py         what can go wrong, as data
    schedule.py       which fault strikes which order; kept.py: where the schedule of a run is kept
    variants.py       who runs it: naive, hardened, or a known recipe
Running it
    command.py        the command, with its options.py
    run.py            one variant
    clusters.py       the cluster and the broker, and a variant's database
    processes.py      a variant's processes: the provider, and the warm parent of all workers
    control.py        hears every report, lets it go on, or strikes; moments.py: what it heard of an order
    live.py           what it knows of each live worker, and what it counts
    held.py           the deliveries in each worker's hands
    strikes.py        what has struck, and the effect that it must be seen to have
    provider_hook.py  the provider's end of that line
    resolve.py        the end of what is held; person.py: somebody at the command line who decides
Judging it
    witness.py        whether what a process was told to do was seen at the queue and at the provider
    checker.py        counts; imports nothing of Onceward
    harm.py           what each fault did to the orders that it alone struck
    outcome.py        the figures, the verdict, the JSON
"""
