"""What each fault did: what became of the orders that it struck, and that nothing else did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from operator import attrgetter
from typing import Final, Literal

from onceward_proof.prove.checker import Verdict
from onceward_proof.prove.faults import Harm
from onceward_proof.prove.schedule import Schedule

Became = Harm | Literal["held"]
# What can become of an order, and where the checker names such orders. The worst comes first: an order counts as that.
READ: Final[dict[Became, Callable[[Verdict], Iterable[str]]]] = {
    "charged twice": attrgetter("double_charged"),
    "lost": attrgetter("lost"),
    "booked twice": attrgetter("doubled_writes"),
    "held": attrgetter("parked"),
}
# The faults that a client meets which sends again, and what they do to it: leg 1.
RESENT: Final[dict[str, Became]] = {"lose-publish-ack-placed": "charged twice", "lose-publish-ack-paid": "booked twice"}


def struck_alone(schedule: Schedule, also_struck: Set[str]) -> dict[str, frozenset[str]]:
    """Per aimed fault, the orders that bore it alone and that no random kill and no server's end met on their way."""
    # These strike wherever work is under way: what they did must not be laid at a fault that was merely aimed there.
    return {fault: orders - also_struck for fault, orders in schedule.alone().items()}


def became(verdict: Verdict, orders: Collection[str]) -> dict[Became, int]:
    """How many of these orders came to each harm; each order counts as its worst."""
    unharmed, counts = set(orders), {}
    for name, read in READ.items():
        hit = unharmed & set(read(verdict))
        counts[name] = len(hit)
        unharmed -= hit
    return counts
