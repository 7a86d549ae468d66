"""The proof: a workload under a schedule of faults, and the checker that counts what became of it.

prove/      `onceward prove`: orders, faults, the processes that they strike, the checker and the verdict
ablation/   `prove --ablate`: hardened less one layer at a time
sweep/      `prove --every-syscall`: killed at each system call
soak/       `prove --for 30m`: orders and faults without end
explorer/   `onceward explore`: the protocol in every order of events
demos/      `onceward demo`: one failure, step by step
provider/   `onceward provider`: the payment provider, with Stripe's documented rules
workers/    a worker process: what it is started with, what it does, what it reports
report/     what is shown: on the terminal, as an HTML page, in docs/guarantees.md
commands/   the command line of all of these
bundled.py  where the reference service, the benchmarks and the write-up are
"""
