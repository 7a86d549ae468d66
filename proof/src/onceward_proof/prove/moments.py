"""What happened to an order, as facts; and the one place that puts such a fact into words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from onceward_proof.prove.faults import STORIES, Boundary
from onceward_proof.workers.reports import Point, Report

PROVIDER: Final = "provider"
QUEUE: Final = "queue"


class Kind(Enum):
    """What a moment is. The name says who acts: a worker, unless it says otherwise."""

    PUBLISHED = auto()
    RECEIVED = auto()
    REQUESTED = auto()  # asked the provider for the charge
    CHARGED = auto()  # the provider charged the card
    REPLAYED = auto()  # the provider gave the answer that it had saved for this key
    REFUSED = auto()  # the provider answered, and charged nothing
    DUPLICATE = auto()  # the inbox knew the message as done
    IN_FLIGHT = auto()  # the inbox knew another worker's lease
    EXTENDED = auto()
    FINISHED = auto()  # committed, and about to acknowledge
    DUPLICATE_ACKED = auto()
    PARKED = auto()  # parked, and about to acknowledge
    GIVEN_BACK = auto()
    STRUCK = auto()  # a fault struck the worker
    STRUCK_ALONG = auto()  # the fault of another order killed the worker that had this one's message, too
    WOKEN = auto()  # the frozen worker goes on


ACKED: Final = frozenset({Kind.FINISHED, Kind.DUPLICATE_ACKED, Kind.PARKED})
FAULTS: Final = frozenset({Kind.STRUCK, Kind.STRUCK_ALONG, Kind.WOKEN})
# By the last point that the consumer reported of a message: what its ack means, and what it found in the inbox.
_ACKED_AFTER: Final[dict[Point | None, Kind]] = {Point.DUPLICATE: Kind.DUPLICATE_ACKED, Point.PARKED: Kind.PARKED}
FOUND: Final = {Point.DUPLICATE: Kind.DUPLICATE, Point.IN_FLIGHT: Kind.IN_FLIGHT}


@dataclass(frozen=True, slots=True)
class Moment:
    """One fact of an order's way, `seconds` after the start of the variant.

    `who` acts, or is struck: a worker, or the provider.
    """

    seconds: float
    kind: Kind
    who: str
    message_type: str = ""
    again: bool = False  # this very message was delivered before
    charge: str = ""  # the provider's id of it
    status: int | None = None  # of the provider's answer
    fault: str = ""


def of_passage(seconds: float, passage: Report, worker: str, point: Point | None) -> Moment | None:
    """What this passage of a boundary means for its order; None for one that says nothing new.

    `point` is the last that the consumer reported of the message in hand; None where it reports none.
    """
    message_type = passage.message_type
    match passage.word:
        case Boundary.PUBLISH_AFTER:
            return Moment(seconds, Kind.PUBLISHED, worker, message_type)
        case Boundary.REQUEST:
            return Moment(seconds, Kind.REQUESTED, worker, message_type)
        case Boundary.RESPONSE:
            charge = passage.charge or ""
            kind = Kind.CHARGED if charge else Kind.REPLAYED if passage.replayed else Kind.REFUSED
            return Moment(seconds, kind, PROVIDER, message_type, charge=charge, status=passage.status)
        case Boundary.ACK_BEFORE:
            return Moment(seconds, _ACKED_AFTER.get(point, Kind.FINISHED), worker, message_type)
    return None


# The end of a sentence that begins with `who`. The charge's id is left to the page, which sets it in a type of its own.
_WORDS: Final = {
    Kind.PUBLISHED: "publishes {message}",
    Kind.RECEIVED: "receives {message}{again}",
    Kind.REQUESTED: "asks the provider for the charge",
    Kind.CHARGED: "charges the card",
    Kind.REPLAYED: "replays its saved answer",
    Kind.REFUSED: "answers {status} and charges nothing",
    Kind.DUPLICATE: "is turned away by the inbox: already done",
    Kind.IN_FLIGHT: "finds another worker's lease",
    Kind.EXTENDED: "keeps its lease (heartbeat)",
    Kind.FINISHED: "has committed {work} and acknowledges {message}",
    Kind.DUPLICATE_ACKED: "acknowledges the duplicate of {message}",
    Kind.PARKED: "has parked the message and acknowledges {message}",
    Kind.GIVEN_BACK: "gives {message} back to the queue",
    Kind.STRUCK: "{fault}: {story} ({who})",
    Kind.STRUCK_ALONG: "{who} is killed with this message in hand, by the {fault} of another order",
    Kind.WOKEN: "{who} is woken",
}
_WORK: Final = {"order.placed": "the payment", "order.paid": "the booking"}


def words(moment: Moment) -> str:
    """The moment in words. Nothing reads them back: what counts, reads the moment."""
    return _WORDS[moment.kind].format(
        who=moment.who,
        message=moment.message_type,
        work=_WORK.get(moment.message_type, "its work"),
        again=" again" if moment.again else "",
        status=moment.status,
        fault=moment.fault,
        story=STORIES.get(moment.fault, ""),
    )
