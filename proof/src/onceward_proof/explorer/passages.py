"""Where the explorer goes by default: each passage is a space of worlds with a bound, tried to its end."""

from __future__ import annotations

from typing import Final

from onceward_proof.explorer.cell import Cell
from onceward_proof.explorer.outbox import Lane, Post
from onceward_proof.explorer.rules import Rules
from onceward_proof.explorer.search import Bound, Passage

LOOK_UP: Final = Cell(rules=Rules(other_payload=True))
NO_LOOK_UP: Final = Cell(rules=Rules(lookup=False, other_payload=True))
TRANSACTIONAL: Final = Cell(rules=Rules(shape="transactional", other_payload=True))
RETIRED: Final = Cell(rules=Rules(longer_window=True))
RETIRED_TRANSACTIONAL: Final = Cell(rules=Rules(shape="transactional", longer_window=True))


# What is taken for granted; outside of it nothing is promised.
ASSUMED: Final = (
    "a call to the provider ends within the margin that is kept before its key expires",
    "no transaction and no call is open at the moment at which a message's id leaves the dedup window",
    "a redrive is done by somebody who looked: two answers and foreign commits are not redriven",
    "Postgres keeps what it said is committed",
)


def _passage(name: str, cells: tuple[Cell, ...], *, faults: int, lanes: int = 0, redrives: int = 1) -> Passage:
    bound = Bound(messages=len(cells), faults=faults, redrives=redrives, lanes=lanes)
    return Passage(name, cells, Post(lanes=(Lane(),) * lanes), bound)


PASSAGES: Final = (
    _passage("effectful, without a look-up", (NO_LOOK_UP, NO_LOOK_UP), faults=1),
    _passage("transactional", (TRANSACTIONAL, TRANSACTIONAL), faults=2),
    _passage("one of each shape", (LOOK_UP, TRANSACTIONAL), faults=1),
    _passage("transactional and relay", (TRANSACTIONAL, TRANSACTIONAL), faults=1, lanes=2, redrives=0),
    _passage("effectful and relay, deeper", (LOOK_UP,), faults=2, lanes=1),
    _passage("effectful without a look-up, deeper", (NO_LOOK_UP,), faults=2),
    _passage("effectful, with a look-up", (LOOK_UP, LOOK_UP), faults=2),
    _passage("retired by another process's shorter window", (RETIRED, RETIRED_TRANSACTIONAL), faults=1),
)
DEEPER: Final = (
    *PASSAGES,
    _passage("effectful, three faults", (LOOK_UP,), faults=3),
    _passage("transactional, three faults", (TRANSACTIONAL,), faults=3),
)
# For tests: seconds, not a minute.
SMALL: Final = (
    _passage("effectful, with a look-up", (LOOK_UP, LOOK_UP), faults=1),
    _passage("effectful, without a look-up", (NO_LOOK_UP, NO_LOOK_UP), faults=1),
    _passage("transactional", (TRANSACTIONAL, TRANSACTIONAL), faults=1),
    _passage("effectful and relay", (LOOK_UP,), faults=1, lanes=1),
    _passage("transactional and relay", (TRANSACTIONAL, TRANSACTIONAL), faults=0, lanes=2, redrives=0),
    _passage("retired, effectful", (RETIRED,), faults=1),
    _passage("retired, transactional", (RETIRED_TRANSACTIONAL,), faults=2),
)
