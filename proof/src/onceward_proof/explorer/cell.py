"""The data of one message: its workers, rows, copies in the queue and the provider's memory, one immutable, hashable tuple.

Cells know nothing of each other: two messages share only the workers, the relay and what may still go wrong.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from onceward.protocol import words as p
from onceward.protocol.delivery import Limits, State
from onceward.protocol.reasons import ParkReason
from onceward_proof.explorer.rules import PRODUCTION, Rules

LIMITS: Final = Limits(attempts_max=2, deliveries_max=3)
CALLABLE, EXPIRED, FORGOTTEN = range(3)  # the key of the effect: may be sent; not any more; its provider has forgotten it
GONE, VISIBLE, HELD = range(3)  # where a copy of the message is
REASONS_FOR_PEOPLE: Final = (
    ParkReason.TWO_ANSWERS,
    ParkReason.FOREIGN_COMMIT,
)  # a person looks: what was done stands, no redrive


class Row(NamedTuple):
    """The inbox row. `payload` stands for its fingerprint."""

    state: str
    token: int = 1
    lapsed: bool = False
    forgiven: int = 0
    payload: int = 0


class Intent(NamedTuple):
    """The row of the one effect."""

    state: str = "pending"
    answer: str = ""
    refused: bool = False


class Books(NamedTuple):
    """What is committed of one message. `parked`: the reason of the parked row, by payload; None: there is none."""

    row: Row | None = None
    intent: Intent | None = None
    attempts: int = 0
    sessions_lost: int = 0
    parked: tuple[ParkReason | None, ParkReason | None] = (None, None)

    def park(self, payload: int, reason: ParkReason | None) -> Books:
        parked = (reason, self.parked[1]) if payload == 0 else (self.parked[0], reason)
        return self._replace(parked=parked)


class Copy(NamedTuple):
    """One copy of the message in its queue, and how often it was delivered (as far as that matters)."""

    where: int = VISIBLE
    deliveries: int = 0
    payload: int = 0


class Worker(NamedTuple):
    """One worker with one delivery: the protocol's state, what it commands next, where the handler is.

    `open` is the inbox row as this worker's open transaction has it: it holds the row's lock.
    """

    copy: int
    payload: int
    state: State
    command: p.Command
    place: str
    open: Row | None = None


class Cell(NamedTuple):
    """One message."""

    rules: Rules = PRODUCTION
    workers: tuple[Worker, ...] = ()
    books: Books = Books()
    copies: tuple[Copy, ...] = (Copy(),)
    other: bool = False  # another payload came under this id
    keys: tuple[tuple[str, str], ...] = ()  # the provider's memory: key -> c1 | refused | 500 | flying
    charges: int = 0
    blind: bool = False  # charged after the provider had forgotten the key
    key_age: int = CALLABLE
    old: bool = False  # the id has left the dedup window
    dropped: bool = False  # upkeep has dropped its partition
    writes: tuple[int, int] = (0, 0)  # the handler's own, committed, by payload
    told: bool = False  # a worker was told that the answer is recorded
    trespassed: bool = False  # a worker changed the inbox row under another's token
    flushed: tuple[Books, tuple[int, int]] | None = None  # what a crash of the server goes back to; None: all is durable

    @property
    def locked(self) -> bool:
        return any(worker.open is not None for worker in self.workers)


class Move(NamedTuple):
    """One way on for one cell. `words`: what happens; `emits`: what enters the outbox with it (out | in0 | in1)."""

    words: tuple[str, ...]
    cell: Cell
    faults: int = 0
    redrives: int = 0
    emits: tuple[str, ...] = ()
    actor: int = -1  # which worker acted; -1: none, or a new one
    worker: Worker | None = None  # what became of it


def replaced(cell: Cell, index: int, worker: Worker | None) -> Cell:
    """The cell, with another worker (or none) at this place."""
    here = () if worker is None else (worker,)
    return cell._replace(workers=(*cell.workers[:index], *here, *cell.workers[index + 1 :]))


def put(cell: Cell, copy: int, where: int, *, received: bool = False) -> Cell:
    """The copy is elsewhere now. A transactional consumer reads how often it was delivered, an effectful one does not."""
    old = cell.copies[copy]
    counts = received and cell.rules.shape == "transactional"
    seen = 0 if where == GONE else min(old.deliveries + counts, LIMITS.deliveries_max + 1)
    return cell._replace(copies=(*cell.copies[:copy], old._replace(where=where, deliveries=seen), *cell.copies[copy + 1 :]))


def arrived(cell: Cell, payload: int) -> Cell:
    """One more copy is in the queue."""
    return cell._replace(copies=(*cell.copies, Copy(payload=payload)))


def charge(cell: Cell, key: str) -> Cell:
    """The provider has acted."""
    charges = cell.charges + 1
    blind = cell.blind or cell.key_age == FORGOTTEN
    return remember(cell._replace(charges=charges, blind=blind), key, f"c{charges}")


def remember(cell: Cell, key: str, stored: str) -> Cell:
    return cell._replace(keys=tuple(sorted({**dict(cell.keys), key: stored}.items())))
