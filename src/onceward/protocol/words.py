"""The words of the delivery protocol: its commands and its events, plain tuples. No I/O.

`onceward.delivery.step` turns an event into a command; whoever drives it carries the command out and answers with the next
event.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from onceward.transport import Settlement

# ---- commands: what the driver is to do ------------------------------------------------------------------------------


class Take(NamedTuple):
    """Take the message: INSERT first, or read the row and decide."""


class Run(NamedTuple):
    """Start the handler."""


class Resume(NamedTuple):
    """Hand the handler what it asked for: a recorded answer (JSON text), or None for the transaction."""

    answer: str | None = None


class Interrupt(NamedTuple):
    """Raise in the handler: `error` names which."""

    error: str
    detail: str = ""


class Intend(NamedTuple):
    """Commit the n-th intent, or read it."""

    n: int


class Call(NamedTuple):
    """Call the provider, with no transaction and no connection held."""

    n: int


class LookUp(NamedTuple):
    """Ask the provider whether the n-th effect happened."""

    n: int


class Record(NamedTuple):
    """Store the answer, write-once."""

    n: int
    answer: str
    refused: bool


class Finish(NamedTuple):
    """Open the handler's transaction; its first statement is the fenced UPDATE to done."""

    visited: int


class Commit(NamedTuple):
    """Check that this is still our transaction, and commit it."""


class Fail(NamedTuple):
    """Count a failed attempt, or a lost session, and give the claim back; when these ran out, park instead."""

    error: str
    session_lost: bool = False


class Park(NamedTuple):
    """Write the parked row, under the fence that `fence` names, and the inbox row as parked."""

    reason: str
    detail: str = ""
    fence: Literal["holder", "absent", "beside", "holder or beside", "foreign commit"] = "holder"
    unknown_n: int = 0


class GiveBack(NamedTuple):
    """Give the claim back without counting anything."""


class Settle(NamedTuple):
    """The end: what the queue is told."""

    settlement: Settlement


Command = (
    Take | Run | Resume | Interrupt | Intend | Call | LookUp | Record | Finish | Commit | Fail | Park | GiveBack | Settle
)

# ---- events: what happened -------------------------------------------------------------------------------------------


class Received(NamedTuple):
    """A delivery arrived; `deliveries` is the queue's own count, 0 when it does not count."""

    deliveries: int


class Taken(NamedTuple):
    """The message is ours. `fresh`: its row did not exist before; `takes`: claims that ended in nothing, this included.

    `excused`: deliveries that the queue counted, and that ended in a deferral, or behind another worker's open transaction.
    """

    token: int
    fresh: bool
    takes: int
    excused: int = 0


class Duplicate(NamedTuple):
    """The row is done or parked."""


class InFlight(NamedTuple):
    """Another worker holds it, for this long at most."""

    seconds: float


class Conflict(NamedTuple):
    """The row is of another payload."""

    detail: str = ""


class OutsideWindow(NamedTuple):
    """Older than the window and unseen, from the future, or without a time of its own."""

    detail: str = ""


class DatabaseLost(NamedTuple):
    """The database did not answer, before any COMMIT was sent: nothing was written."""


class Ambiguous(NamedTuple):
    """COMMIT was sent and no reply came: it may or may not have happened."""


class EffectAsked(NamedTuple):
    """The handler calls `once.effect`."""


class FinishAsked(NamedTuple):
    """The handler enters `once.transaction()`."""


class BlockRaised(NamedTuple):
    """The body of `once.transaction()` raised: its transaction was rolled back."""


class BlockEnded(NamedTuple):
    """The body of `once.transaction()` ended well."""


class Returned(NamedTuple):
    """The handler returned."""


class Raised(NamedTuple):
    """The handler raised.

    `kind`: failed | refused | rejected | deferred | session lost | cancelled | foreign commit | unknown type.
    """

    kind: str
    detail: str = ""
    delay_seconds: float = 0.0


class Recorded(NamedTuple):
    """The intent is done, or its answer is stored now."""

    answer: str
    refused: bool = False


class Intended(NamedTuple):
    """The intent is committed (or was pending, inside the window): call."""


class Expired(NamedTuple):
    """The intent is pending past the provider's window, or unknown: never call; look it up."""


class Changed(NamedTuple):
    """The recorded effects are not the ones that the handler now asks for."""

    detail: str


class FencedOff(NamedTuple):
    """The lease or the fence is lost."""


class Answered(NamedTuple):
    """The provider answered; `answer` is canonical JSON."""

    answer: str
    refused: bool = False


class Unreadable(NamedTuple):
    """The provider answered, so the effect may have happened, but what it said is not JSON; `detail` is all of it."""

    detail: str


class Cancelled(NamedTuple):
    """The call, or the look-up, was cut off because the program is ending: nothing is said of it, as after a crash."""

    detail: str


class Later(NamedTuple):
    """The provider says that the key is in use, or to come back later: nothing was decided."""

    delay_seconds: float


class Replayed(NamedTuple):
    """The provider replayed a stored 5xx: trying again cannot change it."""


class Failed(NamedTuple):
    """The call, or the look-up, ended without a definite answer."""

    detail: str


class Mismatch(NamedTuple):
    """The provider refuses the key: it knows it with another request."""

    detail: str


class NotFound(NamedTuple):
    """The look-up found nothing, or there is none."""


class TwoAnswers(NamedTuple):
    """Another answer is recorded already."""

    detail: str


class Finishing(NamedTuple):
    """The transaction is open, the row is done in it. Counts of all recorded intents, and of those not done."""

    intents: int
    intents_open: int


class Committed(NamedTuple):
    """The reply to COMMIT was COMMIT."""


class Aborted(NamedTuple):
    """The transaction had failed inside: it rolled back, whatever the handler believes."""


class ForeignCommit(NamedTuple):
    """The session is not in the transaction that we opened."""


class Counted(NamedTuple):
    """The failed attempt is counted; the retry is due after the delay."""

    delay_seconds: float


class Parked(NamedTuple):
    """The message is parked."""


class GivenBack(NamedTuple):
    """The claim is given back."""


Event = (
    Received | Taken | Duplicate | InFlight | Conflict | OutsideWindow
    | DatabaseLost | Ambiguous | EffectAsked | FinishAsked | BlockRaised | BlockEnded | Returned | Raised | Recorded
    | Intended | Expired | Changed | FencedOff | Answered | Unreadable | Cancelled | Later | Replayed | Failed | Mismatch
    | NotFound | TwoAnswers
    | Finishing | Committed | Aborted | ForeignCommit | Counted | Parked | GivenBack
)  # fmt: skip
