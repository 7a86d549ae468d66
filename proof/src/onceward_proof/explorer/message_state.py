"""All that the model knows of one message, as one immutable, hashable tuple.

States of two messages know nothing of each other: they share only the workers, the relay and what may still go wrong.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, Literal, NamedTuple

from onceward.protocol import words as p
from onceward.protocol.delivery import Limits, State
from onceward.protocol.reasons import ParkReason
from onceward_proof.explorer.facts import Emitted, Happening, Worked
from onceward_proof.explorer.rules import PRODUCTION, Rules

LIMITS: Final = Limits(attempts_max=2, deliveries_max=3)
# A person looks: what was done stands, and no redrive can mend it.
REASONS_FOR_PEOPLE: Final = (ParkReason.TWO_ANSWERS, ParkReason.ANSWERED_AFTER_DISCARD, ParkReason.FOREIGN_COMMIT)
HandlerPlace = Literal["start", "asked", "finishing", "ended", "broke", "left"]  # how far a handler has come


# IntEnum and StrEnum: their hash is that of int and str, in C. States are hashed all the time.
class KeyAge(IntEnum):
    """What may still be done with the idempotency key of the effect."""

    CALLABLE = 0
    EXPIRED = 1  # it may not be sent any more
    FORGOTTEN = 2  # the provider would take it for a new one


class KeyRecord(StrEnum):
    """What the provider can remember of a key, beside an answer."""

    REFUSED = "refused"
    SAVED_500 = "500"
    IN_PROGRESS = "in progress"


class Where(IntEnum):
    """Where a copy of the message is."""

    GONE = 0
    VISIBLE = 1
    HELD = 2


class InboxRow(NamedTuple):
    """The inbox row. `payload` stands for its fingerprint."""

    state: Literal["pending", "done", "parked", "discarded"]
    token: int = 1
    lapsed: bool = False
    forgiven: int = 0
    payload: int = 0


class IntentRow(NamedTuple):
    """The row of the one effect. `generation`: one more each time when a person decided that it had not happened."""

    state: Literal["pending", "done", "unknown", "discarded"] = "pending"
    answer: str = ""
    refused: bool = False
    generation: int = 1


class Rows(NamedTuple):
    """What is committed of one message. `parked`: the reason of the parked row, by payload; None: there is none."""

    inbox: InboxRow | None = None
    intent: IntentRow | None = None
    attempts: int = 0
    sessions_lost: int = 0
    parked: tuple[ParkReason | None, ParkReason | None] = (None, None)

    def park(self, payload: int, reason: ParkReason | None) -> Rows:
        parked = (reason, self.parked[1]) if payload == 0 else (self.parked[0], reason)
        return self._replace(parked=parked)


class Copy(NamedTuple):
    """One copy of the message in its queue, and how often it was delivered (as far as that matters)."""

    where: Where = Where.VISIBLE
    deliveries: int = 0
    payload: int = 0


class Worker(NamedTuple):
    """One worker with one delivery: the protocol's state, what it commands next, how far the handler has come.

    `open` is the inbox row as this worker's open transaction has it; such a worker holds the row's lock. `generation` is
    that of the effect when this worker intended it: it calls under that key, whatever was decided since.
    """

    copy: int
    payload: int
    state: State
    command: p.Command
    place: HandlerPlace
    open: InboxRow | None = None
    generation: int = 1


class MessageState(NamedTuple):
    """One message: its workers, rows, copies in the queue, and the provider's memory of its effect."""

    rules: Rules = PRODUCTION
    workers: tuple[Worker, ...] = ()
    rows: Rows = Rows()
    copies: tuple[Copy, ...] = (Copy(),)
    other_payload_came: bool = False
    keys: tuple[tuple[str, str], ...] = ()  # the provider's memory: key -> an answer (c1), or a KeyRecord
    charges: int = 0
    charged_blind: bool = False  # charged after the provider had forgotten the key
    key_age: KeyAge = KeyAge.CALLABLE
    id_is_old: bool = False  # it has left the dedup window
    dropped: bool = False  # upkeep has dropped its partition
    writes: tuple[int, int] = (0, 0)  # the handler's own, committed, by payload
    answer_given: bool = False  # a worker was told that the answer is recorded
    discarded: tuple[bool, bool] = (False, False)  # a person has ended it without more ado, by payload
    trespassed: bool = False  # a worker changed the inbox row under another's token
    flushed: tuple[Rows, tuple[int, int]] | None = None  # what a crash of the server goes back to; None: all is durable

    @property
    def locked(self) -> bool:
        return any(worker.open is not None for worker in self.workers)

    def with_worker(self, index: int, *worker: Worker) -> MessageState:
        """Another worker at this place; none given: that worker is gone."""
        return self._replace(workers=(*self.workers[:index], *worker, *self.workers[index + 1 :]))

    def with_copy(self, number: int, where: Where, *, received: bool = False) -> MessageState:
        """The copy is elsewhere now."""
        copy = self.copies[number]
        # Only a transactional consumer reads the queue's count. Where nobody reads it, worlds must not differ by it.
        counts = received and self.rules.shape == "transactional"
        deliveries = 0 if where == Where.GONE else min(copy.deliveries + counts, LIMITS.deliveries_max + 1)
        moved = copy._replace(where=where, deliveries=deliveries)
        return self._replace(copies=(*self.copies[:number], moved, *self.copies[number + 1 :]))

    def with_arrival(self, payload: int) -> MessageState:
        """One more copy is in the queue."""
        return self._replace(copies=(*self.copies, Copy(payload=payload)))

    def with_key(self, key: str, record: str) -> MessageState:
        """The provider remembers this of the key."""
        return self._replace(keys=tuple(sorted({**dict(self.keys), key: record}.items())))

    def charged(self, key: str) -> MessageState:
        """The provider has acted."""
        charges = self.charges + 1
        blind = self.charged_blind or self.key_age == KeyAge.FORGOTTEN
        return self._replace(charges=charges, charged_blind=blind).with_key(key, f"c{charges}")


class MessageMove(NamedTuple):
    """One step that one message can make. `emitted`: what enters the outbox with it."""

    fact: Happening | Worked
    after: MessageState
    faults: int = 0
    redrives: int = 0
    emitted: tuple[Emitted, ...] = ()
    actor: int = -1  # the index of the worker that acted; -1: none, or a new one
