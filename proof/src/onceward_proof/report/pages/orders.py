"""What became of the orders that bore a fault: per fault, per leg, per layer that was removed."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Schedule

# What can become of an order, its colour in the stylesheet, and where the checker names such orders. The worst comes first:
# an order counts as that.
HARMS: Final = (
    ("charged twice", "bad", attrgetter("double_charged")),
    ("lost", "ink", attrgetter("lost")),
    ("booked twice", "warn", attrgetter("doubled_writes")),
    ("held", "held", attrgetter("parked")),
)
NAMES: Final = (*((name, colour) for name, colour, _ in HARMS), ("paid once", "good"))


def alone(schedule: Schedule) -> dict[str, set[str]]:
    """Per fault, the orders that bore it and no other aimed fault."""
    orders: dict[str, set[str]] = {name: set() for name in schedule.planned()}
    for order, faults in schedule.faults_by_order().items():
        if len(faults) == 1:
            orders[faults[0]].add(order)
    return {name: of_fault for name, of_fault in orders.items() if of_fault}


def outcomes(result: Result, orders: set[str]) -> tuple[int, ...]:
    """How many of these orders had each outcome of NAMES; each order counts as its worst."""
    unharmed, counts = set(orders), []
    for _, _, read in HARMS:
        hit = unharmed & set(read(result.verdict))
        counts.append(len(hit))
        unharmed -= hit
    return (*counts, len(unharmed))
