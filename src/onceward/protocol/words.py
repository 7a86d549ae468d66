"""The words of the delivery protocol: its commands and its events, plain tuples. No I/O.

`onceward.delivery.step` turns an event into a command; whoever drives it carries the command out and answers with the next
event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onceward.transport import Settlement

# ---- commands: what the driver is to do ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """Take the message: INSERT first, or read the row and decide."""


@dataclass(frozen=True, slots=True)
class Run:
    """Start the handler."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Hand the handler what it asked for: a recorded answer (JSON text), or None for the transaction."""

    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raise in the handler: `error` names which."""

    error: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Intend:
    """Commit the n-th intent, or read it."""

    n: int


@dataclass(frozen=True, slots=True)
class Call:
    """Call the provider, with no transaction and no connection held."""

    n: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the provider whether the n-th effect happened."""

    n: int


@dataclass(frozen=True, slots=True)
class Record:
    """Store the answer, write-once."""

    n: int
    answer: str
    refused: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """Open the handler's transaction; its first statement is the fenced UPDATE to done."""

    visited: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Check that this is still our transaction, and commit it."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Count a failed attempt, or a lost session, and give the claim back; when these ran out, park instead."""

    error: str
    session_lost: bool = False


@dataclass(frozen=True, slots=True)
class Park:
    """Write the parked row, under the fence that `fence` names, and the inbox row as parked."""

    reason: str
    detail: str = ""
    fence: Literal["holder", "absent", "beside", "holder or beside", "foreign commit"] = "holder"
    unknown_n: int = 0


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Give the claim back without counting anything."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The end: what the queue is told."""

    settlement: Settlement


Command = (
    Take | Run | Resume | Interrupt | Intend | Call | LookUp | Record | Finish | Commit | Fail | Park | GiveBack | Settle
)

# ---- events: what happened -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A delivery arrived; `deliveries` is the queue's own count, 0 when it does not count."""

    deliveries: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The message is ours. `fresh`: its row did not exist before; `takes`: claims that ended in nothing, this included.

    `excused`: deliveries that the queue counted, and that ended in a deferral, or behind another worker's open transaction.
    """

    token: int
    fresh: bool
    takes: int
    excused: int = 0


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The row is done or parked."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """Another worker holds it, for this long at most."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Conflict:
    """The row is of another payload."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class OutsideWindow:
    """Older than the window and unseen, from the future, or without a time of its own."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseLost:
    """The database did not answer, before any COMMIT was sent: nothing was written."""


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """COMMIT was sent and no reply came: it may or may not have happened."""


@dataclass(frozen=True, slots=True)
class EffectAsked:
    """The handler calls `once.effect`."""


@dataclass(frozen=True, slots=True)
class FinishAsked:
    """The handler enters `once.transaction()`."""


@dataclass(frozen=True, slots=True)
class BlockRaised:
    """The body of `once.transaction()` raised: its transaction was rolled back."""


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """The body of `once.transaction()` ended well."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned."""


@dataclass(frozen=True, slots=True)
class Raised:
    """The handler raised.

    `kind`: failed | refused | rejected | deferred | session lost | cancelled | foreign commit | unknown type.
    """

    kind: str
    detail: str = ""
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """The intent is done, or its answer is stored now."""

    answer: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Intended:
    """The intent is committed (or was pending, inside the window): call."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The intent is pending past the provider's window, or unknown: never call; look it up."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The recorded effects are not the ones that the handler now asks for."""

    detail: str


@dataclass(frozen=True, slots=True)
class FencedOff:
    """The lease or the fence is lost."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The provider answered; `answer` is canonical JSON."""

    answer: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The provider answered, so the effect may have happened, but what it said is not JSON; `detail` is all of it."""

    detail: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The call, or the look-up, was cut off because the program is ending: nothing is said of it, as after a crash."""

    detail: str


@dataclass(frozen=True, slots=True)
class Later:
    """The provider says that the key is in use, or to come back later: nothing was decided."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """The provider replayed a stored 5xx: trying again cannot change it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The call, or the look-up, ended without a definite answer."""

    detail: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The provider refuses the key: it knows it with another request."""

    detail: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """The look-up found nothing, or there is none."""


@dataclass(frozen=True, slots=True)
class TwoAnswers:
    """Another answer is recorded already."""

    detail: str


@dataclass(frozen=True, slots=True)
class Finishing:
    """The transaction is open, the row is done in it. Counts of all recorded intents, and of those not done."""

    intents: int
    intents_open: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The reply to COMMIT was COMMIT."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The transaction had failed inside: it rolled back, whatever the handler believes."""


@dataclass(frozen=True, slots=True)
class ForeignCommit:
    """The session is not in the transaction that we opened."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The failed attempt is counted; the retry is due after the delay."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Parked:
    """The message is parked."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The claim is given back."""


Event = (
    Received | Taken | Duplicate | InFlight | Conflict | OutsideWindow
    | DatabaseLost | Ambiguous | EffectAsked | FinishAsked | BlockRaised | BlockEnded | Returned | Raised | Recorded
    | Intended | Expired | Changed | FencedOff | Answered | Unreadable | Cancelled | Later | Replayed | Failed | Mismatch
    | NotFound | TwoAnswers
    | Finishing | Committed | Aborted | ForeignCommit | Counted | Parked | GivenBack
)  # fmt: skip
