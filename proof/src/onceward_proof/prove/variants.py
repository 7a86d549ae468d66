"""The variants: which roles each has, how many processes of each, and which of the service's modules they run."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from onceward_proof.workers.setting import Role

# Every variant but `hardened` is one module of the service, of the same shape as `naive`.
MODULES: Final = {
    "naive": "payments.naive",
    "resend": "payments.resend",
    "ack-first": "payments.ack_first",
    "select-then-act": "payments.select_then_act",
    "textbook": "payments.textbook",
    "no-key": "payments.no_key",
}
_WITHOUT_RELAY: Final[dict[Role, int]] = {"producer": 1, "charge": 8, "ledger": 3}

# Per variant: how many processes of each role.
PROCESS_COUNTS: Final[dict[str, dict[Role, int]]] = {
    "naive": _WITHOUT_RELAY,
    "hardened": {"producer": 1, "charge": 8, "ledger": 3, "relay": 2},
    **{name: _WITHOUT_RELAY for name in MODULES if name != "naive"},
}


def import_all() -> None:
    """Import the service's modules before any fork, so that a worker need not."""
    for name in (*MODULES.values(), "payments.hardened"):
        import_module(name)
