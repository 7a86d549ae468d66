"""Deliveries from one queue: what waits here, what was given out, and how it is settled."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple

from pika import BasicProperties

from onceward.errors import TransportError, UsageError
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, Traits, release
from onceward.transports.rabbitmq.delays import Delays
from onceward.transports.rabbitmq.envelope import count_of, headers_of
from onceward.transports.rabbitmq.link import Away, Link, ParametersOrFactory, Refused, again, answered
from onceward.transports.rabbitmq.queues import DELAY_LEVELS_SECONDS

PREFETCH_DEFAULT: Final = 32
PREFETCH_MAX: Final = 65_535
# What no delay queue took waits here for no longer than this, and comes too early if need be: it takes up prefetch, and the
# broker closes the channel over what waits for too long.
HELD_BACK_SECONDS_MAX: Final = 60.0
Entry = tuple[Delivery, Settlement]


class Source:
    """One queue of RabbitMQ as a source: a quorum queue, see `create_queue`.

    A delivery whose channel the broker has closed (`consumer_timeout`, a lost connection, a deleted queue) is `lost`. The
    next `receive` makes connection and consumer again.

    `prefetch`: so many deliveries at most are with this source, given out or waiting in it. With fewer than the loop holds
    (its `threads` and its `prefetch`), threads stand idle; the others wait here, while another worker might handle them.
    """

    def __init__(self, parameters: ParametersOrFactory, queue: str, *, prefetch: int = PREFETCH_DEFAULT) -> None:
        """Connects at the first `receive`. Raises `UsageError` for what names no queue."""
        if not queue or not isinstance(queue, str):
            raise UsageError(f"queue is the name of a queue, not {queue!r}")
        if not isinstance(prefetch, int) or isinstance(prefetch, bool) or not 1 <= prefetch <= PREFETCH_MAX:
            # RabbitMQ takes 0 for "no limit": the whole queue would move into this process.
            raise UsageError(f"prefetch is a whole number from 1 to {PREFETCH_MAX}, not {prefetch!r}")
        self.name = f"rabbitmq:{queue}"
        self.traits = Traits(
            lease_seconds=None,
            settle_fenced=True,
            counts_deliveries=True,
            delay_seconds_max=float(DELAY_LEVELS_SECONDS[-1]),
            receive_max=prefetch,
        )
        self._parameters = parameters
        self._queue = queue
        self._prefetch = prefetch
        self._feed: Feed | None = None
        self._was_open = False
        self._delays = Delays(parameters, queue)

    def receive(self, limit: int, wait_seconds: float) -> Received:
        feed = self._feed or self._open_feed()
        taken = feed.take(limit, wait_seconds)
        if feed.error is None or taken:
            return Received(taken)
        if lost := feed.forget_all():
            return Received((), lost)
        self._feed = None
        raise again(feed.error)

    def _open_feed(self) -> Feed:
        feed = Feed(self._parameters, self.name, self._queue, self._prefetch)
        try:
            feed.open()
        except Refused as error:
            # What was never right is a mistake in the code or its configuration, and a person must see it at once. What was
            # right before will be so again: a queue that is made anew, a password that is being changed.
            if self._was_open:
                raise
            raise UsageError(f"{self.name} cannot be consumed: {error}") from error
        self._was_open = True
        self._feed = feed
        return feed

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        """Acks and releases in one round trip; a delayed release in two more, for its copy and for the ack of the original.

        Crash between these two: the copy comes after its delay, and the original at once; the inbox turns the double away.
        """
        outcomes = [_give_up(delivery, settlement) for delivery, settlement in entries]
        ours = [
            entry
            for entry, outcome in zip(entries, outcomes, strict=True)
            if outcome is Outcome.SETTLED and entry[1].action != "leave"
        ]
        try:
            # First what needs no copy: an ack must not wait for a broker that takes no messages at the moment.
            _tell([entry for entry in ours if entry[1].delay_seconds <= 0])
            _tell(self._delay([entry for entry in ours if entry[1].delay_seconds > 0]))
        except BaseException:
            # Nobody will settle these again, and there is no lease that would run out: the broker takes them back with the
            # connection, and all else that came on it.
            for delivery, _ in ours:
                delivery.handle.feed.break_off()
            raise
        return outcomes

    def _delay(self, entries: Sequence[Entry]) -> list[Entry]:
        """What the queue is told of these releases: an ack, where a copy waits in a delay queue.

        The others wait here, and take up prefetch meanwhile.
        """
        told: list[Entry] = []
        errors = self._delays.send([(delivery, settlement.delay_seconds) for delivery, settlement in entries])
        for (delivery, settlement), error in zip(entries, errors, strict=True):
            waits_here = release(min(settlement.delay_seconds, HELD_BACK_SECONDS_MAX))
            told.append((delivery, ACK if error is None else waits_here))
        return told

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:  # noqa: ARG002 - there is no lease
        return [
            Outcome.SETTLED if delivery.handle.feed.has(delivery.handle.tag) else Outcome.LOST for delivery in deliveries
        ]

    def close(self) -> None:
        feed = self._feed
        if feed is not None:
            feed.close()
            # Nothing that it gave out is ours any more, and nobody will ask for what is lost.
            feed.forget_all()
            self._feed = None
        self._delays.close()


def _give_up(delivery: Delivery, settlement: Settlement) -> Outcome:
    """SETTLED: this delivery was ours, and whoever called this settles it; or there is nothing to do."""
    if settlement.action == "leave" or delivery.handle.feed.give_up(delivery.handle.tag):
        return Outcome.SETTLED
    return Outcome.LOST


def _tell(entries: Sequence[Entry]) -> None:
    """The broker is told of each."""
    # More than one feed only when the link was lost while the call was on its way.
    for feed in {delivery.handle.feed for delivery, _ in entries}:
        feed.settle([(d.handle.tag, settlement) for d, settlement in entries if d.handle.feed is feed])


def _requeue(tag: int, channel: Any) -> None:
    channel.basic_nack(tag, requeue=True)


class Handle(NamedTuple):
    """By what a delivery is settled."""

    feed: Feed
    tag: int
    properties: BasicProperties


class Feed:
    """What one link brings: deliveries that wait here, and those that were given out and are not settled."""

    def __init__(self, parameters: ParametersOrFactory, source: str, queue: str, prefetch: int) -> None:
        self._source = source
        self._queue = queue
        self._prefetch = prefetch
        self._id = secrets.token_hex(4)  # tags begin at 1 on every channel
        self._waiting: deque[Delivery] = deque()
        self._given: dict[int, Delivery] = {}
        self._changed = threading.Condition()
        self._link = Link(parameters, queue, self._wake)

    @property
    def error(self) -> TransportError | None:
        """Why it is lost; None: it is not."""
        return self._link.error

    def open(self) -> None:
        """Deliveries come. Raises `TransportError`."""
        try:
            self._link.open()
            self._link.ask(self._set_prefetch, "to basic.qos")
            self._link.ask(self._consume, "to basic.consume")
        except BaseException:
            self._link.close()
            raise

    def take(self, limit: int, wait_seconds: float) -> list[Delivery]:
        """At most `limit` of those that wait, in their order, once there is one; none when the link is lost."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.error is not None, timeout=wait_seconds)
            # Those that waited when the link was lost were never given out, so nobody need be told of them.
            many = 0 if self.error is not None else min(limit, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(many)]
            self._given.update((delivery.handle.tag, delivery) for delivery in taken)
            return taken

    def forget_all(self) -> list[Delivery]:
        """All that were given out and are not settled."""
        with self._changed:
            given = list(self._given.values())
            self._given.clear()
            return given

    def has(self, tag: int) -> bool:
        """The delivery of this tag is ours."""
        with self._changed:
            return self.error is None and tag in self._given

    def give_up(self, tag: int) -> bool:
        """The delivery of this tag was ours, and whoever called this settles it."""
        # Settled twice, a tag that is not known any more closes the channel, with all that others have in hand.
        with self._changed:
            return self.error is None and self._given.pop(tag, None) is not None

    def settle(self, entries: Sequence[tuple[int, Settlement]]) -> None:
        """The broker has taken each tag's ack or release; a release with a delay waits here for so long.

        Raises `TransportError` when that is not known: the link is lost then, and with it all that was not settled.
        """

        def settling(channel: Any, answer: Future[None]) -> None:
            for tag, settlement in entries:
                if settlement.action == "ack":
                    channel.basic_ack(tag)
                elif settlement.delay_seconds > 0:
                    self._link.later(settlement.delay_seconds, partial(_requeue, tag))
                else:
                    _requeue(tag, channel)
            # An ack has no answer: one that was only written may never have left this machine. The broker does what comes
            # on a channel in its order, so the answer to anything that is sent behind it says that it was taken. This is
            # the cheapest that there is, and changes nothing: the same prefetch, for consumers to come.
            self._set_prefetch(channel, answer)

        self._link.ask(settling, "to acks")

    def break_off(self) -> None:
        """The link is lost; harmless when it is lost already."""
        self._link.close(at_once=True)

    def close(self) -> None:
        self._link.close()
        self._link.join()

    # All below runs on the thread of the connection.

    def _set_prefetch(self, channel: Any, answer: Future[None]) -> None:
        channel.basic_qos(prefetch_count=self._prefetch, callback=lambda _: answered(answer, None))

    def _consume(self, channel: Any, answer: Future[None]) -> None:
        channel.add_on_cancel_callback(self._on_cancelled)
        channel.basic_consume(self._queue, self._on_delivery, callback=lambda _: answered(answer, None))

    def _on_cancelled(self, _: Any) -> None:
        self._link.close(Away(f"RabbitMQ ended the consumer of {self._queue!r}: its queue was deleted, or moved"))

    def _on_delivery(self, _: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        delivery = Delivery(
            id=f"{self._id}-{method.delivery_tag}",
            source=self._source,
            headers=headers_of(properties, method.routing_key),
            body=body,
            count=count_of(properties, redelivered=method.redelivered),
            handle=Handle(self, method.delivery_tag, properties),
        )
        with self._changed:
            self._waiting.append(delivery)
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
