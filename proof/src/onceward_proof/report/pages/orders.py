"""What became of the orders that bore a fault, with a colour for each outcome."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from onceward_proof.prove.harm import READ, Became, became
from onceward_proof.prove.run import Result

_COLOURS: Final[dict[Became, str]] = {"charged twice": "bad", "lost": "ink", "booked twice": "warn", "held": "held"}
# What can become of an order, its colour in the stylesheet, and where the checker names such orders; the worst comes first.
HARMS: Final = tuple((name, _COLOURS[name], read) for name, read in READ.items())
NAMES: Final = (*((name, colour) for name, colour, _ in HARMS), ("paid once", "good"))


def outcomes(result: Result, orders: Collection[str]) -> tuple[int, ...]:
    """How many of these orders had each outcome of NAMES; each order counts as its worst."""
    harmed = tuple(became(result.verdict, orders).values())
    return (*harmed, len(orders) - sum(harmed))
