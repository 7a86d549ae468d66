"""What is counted of a row: every harm by itself, and what the sums of money say of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from onceward_proof.prove.checker import Verdict

Harm = Literal[
    "double_charged_orders", "phantom_charges", "wrong_charges", "lost_first_hop", "lost_second_hop", "doubled_writes",
    "charged_beyond_paid", "paid_beyond_charged", "booked_beyond_paid", "paid_beyond_booked",
]  # fmt: skip
HARMS: Final[dict[Harm, str]] = {
    "double_charged_orders": "double charges",
    "phantom_charges": "charges without an order",
    "wrong_charges": "orders paid by a charge that is not there",
    "lost_first_hop": "events lost before the payment",
    "lost_second_hop": "events lost before the booking",
    "doubled_writes": "doubled writes",
    "charged_beyond_paid": "cents charged beyond what was paid",
    "paid_beyond_charged": "cents paid that were never charged",
    "booked_beyond_paid": "cents booked beyond what was paid",
    "paid_beyond_booked": "cents paid that were never booked",
}
# A harm moves a sum. So a row that must show the one must show the other, and a sum that differs in any other row has no
# cause that the row knows of.
MOVES: Final[dict[Harm, Harm]] = {
    "double_charged_orders": "charged_beyond_paid",
    "phantom_charges": "charged_beyond_paid",
    "lost_second_hop": "paid_beyond_booked",
    "doubled_writes": "booked_beyond_paid",
}


def count_harms(verdict: Verdict) -> dict[Harm, int]:
    """Every harm with its count; 0 where there is none. Sums are in cents."""
    money = verdict.money
    charged, booked = (money[name] - money["paid"] for name in ("charged", "booked"))
    return {
        "double_charged_orders": len(verdict.double_charged),
        "phantom_charges": len(verdict.phantom),
        "wrong_charges": len(verdict.wrong_charge),
        "lost_first_hop": len(verdict.lost_first_hop),
        "lost_second_hop": len(verdict.lost_second_hop),
        "doubled_writes": len(verdict.doubled_writes),
        "charged_beyond_paid": max(charged, 0),
        "paid_beyond_charged": max(-charged, 0),
        "booked_beyond_paid": max(booked, 0),
        "paid_beyond_booked": max(-booked, 0),
    }


def with_sums(harms: Iterable[Harm]) -> frozenset[Harm]:
    """These harms, and the sums that they move."""
    chosen = frozenset(harms)
    return chosen | {MOVES[harm] for harm in chosen if harm in MOVES}
