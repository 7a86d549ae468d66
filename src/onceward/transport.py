"""The transport contract: two small interfaces, and the traits that say what a transport can do.

A transport is a retryable shell: nothing that it does decides anything. Decisions are rows (see ARCHITECTURE.md). One
conformance suite, `onceward.testing.transport`, reads the traits and runs on every adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, Protocol

from onceward.message import Message


class Outcome(Enum):
    """What became of one entry of `settle` or `extend`."""

    SETTLED = "settled"
    LOST = "lost"  # the delivery is not ours any more: it was, or will be, delivered again


# What a queue is told of a delivery: it is done; it is to come again; nothing, so that it comes again by itself.
Action = Literal["ack", "release", "leave"]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to happen to a delivery at its queue: see `ACK`, `LEAVE` and `release`."""

    action: Action
    delay_seconds: float = 0.0  # of a release


ACK: Final = Settlement("ack")
LEAVE: Final = Settlement("leave")


def release(delay_seconds: float) -> Settlement:
    """Give the delivery back, to come again after `delay_seconds` (0: at once)."""
    return Settlement("release", delay_seconds)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One arrival of a message. Its `id` is the transport's (receipt handle, tag, offset), never the message's."""

    id: str
    source: str
    headers: Mapping[str, str]
    body: bytes
    count: int = 0  # how often the queue has delivered it, this time included; 0: the queue does not count
    # Deliveries of one key are handled one at a time, in the order in which they came; None: in any order, all at once.
    order_key: str | None = None
    # What the adapter needs to settle it. Not compared: two deliveries are the same by what they carry.
    handle: Any = field(default=None, compare=False, repr=False)


class Received(NamedTuple):
    """What one `receive` gave: new deliveries, and earlier ones that are no longer ours (revoked partitions)."""

    deliveries: Sequence[Delivery]
    lost: Sequence[Delivery] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a transport can do; the conformance suite holds it to every line."""

    # A delivery comes again when it is neither settled nor extended for this long. None: it stays ours for as long as the
    # source is open and the queue does not take it away, and nothing needs extending.
    lease_seconds: float | None
    settle_fenced: bool  # settling an old delivery of a message that was delivered again is refused (LOST)
    counts_deliveries: bool  # `Delivery.count` is right
    ordered: bool = False  # of one `order_key`, nothing comes before what was sent earlier and is not acknowledged
    delay_step_seconds: float = 0.0  # the grain of a release's delay; 0: any
    delay_seconds_max: float | None = None  # the longest delay of a release; a longer one is cut to it; None: any
    dead_letters_after: int | None = None  # deliveries after which the queue itself puts a message aside; None: never
    poll_seconds_max: float | None = None  # `receive` must be called at least this often, also with limit 0
    receive_max: int = 100  # entries that one `receive` may give
    publish_max: int = 100  # entries that one `publish` takes
    body_bytes_max: int | None = None
    # How long the queue and its dead-letter queue, one after the other, keep a message; None: for ever, or not known.
    retention_seconds: float | None = None


class Source(Protocol):
    """Where deliveries come from. `receive` is called on one thread; `settle` and `extend` on any."""

    @property
    def name(self) -> str:
        """A stable name, for people and for the parked rows of deliveries without an id."""
        ...

    @property
    def traits(self) -> Traits:
        """What this transport can do."""
        ...

    def receive(self, limit: int, wait_seconds: float) -> Received:
        """At most `limit` deliveries (0: only keep the connection alive), waiting up to `wait_seconds` for the first.

        Raises `TransportError` or the client's own error; both mean: nothing is lost, call again.
        """
        ...

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        """Carry out each settlement (`leave` does nothing); one outcome per entry, in order. Idempotent.

        A loop never leaves a delivery at a source without a lease (`lease_seconds=None`): it is released instead.

        Crash: what was not settled is delivered again; the inbox turns a finished one away.
        """
        ...

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        """Each delivery stays ours for `seconds` from now; one outcome per entry, in order.

        Of a source without a lease, only the outcome means anything: LOST is what was taken away.
        """
        ...

    def close(self) -> None:
        """Give up what is open; harmless when it is closed already."""
        ...


class Sink(Protocol):
    """Where messages go to."""

    @property
    def traits(self) -> Traits:
        """What this transport can do."""
        ...

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """Send each message; returns once the queue has confirmed. One entry each: None = confirmed, else why not.

        Entries with the same subject are sent in order: behind one that has an error, none of its subject is sent in this
        call (each gets an error too). A confirmed entry is stored durably; an entry with an error may be stored too (a lost
        ack): it is sent again, and the consumer's inbox turns the double away.

        Raises only when nothing can be said of any entry (the queue is away): all of them are sent again, in a batch. So a
        message that cannot be sent must be an entry with an error: raised, it would hold up all the others.
        """
        ...

    def close(self) -> None:
        """Give up what is open; harmless when it is closed already."""
        ...
