"""The variants: which roles each has, how many processes of each, and which of the service's modules they run.

`tutorial` is the naive service in the idiom of its queue's own client. Nothing of the proof is between it and that client,
so it is *struck from outside only*: what waits at a publish or at an ack does not reach it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from onceward_proof.workers.setting import QueueName, Role

# Every variant but `hardened` and `tutorial` is one module of the service, of the same shape as `naive`.
MODULES: Final = {
    "naive": "payments.naive",
    "resend": "payments.resend",
    "ack-first": "payments.ack_first",
    "select-then-act": "payments.select_then_act",
    "textbook": "payments.textbook",
    "no-key": "payments.no_key",
}
TUTORIAL: Final = "tutorial"
TUTORIALS: Final[dict[QueueName, str]] = {
    "sqs": "payments.sqs_tutorial",
    "sqs-fifo": "payments.sqs_tutorial",
    "rabbitmq": "payments.rabbitmq_tutorial",
    "kafka": "payments.kafka_tutorial",
}
_WITHOUT_RELAY: Final[dict[Role, int]] = {"producer": 1, "charge": 8, "ledger": 3}

# Per variant: how many processes of each role.
PROCESS_COUNTS: Final[dict[str, dict[Role, int]]] = {
    "naive": _WITHOUT_RELAY,
    "hardened": {"producer": 1, "charge": 8, "ledger": 3, "relay": 2},
    **{name: _WITHOUT_RELAY for name in MODULES if name != "naive"},
    TUTORIAL: _WITHOUT_RELAY,
}


def module_of(variant: str, queue: QueueName) -> str:
    """The service's module that this variant runs on this queue; '' for what is no variant of it."""
    if variant == TUTORIAL:
        return TUTORIALS.get(queue, "")
    return MODULES.get(variant, "payments.hardened" if variant == "hardened" else "")


def import_all() -> None:
    """Import the service's modules before any fork, so that a worker need not."""
    for name in (*MODULES.values(), "payments.hardened"):
        import_module(name)
