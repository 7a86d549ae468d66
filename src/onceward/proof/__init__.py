"""The proof: a workload under a schedule of faults, and the checker that counts what became of it.

command.py      `onceward prove`: options.py in, report.py (terminal) and pages/ (HTML) out
workload.py     the orders;  faults.py  what can go wrong, as data;  schedule.py  which fault strikes which order
run.py          one variant from empty databases to quiet: two clusters, the provider, the crew
variants.py     the crews;  roles.py  what each worker does;  nursery.py  forks them, reaps them
passage.py      each boundary that a worker passes is told to control.py, which lets it go on, or strikes
provider/       the payment provider, with Stripe's documented rules;  provider_hook.py  faults inside it
checker.py      counts; imports nothing of Onceward.  outcome.py  the verdict, and the JSON
ablation.py     `--ablate`: which rows;  layers.py  how each layer is taken away
sweep/          `--every-syscall`
soak/           `--for 30m`
explorer/       `onceward explore`
demos/          `onceward demo`
docs.py         the tables of docs/guarantees.md, from runs
"""
