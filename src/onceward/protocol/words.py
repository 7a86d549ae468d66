"""The words of the delivery protocol: its commands, its events, their kinds. No I/O.

`delivery.step` turns an event into a command; the driver carries the command out and answers with the next event.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, dataclass_transform

from onceward.protocol.reasons import ParkReason
from onceward.transport import Settlement

# Transactional: one transaction holds the take and the writes. Effectful: claim, call, finish.
Shape = Literal["transactional", "effectful"]


@dataclass_transform(frozen_default=True)
class Word:
    """One command or event: immutable, and equal only to one of its own type.

    Each becomes a frozen dataclass when its class is made.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)


class Interruption(Enum):
    """What is raised in a handler that may not go on, or whose effect was refused."""

    REFUSED = "refused"  # the provider's recorded no: the only one after which the handler may go on
    CALL_FAILED = "call failed"  # the exception of the call itself
    LATER = "later"
    LEASE_LOST = "lease lost"
    UNKNOWN = "unknown"
    TWO_ANSWERS = "two answers"
    DISCARDED = "discarded"
    USAGE = "usage"


class Fence(Enum):
    """Under which condition a message may be parked."""

    HOLDER = "holder"  # the inbox row is as this worker left it
    ABSENT = "absent"  # there is no inbox row
    BESIDE = "beside"  # none: the inbox row, if there is one, is another message's and stays as it is
    HOLDER_OR_BESIDE = "holder or beside"  # the fact must be kept, whoever holds the message now
    FOREIGN_COMMIT = "foreign commit"  # also from done, for that is what the handler may have committed


class RaisedKind(Enum):
    """What the exception means with which a handler ended."""

    FAILED = "failed"
    REFUSED = "refused"  # the handler let a provider's refusal pass
    REJECTED = "rejected"
    DEFERRED = "deferred"
    SESSION_LOST = "session lost"
    CANCELLED = "cancelled"
    FOREIGN_COMMIT = "foreign commit"
    UNKNOWN_TYPE = "unknown type"


class Take(Word):
    """Take the message: INSERT first, else take over what is there."""


class Run(Word):
    """Start the handler."""


class Resume(Word):
    """Let the handler go on, with the recorded answer (JSON text) if it asked for an effect."""

    answer: str | None = None


class Interrupt(Word):
    """Raise in the handler."""

    kind: Interruption
    detail: str = ""


class Intend(Word):
    """Commit the n-th intent, or read it.

    `checked`: it was read before, as begun again by a person, and a look-up has found nothing.
    """

    n: int
    checked: bool = False


class Call(Word):
    """Call the provider, with no transaction and no connection held."""

    n: int


class LookUp(Word):
    """Ask the provider whether the n-th effect happened."""

    n: int


class Record(Word):
    """Store the answer, write-once."""

    n: int
    answer: str
    refused: bool


class Finish(Word):
    """Open the handler's transaction; its first statement is the fenced UPDATE to done."""


class Commit(Word):
    """Check that this is still our transaction, and commit it."""


class Fail(Word):
    """Count a failed attempt, or a lost session, and give the claim back.

    The same transaction parks the message when `delivery.after_failure` says so.
    """

    error: str
    session_lost: bool = False


class Park(Word):
    """Write the parked row, and the inbox row as parked, under `fence`.

    `unknown_n`: the effect whose outcome is not known, if it is pending; 0: none.
    """

    reason: ParkReason
    detail: str = ""
    fence: Fence = Fence.HOLDER
    unknown_n: int = 0


class GiveBack(Word):
    """Give the claim back; nothing is counted."""


class Settle(Word):
    """The end: what the queue is told."""

    settlement: Settlement


# By who carries them out: the transactions, the steps of an effect, and the driver itself (the handler's turn, or the end).
Transaction = Take | Finish | Commit | Fail | Park | GiveBack
EffectStep = Intend | Call | LookUp | Record
Turn = Run | Resume | Interrupt | Settle
Command = Transaction | EffectStep | Turn


class Received(Word):
    """A delivery arrived; `deliveries` is the queue's own count, 0 when it does not count."""

    deliveries: int


class Taken(Word):
    """The message is ours.

    `fresh`: its row did not exist before. `takes`: this one, and those before it that were not forgiven.
    `excused`: deliveries that its queue counted, and that ended in a deferral, or met a message in flight.
    `intents`: effects that earlier attempts began.
    """

    token: int
    fresh: bool
    takes: int
    excused: int = 0
    intents: int = 0


class Duplicate(Word):
    """The row is done or parked."""


class InFlight(Word):
    """Another worker holds it, for at most this long."""

    seconds: float


class Conflict(Word):
    """The row belongs to another payload."""

    detail: str = ""


class OutsideWindow(Word):
    """Its id is unseen, and older than the window, from the future, or without a time."""

    detail: str = ""


class DatabaseLost(Word):
    """The database did not confirm a write of ours that stands alone; it may or may not have been committed.

    Not the handler's own transaction: that is `Ambiguous` once its COMMIT was sent. The redelivery finds out either way.
    """


class Ambiguous(Word):
    """COMMIT was sent, and no reply came: it may or may not have happened."""


class EffectAsked(Word):
    """The handler calls `once.effect`."""


class FinishAsked(Word):
    """The handler enters `once.transaction()`."""


class BlockRaised(Word):
    """The body of `once.transaction()` raised: its transaction was rolled back."""


class BlockEnded(Word):
    """The body of `once.transaction()` came to its end."""


class Returned(Word):
    """The handler returned."""


class Raised(Word):
    """The handler raised. `delay_seconds`: of a deferral."""

    kind: RaisedKind
    detail: str = ""
    delay_seconds: float = 0.0


class Recorded(Word):
    """The intent is done: this is its answer, stored now or before."""

    answer: str
    refused: bool = False


class Intended(Word):
    """The intent is pending, inside the provider's window: call."""


class Reopened(Word):
    """A person decided that the effect did not happen: look it up once more, then call it under its new key."""


class Expired(Word):
    """The intent is pending past the window, or unknown: look it up, never call."""


class Changed(Word):
    """The effect recorded at this place is not the one that is asked for."""

    detail: str


class FencedOff(Word):
    """The row is not as this worker left it, so nothing was written.

    Another worker has the message now, or it is over.
    """


class Answered(Word):
    """The provider answered; `answer` is canonical JSON."""

    answer: str
    refused: bool = False


class Unreadable(Word):
    """The effect may have happened, but its answer is not JSON; `detail` is all of it."""

    detail: str


class Cancelled(Word):
    """The call, or the look-up, was cut off because the program is ending: as after a crash."""

    detail: str


class Later(Word):
    """The provider asks to come back later (the key is in use): nothing is decided."""

    delay_seconds: float


class Replayed(Word):
    """The provider replayed a stored 5xx, which no retry can change."""


class Failed(Word):
    """The call, or the look-up, ended without a definite answer."""

    detail: str


class Mismatch(Word):
    """The provider knows the key with another request."""

    detail: str


class NotFound(Word):
    """The look-up found nothing, or there is none."""


class TwoAnswers(Word):
    """Another answer is recorded already."""

    detail: str


class AnsweredAfterDiscard(Word):
    """A person has discarded the message meanwhile, so the answer was not stored."""

    detail: str


class Finishing(Word):
    """The transaction is open, with the row done in it.

    `intents`: how many are recorded. `intents_open`: how many of them have no answer.
    """

    intents: int
    intents_open: int


class Committed(Word):
    """The reply to COMMIT was COMMIT."""


class Aborted(Word):
    """The transaction had failed inside, so it was rolled back."""


class ForeignCommit(Word):
    """The session is not in the transaction that we opened: the handler ended it."""


class Counted(Word):
    """The failed attempt is counted; the retry is due after the delay."""

    delay_seconds: float


class Parked(Word):
    """The message is parked."""


class GivenBack(Word):
    """The claim is given back."""


Event = (
    Received | Taken | Duplicate | InFlight | Conflict | OutsideWindow
    | DatabaseLost | Ambiguous | EffectAsked | FinishAsked | BlockRaised | BlockEnded | Returned | Raised | Recorded
    | Intended | Reopened | Expired | Changed | FencedOff | Answered | Unreadable | Cancelled | Later | Replayed | Failed
    | Mismatch | NotFound | TwoAnswers | AnsweredAfterDiscard
    | Finishing | Committed | Aborted | ForeignCommit | Counted | Parked | GivenBack
)  # fmt: skip
