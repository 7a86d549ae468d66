"""Everything that can happen in a modelled world, as data. A member's value is how story.py words it.

Nothing but the story reads the wording: a fact is compared by what it is.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

from onceward.protocol import words as p


class Happening(Enum):
    """What befalls one message, or how a worker ends with it. Shown with `worker` and `message`."""

    RECEIVE = "{worker} receives {message}"
    RECEIVE_OTHER = "{worker} receives the other payload of {message}"
    CRASH = "{worker} crashes"
    ACK = "{worker} acknowledges {message}"
    ACK_LOST = "{worker} acknowledges {message}, but the queue never hears of it"
    RELEASE = "{worker} releases {message} to the queue"
    RELEASE_LOST = "{worker} releases {message}, but the queue never hears of it"
    LEAVE = "{worker} leaves {message} as it is: its lease will lapse at the queue"
    # A lapse or a redelivery under a worker that still works is early: it costs a fault.
    LAPSE = "the lease of {message} lapses"
    LAPSE_EARLY = "the lease of {message} lapses, though its worker still works"
    REDELIVERY = "the queue delivers {message} again"
    REDELIVERY_EARLY = "the queue delivers {message} again, though its worker still works"
    OTHER_PAYLOAD = "another payload arrives under the id of {message}"
    CHARGE_LATE = "the provider charges {message} at last"
    KEY_EXPIRES = "time passes: the key of {message} may not be sent any more"
    KEY_FORGOTTEN = "time passes: the provider has forgotten the key of {message}"
    ID_IS_OLD = "time passes: the id of {message} has left the dedup window"
    UPKEEP = "upkeep drops the partition of {message}"
    REDRIVE = "a person redrives {message}"
    SETTLE = "a person who looked at the provider settles {message}"
    DID_NOT_HAPPEN = "a person says that the effect of {message} did not happen"
    DISCARD = "a person discards {message}"
    DISCARD_OTHER = "a person discards the other payload of {message}"
    FLUSH = "the server flushes what is committed of {message}"
    SERVER_CRASH = "the server crashes: what it had confirmed as committed of {message} is undone"


class Fault(Enum):
    """What went wrong with a command."""

    DATABASE_LOST = "the database is lost first"
    REPLY_LOST = "it is done, but the reply is lost"
    LOCK_WAIT = "the wait for the row's lock runs out"
    UNDONE_REPLY_LOST = "it is not done, and the reply is lost"
    ERROR_SWALLOWED = "its handler swallowed a database error, so the server rolls back"
    HANDLER_COMMITTED = "its handler had committed by itself"
    HANDLER_ROLLED_BACK = "its handler had rolled back by itself"
    LOOK_UP_FAILED = "the look-up fails"
    FINDING_NOT_JSON = "what it finds is not JSON"
    KEY_IN_USE = "the provider says 409, this key is in use"
    CHARGED_ANSWER_LOST = "the provider charges, and the answer is lost (timeout)"
    NOT_CONNECTED = "the connection fails before the provider has the request"
    CHARGED_NOT_JSON = "the provider charges, and its answer is not JSON"
    CANCELLED = "the program is told to end"
    CARD_REFUSED = "the card is refused"
    SAVED_500 = "the provider fails before it charges, and saves the 500"
    CHARGED_SAVED_500 = "the provider charges, then fails, and saves the 500"
    HANGS = "the provider hangs (timeout) and has not charged yet"


class Slip(Enum):
    """What a handler does that it should not, or need not."""

    RAISES = "raises"
    RAISES_IN_TRANSACTION = "raises inside its transaction"
    RAISES_LATE = "raises late"
    DEFERS = "defers"
    LOSES_SESSION = "loses its session"
    LOST_SESSION = "had lost its session"
    SWALLOWS = "swallows the error"


class Worked(NamedTuple):
    """A worker carried out a command and heard an event; then its handler went on."""

    command: p.Command
    event: p.Event
    fault: Fault | None = None
    slip: Slip | None = None


class Emitted(IntEnum):
    """What enters the outbox with a commit: the handler's event, or the message itself, redriven, by payload."""

    EVENT = 0
    REDRIVEN = 1
    REDRIVEN_OTHER = 2

    @property
    def payload(self) -> int:
        return self - Emitted.REDRIVEN


class RowFate(Enum):
    """What became of an outbox row."""

    STORED = "stored"
    REFUSED = "refused"
    UNCONFIRMED = "stored, not confirmed"
    HELD = "held"
    DELETED = "deleted"
    POSTPONED = "postponed"
    SET_ASIDE = "set aside"


class RelayHappening(Enum):
    """What a lane of the relay does, or what befalls it. Shown with `relay` and `rows`."""

    WAKE = "{relay} wakes"
    TAKE = "{relay} takes {rows}"
    PUBLISH = "{relay} publishes: {rows}"
    PUBLISH_LATE = "{relay} publishes, and its time is over: {rows}"
    STOP = "{relay} is told to stop and publishes nothing more"
    SINK_LOST = "{relay} loses the sink before it stored anything"
    SINK_LOST_LATE = "{relay} loses the sink after some rows: {rows}"
    COMMIT = "{relay} commits its batch: {rows}"
    COMMIT_REPLY_LOST = "{relay} commits its batch, but the reply is lost: {rows}"
    SESSION_GONE = "{relay} cannot commit its batch: its session is gone"
    DATABASE_LOST = "{relay} loses the database"
    LOCKS_LOST = "{relay}'s session is ended by the server: it holds no locks any more, and does not know"
    CRASH = "{relay} crashes"
    RETRY_DUE = "the retry of {rows} is due"
    RETRIED = "a person retries {rows}"


class Relayed(NamedTuple):
    """What happened to the outbox, and to which rows of it, by position."""

    kind: RelayHappening
    rows: tuple[tuple[int, RowFate | None], ...] = ()
