"""The words on the line: what a worker, the provider or the supervisor reports, and what it is answered.

One line of JSON each. A report without `ask` is a note: no answer comes. One with it waits for the answer of that number.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from onceward_proof.prove.faults import Answer, Boundary, Place
from onceward_proof.workers.setting import Role


class Note(StrEnum):
    """What is reported beside boundaries."""

    READY = "ready"  # the supervisor may be asked to fork
    FORKED = "forked"
    EXITED = "exited"
    HELLO = "hello"  # who is at the other end of this line
    RECEIVED = "received"  # a delivery is in the worker's hands
    RELEASED = "released"  # a delivery is about to be given back to the queue
    EXTENDED = "extended"  # the first heartbeat of a delivery
    HANDLED = "handled"  # a delivery has left the worker's hands, whatever became of it
    PLACED = "placed"  # an order is committed
    WANTED = "wanted"  # the producer asks for orders
    DONE = "done"  # the producer has placed all that it was given
    FOUND = "found"  # the provider was asked whether the charge happened: yes
    NOT_FOUND = "not found"
    ENDED = "ended"
    RAISED = "raised"


class Point(StrEnum):
    """The points of the library (`onceward.events.POINTS`) that are counted, waited at, or told."""

    RECEIVED = "consumer.received"
    CLAIMED = "consumer.claimed"
    TAKEN = "consumer.taken"
    DUPLICATE = "consumer.duplicate"
    IN_FLIGHT = "consumer.in_flight"
    COMMITTED = "consumer.committed"
    PARKED = "consumer.parked"
    LEASE_LOST = "consumer.lease_lost"
    RECORDED = "effect.recorded"
    REPLAYED = "effect.replayed"
    POSTPONED = "relay.postponed"
    DELETED = "relay.deleted"


Word = Boundary | Note | Point
WORDS: Final[dict[str, Word]] = {str(word): word for words in (Boundary, Note, Point) for word in words}


@dataclass(frozen=True, slots=True)
class Report:
    """One report.

    Which fields mean something depends on its word; the others are left out on the line.
    """

    word: Word
    at: float = field(default_factory=time.monotonic)  # the machine's one clock: all processes share it
    ask: int = 0  # number of the question; 0: a note
    role: Role | None = None
    slot: int = 0
    pid: int = 0
    signal: int = 0  # what ended the process; 0: it ended by itself
    message_type: str = ""
    message_id: str = ""
    order: str = ""
    count: int | None = None  # deliveries of the message so far, where the queue counts them
    worker: str = ""  # who asked the provider, in the provider's own reports: role-slot-pid
    key: str | None = None  # the idempotency key of a call
    replayed: bool = False
    status: int | None = None
    charge: str | None = None
    token: int | None = None
    reason: str = ""
    delivery: str = ""
    error: str = ""

    @property
    def place(self) -> Place | None:
        """Where a fault may wait for this passage; None for what is not a boundary."""
        return Place(self.word, self.message_type, self.order) if isinstance(self.word, Boundary) else None

    @property
    def message(self) -> str:
        """The message's id, shortened: only its end tells it from the others of a demonstration."""
        return f"msg-{self.message_id[-4:]}"

    def encode(self) -> bytes:
        shown = {name: value for name in _NAMES if (value := getattr(self, name)) not in _LEFT_OUT}
        return json.dumps(shown).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Report:
        shown = json.loads(line)
        return cls(**shown | {"word": WORDS[shown["word"]]})


_NAMES: Final = tuple(each.name for each in fields(Report))
_LEFT_OUT: Final = ("", 0, None)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the one that asked is told: how to go on, or which orders to place."""

    ask: int = 0
    answer: Answer = Answer.GO
    orders: tuple[dict[str, Any], ...] = ()

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes | str) -> Reply:
        shown = json.loads(line)
        return cls(shown["ask"], Answer(shown["answer"]), tuple(shown["orders"]))
