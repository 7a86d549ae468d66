"""The runs that are kept as evidence, each in a file of its name, and the command that makes each."""

from __future__ import annotations

from typing import Final

QUEUES: Final = ("pgmq", "sqs", "sqs-fifo", "rabbitmq", "kafka")
BROKERS: Final = QUEUES[1:]

KEPT_RUNS: Final[dict[str, str]] = {
    "prove": "onceward prove --orders 1000 --seed 1 --variants naive,resend,hardened",
    "defaults": "onceward prove --orders 1000 --seed 1 --threads 8 --prefetch 8",
    "resolve": "onceward prove --orders 1000 --seed 1 --resolve",
    "queue-settings": "onceward prove --queue-settings --orders 100 --seed 7",
    "ablation": "onceward prove --ablate --orders 300 --seed 7",
    "explore": "onceward explore",
    "syscalls": "onceward prove --every-syscall",
    "soak": "onceward prove --for 30m --seed 31",
    **{
        f"prove-{queue}": f"onceward prove --queue {queue} --orders 1000 --seed 1 --variants naive,hardened"
        for queue in QUEUES
    },
    **{
        f"queue-settings-{queue}": f"onceward prove --queue-settings --queue {queue} --orders 60 --seed 7"
        for queue in BROKERS
    },
}
