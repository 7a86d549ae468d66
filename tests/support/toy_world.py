"""The toy world's data: one message, some workers, a queue, a database and a provider, as one immutable, hashable tuple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from onceward import protocol as p
from onceward.delivery import step
from onceward.state import Limits, Shape, State, Step

LIMITS: Final = Limits(attempts_max=2, deliveries_max=3)
CALLABLE, EXPIRED, FORGOTTEN, OUTSIDE = range(4)  # ages: key may be sent; not any more; provider forgot it; id too old
NEVER_REDRIVEN: Final = ("", "two answers", "foreign commit")  # a person looked: what was done stands
GONE, VISIBLE, HELD = range(3)  # a copy of the message in its queue


class Row(NamedTuple):
    """The inbox row."""

    state: str
    token: int = 1
    lapsed: bool = False
    forgiven: int = 0


class Intent(NamedTuple):
    """The row of the one effect."""

    state: str = "pending"
    answer: str = ""
    refused: bool = False


class Worker(NamedTuple):
    """One worker with one delivery: the protocol's state, what it commands next, and where the handler is."""

    copy: int
    state: State
    command: p.Command
    place: str


class World(NamedTuple):
    """Everything. `open`: the one transaction that holds the inbox row's lock, as (worker, the row in it)."""

    workers: tuple[Worker | None, ...] = (None, None)
    row: Row | None = None
    open: tuple[int, Row] | None = None
    attempts: int = 0
    intent: Intent | None = None
    parked: str = ""  # the reason of the parked row
    queue: tuple[tuple[int, int], ...] = ((VISIBLE, 0),)  # (where it is, how often it was delivered)
    keys: tuple[tuple[str, str], ...] = ()  # the provider's memory: key -> c1 | refused | 500 | flying
    charges: int = 0
    age: int = CALLABLE
    writes: int = 0  # the handler's own, committed
    told: bool = False  # a worker was told that the answer is recorded
    trespassed: bool = False  # a worker changed the inbox row under another's token
    faults: int = 3
    redrives: int = 1


class Rules(NamedTuple):
    """The shape on trial, and what a planted bug may change."""

    shape: Shape = "effectful"
    lookup: bool = True
    step: Callable[[State, p.Event], Step] = step
    fence: str = "state and token"  # state | nothing
    key_stable: bool = True
    zero_rows_skip: bool = False
    failed_row_stays: bool = False
    record_fenced: bool = False
    ack_before_commit: bool = False


Move = tuple[str, World]
Outcome = tuple[str, World, p.Event]  # what a command came to; the name is '' when nothing went wrong


def faulty(world: World) -> World:
    return world._replace(faults=world.faults - 1)


def with_worker(world: World, index: int, worker: Worker | None) -> World:
    return world._replace(workers=(*world.workers[:index], worker, *world.workers[index + 1 :]))


def gone(world: World, index: int) -> World:
    """The worker is no more; the database rolls its transaction back."""
    return with_worker(rolled_back(world, index), index, None)


def rolled_back(world: World, index: int) -> World:
    return world._replace(open=None) if world.open is not None and world.open[0] == index else world


def put(world: World, copy: int, where: int, *, received: bool = False) -> World:
    count = min(world.queue[copy][1] + received, LIMITS.deliveries_max + 1)
    return world._replace(queue=(*world.queue[:copy], (where, count), *world.queue[copy + 1 :]))


def charge(world: World, key: str) -> World:
    charges = world.charges + 1
    return remember(world._replace(charges=charges), key, f"c{charges}")


def remember(world: World, key: str, stored: str) -> World:
    return world._replace(keys=tuple(sorted({**dict(world.keys), key: stored}.items())))
