"""RabbitMQ: quorum queues by AMQP 0-9-1, with pika (`pip install 'onceward[rabbitmq]'`).

A delivery has no lease: it is ours until it is settled, or until the broker closes the channel on which it came. Then it
is delivered again, and its tag means nothing any more: it is lost, and no ack is ever sent for it.
AMQP has no delayed release. A copy, which the broker has confirmed, waits in a delay queue from which it is dead-lettered
back at least once; then the original is acknowledged. A crash between the two leaves a double, which the inbox turns away.
The envelope is CloudEvents in binary mode, with headers `cloudEvents_id` and so on.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from pika import BasicProperties, SelectConnection
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed
from pika.connection import Parameters
from pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)
from pika.frame import Header
from pika.spec import FRAME_END_SIZE, FRAME_HEADER, FRAME_HEADER_SIZE, Basic

from onceward.errors import TransportError, UsageError
from onceward.message import Message
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, Traits, release

__all__ = ["ParametersOrFactory", "Sink", "Source", "check_queue", "create_queue"]

logger = logging.getLogger("onceward")
T = TypeVar("T")
# A function is asked for them at every connection: where a password changes, it gives the one of the moment.
ParametersOrFactory: TypeAlias = Parameters | Sequence[Parameters] | Callable[[], Parameters | Sequence[Parameters]]

CONNECT_SECONDS_MAX: Final = 30.0
ANSWER_SECONDS_MAX: Final = 30.0
BLOCKED_SECONDS_MAX: Final = 5.0
CLOSE_SECONDS_MAX: Final = 2.0
PREFETCH_DEFAULT: Final = 32
PREFETCH_MAX: Final = 65_535
# What RabbitMQ 4 takes unless its `max_message_size` says otherwise; 3.x takes 128 MiB.
BODY_BYTES_MAX: Final = 16 * 1024 * 1024
SEND_BYTES_MAX: Final = 8 * 1024 * 1024  # of bodies that are on their way at once
SHORT_BYTES_MAX: Final = 255  # of AMQP's short strings: routing keys, and the properties
# One queue for each. A message waits in the first that is not shorter than its delay, for its own delay or, behind one that
# came before it, for at most that queue's: never less than its delay, and never four times as long.
DELAY_LEVELS_SECONDS: Final = tuple(4**n for n in range(8))  # 1 s to 4 h 33 min
# A quorum queue that was declared a moment ago does not survive a kill of its node, with whatever it has confirmed.
YOUNG_SECONDS: Final = 10.0
HELD_BACK_SECONDS_MAX: Final = 60.0

_COUNT_HEADER: Final = "x-onceward-deliveries"  # of a copy: how often the message was delivered before
_PREFIXES: Final = ("cloudEvents_", "cloudEvents:")
# What the broker writes about one stay in one queue, and what would send a copy to other queues.
_NOT_COPIED: Final = ("x-delivery-count", "x-acquired-count", "x-death", "CC", "BCC")
_NOT_COPIED_PREFIXES: Final = ("x-first-death-", "x-last-death-")
_PROPERTIES: Final = (
    "message_id", "correlation_id", "type", "app_id", "content_type", "content_encoding", "reply_to", "timestamp",
)  # fmt: skip
_HELD: Final = TransportError("held back: an earlier message of its subject was not sent")
_UNDECODABLE: Final = (ValueError, OverflowError, struct.error, IndexError, AMQPError)
_FOUND_WRONG: Final = (
    AuthenticationError, ProbableAccessDeniedError, ProbableAuthenticationError,
)  # fmt: skip
_REFUSED_CODES: Final = (403, 404, 406, 530)  # access refused, not found, precondition failed, not allowed


class _Refused(TransportError):
    """The broker answers, and says no: to the credentials, to the queue, or to what was sent."""


class _Unroutable(TransportError):
    """No queue takes the message."""


class _Away(TransportError):
    """There is no connection, or it was lost."""


# ---- one connection ------------------------------------------------------------------------------------------------------


class _Connection(SelectConnection):  # type: ignore[misc]
    """pika's, with two things that it has no public way for."""

    def _read_frame(self) -> tuple[int, Any]:
        try:
            return super()._read_frame()  # type: ignore[no-any-return]
        except _UNDECODABLE:
            # AMQP's types hold values that Python's do not (the year 55,000, NaN). Raised here, the error would end the
            # connection, and the message would come again to end the next one. It is given without its properties instead:
            # as it has no envelope then, it is parked.
            size, frame = _without_properties(self._frame_buffer)
            if frame is None:
                raise
            return size, frame

    def drop(self) -> None:
        """The connection is broken off, although its peer does not answer."""
        if not self.is_closed:
            self._terminate_stream(StreamLostError("it was broken off"))


def _without_properties(data: bytes) -> tuple[int, Header | None]:
    """The content header at the beginning of `data`, with its size on the wire; None: it is another frame."""
    kind, channel_number, frame_size = struct.unpack_from(">BHL", data)
    if kind != FRAME_HEADER:
        return 0, None
    _, _, body_bytes = struct.unpack_from(">HHQ", data, FRAME_HEADER_SIZE)
    return FRAME_HEADER_SIZE + frame_size + FRAME_END_SIZE, Header(channel_number, body_bytes, BasicProperties())


class _Link:
    """One connection with one channel, on a thread of its own, from its making to its loss. It is never made again.

    Whatever ends the channel ends the connection too, so that there is only one kind of loss. pika's asynchronous
    connection, because its blocking one waits for each confirm by itself, and for a broker that hangs without limit: here
    the calling threads wait, each with a limit, and the thread of the connection never does.
    """

    def __init__(self, parameters: ParametersOrFactory, name: str, on_lost: Callable[[], None] = lambda: None) -> None:
        self.error: TransportError | None = None  # why it is lost
        self._configs = _configs(parameters, name)
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._answers: set[Future[Any]] = set()
        self._ioloop = IOLoop()
        self._ended = False
        self._connecting: Any = None
        self._connection: _Connection | None = None
        self._channel: Any = None
        self._blocked: Any = None  # the timer that ends a connection from which the broker takes nothing
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"onceward-{name}", daemon=True)

    def open(self) -> None:
        """The channel is open. Raises `TransportError`."""
        self._answers.add(self._opened)
        self._thread.start()
        self._wait(self._opened, CONNECT_SECONDS_MAX, "to a connection")

    def ask(self, request: Callable[[Any, Future[T]], None], what: str) -> T:
        """What the broker answers to `request`, which is called with the channel on the thread of the connection.

        Raises `TransportError` when the connection is lost, or when there is no answer in time: then it is given up.
        """
        answer: Future[T] = Future()
        with self._lock:
            if self.error is not None:
                raise _again(self.error)
            self._answers.add(answer)
            self._ioloop.add_callback_threadsafe(partial(self._carry_out, request, answer))
        return self._wait(answer, ANSWER_SECONDS_MAX, what)

    def later(self, seconds: float, request: Callable[[Any], None]) -> None:
        """`request` is called with the channel after this time, on the thread of the connection, unless it is lost."""
        self._ioloop.call_later(seconds, lambda: None if self.error else request(self._channel))

    def close(self, error: TransportError | None = None, *, at_once: bool = False) -> None:
        """The connection is closed, with the broker's consent unless `at_once`; harmless when it is lost already."""
        with self._lock:
            if not self._ended:
                reason = error or _Away("the connection was closed")
                self._ioloop.add_callback_threadsafe(partial(self._fail, reason, at_once=at_once))

    def join(self) -> None:
        """Wait until the connection is closed."""
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * CLOSE_SECONDS_MAX)

    def _wait(self, answer: Future[T], seconds: float, what: str) -> T:
        try:
            return answer.result(seconds)
        except TimeoutError:
            error = _Away(f"RabbitMQ did not answer {what} within {seconds:g} s")
            # Whether it was carried out is not known. With the connection, all that it held goes back to its queue.
            self.close(error, at_once=True)
            raise error from None
        except TransportError as error:
            raise _again(error) from error
        finally:
            with self._lock:
                self._answers.discard(answer)

    # All below runs on the thread of the connection.

    def _run(self) -> None:
        error: TransportError = _Away("the connection was closed")
        try:
            self._connecting = _Connection.create_connection(
                self._configs, on_done=self._on_connected, custom_ioloop=self._ioloop
            )
            self._ioloop.start()
        except BaseException as reason:  # noqa: BLE001 - given to those who wait, and to the next call
            error = _explained(reason)
            self._break_off()
        self._lose(error)
        with self._lock:
            self._ended = True
        self._ioloop.close()

    def _break_off(self) -> None:
        """After a callback has raised: the socket is closed, which takes one more turn of the loop."""
        if self._connection is not None and not self._connection.is_closed:
            with suppress(Exception):
                self._connection.drop()
                self._ioloop.start()

    def _on_connected(self, result: Any) -> None:
        if not isinstance(result, _Connection):
            self._lose(_explained(result))
            self._ioloop.stop()
            return
        self._connection = result
        result.add_on_close_callback(lambda _, reason: self._end(_explained(reason)))
        result.add_on_connection_blocked_callback(self._on_blocked)
        result.add_on_connection_unblocked_callback(self._on_unblocked)
        if self.error is not None:
            result.drop()  # nobody waited for it so long
            return
        self._channel = result.channel(on_open_callback=lambda _: answered(self._opened, None))
        self._channel.add_on_close_callback(lambda _, reason: self._fail(_explained(reason)))

    def _on_blocked(self, _: Any, frame: Any) -> None:
        """The broker takes nothing more from this connection, because it is short of memory or of disk."""
        reason = _Away(f"RabbitMQ takes no messages at the moment (a resource alarm): {frame.method.reason}")
        self._blocked = self._ioloop.call_later(BLOCKED_SECONDS_MAX, partial(self._fail, reason, at_once=True))

    def _on_unblocked(self, _: Any, __: Any) -> None:
        if self._blocked is not None:
            self._ioloop.remove_timeout(self._blocked)

    def _carry_out(self, request: Callable[[Any, Future[T]], None], answer: Future[T]) -> None:
        if answer.done():
            return  # lost meanwhile
        try:
            request(self._channel, answer)
        except Exception as error:  # noqa: BLE001 - given to the caller, who waits
            # How far it came is not known: whatever the channel holds goes back with it.
            self._fail(_explained(error))

    def _fail(self, error: TransportError, *, at_once: bool = False) -> None:
        """The link is lost from here on, and its connection is being closed."""
        self._lose(error)
        if self._connection is None:
            self._connecting.abort()  # which ends in `_on_connected`
        elif at_once or not self._connection.is_open:
            self._connection.drop()
        else:
            self._connection.close()
            self._ioloop.call_later(CLOSE_SECONDS_MAX, self._connection.drop)

    def _end(self, error: TransportError) -> None:
        self._lose(error)
        self._ioloop.stop()

    def _lose(self, error: TransportError) -> None:
        with self._lock:
            if self.error is not None:
                return
            self.error = error
            answers = [answer for answer in self._answers if not answer.done()]
        for answer in answers:
            answer.set_exception(error)
        self._on_lost()


def answered(answer: Future[T], value: T) -> None:
    """On the thread of the connection: the one who waits has this answer, unless the connection was lost before."""
    if not answer.done():
        answer.set_result(value)


def _configs(parameters: Any, name: str) -> list[Parameters]:
    given = parameters() if callable(parameters) else parameters
    configs = list(given) if isinstance(given, Sequence) else [given]
    if not configs or not all(isinstance(config, Parameters) for config in configs):
        raise UsageError(
            "parameters are pika's ConnectionParameters or URLParameters, several of them, or a function that gives them; "
            f"not {given!r}"
        )
    named = []
    for config in configs:
        config = copy(config)  # noqa: PLW2901 - the caller's own is not changed
        if config.client_properties is None:
            config.client_properties = {"connection_name": f"onceward {name}"}  # as `rabbitmqctl list_connections` shows it
        named.append(config)
    return named


def _explained(reason: Any) -> TransportError:
    """What pika gives as the reason of a loss, in one line."""
    if isinstance(reason, TransportError):
        return reason
    # A connection that could not be made: what came of the last address is inside.
    while isinstance(reason, AMQPConnectionWorkflowFailed) or hasattr(reason, "exception"):
        reason = reason.exceptions[-1] if isinstance(reason, AMQPConnectionWorkflowFailed) else reason.exception
    if isinstance(reason, ChannelClosedByBroker | ConnectionClosedByBroker):
        text = f"RabbitMQ closed the channel: {reason.reply_code} {reason.reply_text}"
        return (_Refused if reason.reply_code in _REFUSED_CODES else _Away)(text)
    kind = _Refused if isinstance(reason, _FOUND_WRONG) else _Away
    return kind(f"the connection to RabbitMQ is lost: {reason!r}")


def _again(error: TransportError) -> TransportError:
    """The same error for one more caller: an exception that is raised twice would show the first one's traceback."""
    return type(error)(*error.args)


# ---- the source ----------------------------------------------------------------------------------------------------------


class _Handle(NamedTuple):
    """By what a delivery is settled."""

    feed: _Feed
    tag: int
    properties: BasicProperties


Entry = tuple[Delivery, Settlement]


def _give_up(delivery: Delivery, settlement: Settlement) -> Outcome:
    """SETTLED: this delivery was ours, and whoever called this settles it; or there is nothing to do."""
    if settlement.action == "leave" or delivery.handle.feed.give_up(delivery.handle.tag):
        return Outcome.SETTLED
    return Outcome.LOST


def _requeue(tag: int, channel: Any) -> None:
    channel.basic_nack(tag, requeue=True)


class _Feed:
    """What one link brings: deliveries that wait here, and those that were given out and are not settled."""

    def __init__(self, parameters: ParametersOrFactory, source: str, queue: str, prefetch: int) -> None:
        self._source = source
        self._queue = queue
        self._prefetch = prefetch
        self._id = secrets.token_hex(4)  # tags begin at 1 on every channel
        self._waiting: deque[Delivery] = deque()
        self._given: dict[int, Delivery] = {}
        self._changed = threading.Condition()
        self._link = _Link(parameters, queue, self._wake)

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
        self._link.close(_Away(f"RabbitMQ ended the consumer of {self._queue!r}: its queue was deleted, or moved"))

    def _on_delivery(self, _: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        delivery = Delivery(
            id=f"{self._id}-{method.delivery_tag}",
            source=self._source,
            headers=_headers(properties, method.routing_key),
            body=body,
            count=_count(properties, redelivered=method.redelivered),
            handle=_Handle(self, method.delivery_tag, properties),
        )
        with self._changed:
            self._waiting.append(delivery)
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Source:
    """One queue of RabbitMQ as a source: a quorum queue, see `create_queue`.

    A delivery whose channel the broker has closed (`consumer_timeout`, a lost connection, a deleted queue) is `lost`. The
    next `receive` makes connection and consumer again.
    """

    def __init__(self, parameters: ParametersOrFactory, queue: str, *, prefetch: int = PREFETCH_DEFAULT) -> None:
        """`prefetch`: so many deliveries at most are with this source, given out or waiting in it.

        At least as many as the loop holds (its `threads` and its `prefetch`), or threads stand idle. The others wait here,
        while another worker might handle them.
        """
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
        self._feed: _Feed | None = None
        self._was_open = False
        self._delays = _Delays(parameters, queue)

    def receive(self, limit: int, wait_seconds: float) -> Received:
        feed = self._feed or self._open_feed()
        taken = feed.take(limit, wait_seconds)
        if feed.error is None or taken:
            return Received(taken)
        if lost := feed.forget_all():
            return Received((), lost)
        self._feed = None
        raise _again(feed.error)

    def _open_feed(self) -> _Feed:
        feed = _Feed(self._parameters, self.name, self._queue, self._prefetch)
        try:
            feed.open()
        except _Refused as error:
            # What was never right is a mistake in the code or its configuration, and a person must see it at once. What was
            # right before will be so again: a queue that is made anew, a password that is being changed.
            if self._was_open:
                raise
            raise UsageError(f"{self.name} cannot be consumed: {error}") from error
        self._was_open = True
        self._feed = feed
        return feed

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        """Acks and releases in one round trip; the copies of delayed releases in one more, before it.

        Crash between the two: the copy comes after its delay, and the original at once; the inbox turns the double away.
        """
        outcomes = [_give_up(delivery, settlement) for delivery, settlement in entries]
        ours = [
            entry
            for entry, outcome in zip(entries, outcomes, strict=True)
            if outcome is Outcome.SETTLED and entry[1].action != "leave"
        ]
        told = self._delay([entry for entry in ours if entry[1].delay_seconds > 0])
        told += [entry for entry in ours if entry[1].delay_seconds <= 0]
        # More than one feed only when the link was lost while this call was on its way.
        for feed in {delivery.handle.feed for delivery, _ in told}:
            feed.settle([(d.handle.tag, settlement) for d, settlement in told if d.handle.feed is feed])
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


# ---- publishing ----------------------------------------------------------------------------------------------------------


class _Letter(NamedTuple):
    """One message on its way to one exchange."""

    exchange: str
    routing_key: str
    properties: BasicProperties
    body: bytes

    @property
    def address(self) -> tuple[str, str, str | None]:
        """What the broker's return of it can be recognised by."""
        return self.exchange, self.routing_key, self.properties.message_id


@dataclass(slots=True)
class _Confirms:
    """What became of each of these letters. Used on the thread of the connection."""

    letters: Sequence[_Letter]
    answer: Future[None]
    errors: list[TransportError | None]  # of each letter; what is not confirmed yet has an error too
    open: dict[int, int] = field(default_factory=dict)  # the publish's number on its channel → the letter's index
    returned: dict[tuple[str, str, str | None], str] = field(default_factory=dict)

    def on_confirm(self, number: int, *, multiple: bool, error: TransportError | None) -> None:
        """The broker has taken this letter (with `multiple`, all before it too), or refused it."""
        for each in [n for n in self.open if n <= number] if multiple else [number]:
            index = self.open.pop(each, None)
            if index is not None:
                self.errors[index] = error or self._returned(self.letters[index])
        if not self.open:
            answered(self.answer, None)

    def _returned(self, letter: _Letter) -> TransportError | None:
        # A message that no queue takes is returned, and confirmed after that: the broker has dealt with it, and it is gone.
        reason = self.returned.get(letter.address)
        if reason is None:
            return None
        where = f"exchange {letter.exchange!r}" if letter.exchange else "the default exchange"
        return _Unroutable(f"no queue takes it: {where} has no way for routing key {letter.routing_key!r} ({reason})")


_UNCONFIRMED: Final = TransportError("RabbitMQ did not confirm it")


class _Publisher:
    """Confirmed and mandatory publishes, over a link that is made again after it was lost. One caller at a time."""

    def __init__(self, parameters: ParametersOrFactory, name: str) -> None:
        self._parameters = parameters
        self._name = name
        self._link: _Link | None = None
        self._numbered = 0  # publishes on this channel; the broker counts them too
        self._confirms: _Confirms | None = None
        self._lock = threading.Lock()

    def publish(self, letters: Sequence[_Letter]) -> list[TransportError | None]:
        """All are sent, then all confirms awaited; one entry each: None = confirmed, else why not.

        Raises `TransportError` when there is no connection: then nothing was sent.
        """
        with self._lock:
            link = self._connected()
            confirms = _Confirms(letters, Future(), [_UNCONFIRMED] * len(letters))
            try:
                link.ask(partial(self._send, confirms), "to publishes")
            except TransportError as error:
                # On the loss, the thread of the connection has done its last: nothing changes these any more.
                return [error if each is _UNCONFIRMED else each for each in confirms.errors]
            return confirms.errors

    def close(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link.join()
                self._link = None

    def _connected(self) -> _Link:
        if self._link is None or self._link.error is not None:
            self._link = None
            link = _Link(self._parameters, self._name)
            try:
                link.open()
                link.ask(self._select_confirms, "to confirm.select")
                self._prepare(link)
            except BaseException:
                link.close()
                raise
            self._link = link
        return self._link

    def _prepare(self, link: _Link) -> None:
        """What is to be done on each new link."""

    # All below runs on the thread of the connection.

    def _select_confirms(self, channel: Any, answer: Future[None]) -> None:
        self._numbered = 0
        self._confirms = None
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: answered(answer, None))

    def _send(self, confirms: _Confirms, channel: Any, answer: Future[None]) -> None:
        confirms.answer = answer
        self._confirms = confirms
        for index, letter in enumerate(confirms.letters):
            self._numbered += 1
            confirms.open[self._numbered] = index
            channel.basic_publish(letter.exchange, letter.routing_key, letter.body, letter.properties, mandatory=True)

    def _on_return(self, _: Any, method: Any, properties: BasicProperties, __: bytes) -> None:
        if self._confirms is not None:
            address = method.exchange, method.routing_key, properties.message_id
            self._confirms.returned[address] = f"{method.reply_code} {method.reply_text}"

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        refused = isinstance(method, Basic.Nack)
        error = (
            TransportError("RabbitMQ refused it (basic.nack): its queue is full, or cannot store it") if refused else None
        )
        if self._confirms is not None:
            self._confirms.on_confirm(method.delivery_tag, multiple=method.multiple, error=error)


class _Delays(_Publisher):
    """The delay queues of one queue, on a connection of their own.

    A broker that is short of memory or disk reads nothing more from a connection that publishes: acks on it would not come
    through.
    """

    def __init__(self, parameters: ParametersOrFactory, queue: str) -> None:
        super().__init__(parameters, f"{queue} delays")
        self._queue = queue
        self._exist = False
        self._usable_at = -math.inf  # on the monotonic clock

    def send(self, delayed: Sequence[tuple[Delivery, float]]) -> list[Exception | None]:
        """A copy of each waits for its seconds, and comes back to the queue; one entry each: None = confirmed.

        What cannot be sent is logged.
        """
        if not delayed:
            return []
        errors: list[Exception | None]
        try:
            errors = self._send_all([self._copy(delivery, seconds) for delivery, seconds in delayed])
        except (TransportError, UsageError) as error:
            errors = [error] * len(delayed)
        if failed := [error for error in errors if error is not None]:
            # Gone, it may be: then it is made again.
            self._exist = not any(isinstance(error, _Unroutable | _Refused) for error in failed)
            log = logger.info if any(isinstance(error, _Young) for error in failed) else logger.warning
            log(
                "%d deliveries of %s that are to come again later wait in this process, since no delay queue took them: %s",
                len(failed), self._queue, failed[0],
            )  # fmt: skip
        return errors

    def _send_all(self, copies: Sequence[_Letter | Exception]) -> list[Exception | None]:
        letters = [letter for letter in copies if isinstance(letter, _Letter)]
        answers = iter(self.publish(letters) if letters else ())
        return [next(answers) if isinstance(letter, _Letter) else letter for letter in copies]

    def _copy(self, delivery: Delivery, seconds: float) -> _Letter | Exception:
        given: BasicProperties = delivery.handle.properties
        headers = {name: value for name, value in (given.headers or {}).items() if not _is_marked(name)}
        properties = copy(given)
        properties.headers = headers | ({_COUNT_HEADER: delivery.count} if delivery.count else {})
        properties.delivery_mode = 2
        properties.expiration = str(math.ceil(seconds * 1000))
        properties.user_id = None  # the broker refuses that of another user
        level = next((level for level in DELAY_LEVELS_SECONDS if level >= seconds), DELAY_LEVELS_SECONDS[-1])
        letter = _Letter("", _delay_queue(self._queue, level), properties, delivery.body)
        return _unencodable(letter) or letter

    def _connected(self) -> _Link:
        if not self._exist:
            self._make_queues()
            self._exist = True
        if time.monotonic() < self._usable_at:
            raise _Young("the delay queues were made a moment ago")
        return super()._connected()

    def _make_queues(self) -> None:
        names = [_delay_queue(self._queue, level) for level in DELAY_LEVELS_SECONDS]
        try:
            _declare(self._parameters, [_Declaration(name, passive=True) for name in names])
        except _Refused:
            _declare(self._parameters, _delay_queues(self._queue))
            self._usable_at = time.monotonic() + YOUNG_SECONDS


class _Young(TransportError):
    """Queues that a crash of their node would take away with all that they hold."""


def _is_marked(header: Any) -> bool:
    """This header is the broker's own, about one stay in one queue, or would send a copy to other queues as well."""
    return header in _NOT_COPIED or str(header).startswith(_NOT_COPIED_PREFIXES)


class Sink:
    """RabbitMQ as a sink. Every publish is mandatory, persistent, and confirmed by the broker.

    A message that no queue takes is an error, and so is one that a queue refuses.
    """

    def __init__(
        self,
        parameters: ParametersOrFactory,
        queues: str | Mapping[str, str | Sequence[str]] | None = None,
        *,
        exchange: str | None = None,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        """`queues` says where each message type goes: one queue, several, or all types to one. Or `exchange`: its bindings
        say so, and the routing key is the message's type.

        `body_bytes_max` is at most the server's `max_message_size`. Raises `UsageError` for what names nothing.
        """
        if (queues is None) == (exchange is None):
            raise UsageError("a sink has either queues= or exchange=")
        if exchange is None and (not queues or not isinstance(queues, str | Mapping)):
            raise UsageError(
                "queues is the name of one queue for all types, or a mapping of types to queues, like "
                f"{{'order.paid': ['ledger', 'emails']}}; not {queues!r}"
            )
        if exchange is not None and (not exchange or not isinstance(exchange, str)):
            raise UsageError(f"exchange is the name of an exchange, not {exchange!r}")
        self.traits = Traits(
            lease_seconds=None,
            settle_fenced=True,
            counts_deliveries=True,
            publish_max=1000,
            body_bytes_max=body_bytes_max,
        )
        self._queues = queues
        self._exchange = exchange
        self._body_bytes_max = body_bytes_max
        self._publisher = _Publisher(parameters, "publish")

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """In waves: of each subject, one message is sent, and the next one only when it is confirmed.

        All others are on their way at once. Raises `TransportError` when the broker is away and nothing was confirmed.
        """
        # Why each is not sent, from the first look on: what is not decided is not confirmed.
        errors: list[BaseException | None] = [_UNCONFIRMED] * len(messages)
        held: set[str] = set()
        undecided = list(range(len(messages)))
        while undecided:
            wave, undecided = self._next_wave(undecided, messages, errors, held)
            for index, error in zip(wave, self._send([messages[index] for index in wave]), strict=True):
                errors[index] = error
                if error is not None and (subject := messages[index].subject) is not None:
                    held.add(subject)
                if isinstance(error, _Away):
                    # One wait for a broker that is away is enough.
                    for behind in undecided:
                        errors[behind] = error
                    undecided = []
        away = next((error for error in errors if isinstance(error, _Away)), None)
        if away is not None and all(isinstance(error, _Away) or error is _HELD for error in errors):
            raise _again(away)
        return errors

    def _next_wave(
        self,
        undecided: Sequence[int],
        messages: Sequence[Message],
        errors: list[BaseException | None],
        held: set[str],
    ) -> tuple[list[int], list[int]]:
        """The indexes to send now, and those to send later. What cannot be sent has its error, and holds its subject."""
        wave: list[int] = []
        later: list[int] = []
        before: set[str] = set()  # subjects of which one comes earlier
        body_bytes = 0
        for index in undecided:
            message = messages[index]
            full = bool(wave) and body_bytes + len(message.body) > SEND_BYTES_MAX
            if message.subject in before or full:
                later.append(index)
            elif (error := self._refuse(message, held)) is not None:
                errors[index] = error
                continue
            else:
                wave.append(index)
                body_bytes += len(message.body)
            if message.subject is not None:
                before.add(message.subject)
        return wave, later

    def _refuse(self, message: Message, held: set[str]) -> BaseException | None:
        """Why this message cannot be sent, now or at all; its subject is held from then on. None: it can."""
        error = _HELD if message.subject in held else self._unsendable(message)
        if error is not None and message.subject is not None:
            held.add(message.subject)
        return error

    def _unsendable(self, message: Message) -> BaseException | None:
        letters = self._letters(message)
        if not letters:
            return UsageError(f"no queue is named for messages of type {message.type!r}")
        if len(message.body) > self._body_bytes_max:
            return UsageError(
                f"a body of {len(message.body)} bytes is more than the {self._body_bytes_max} that this sink sends "
                "(body_bytes_max, at most the server's max_message_size)"
            )
        return next((error for letter in letters if (error := _unencodable(letter)) is not None), None)

    def _letters(self, message: Message) -> list[_Letter]:
        """One for each queue that it goes to."""
        properties = _properties(message)
        if self._exchange is not None:
            return [_Letter(self._exchange, message.type, properties, message.body)]
        return [_Letter("", queue, properties, message.body) for queue in self._targets(message.type)]

    def _targets(self, message_type: str) -> Sequence[str]:
        if isinstance(self._queues, Mapping):
            target = self._queues.get(message_type, ())
            return (target,) if isinstance(target, str) else target
        return () if self._queues is None else (self._queues,)

    def _send(self, messages: Sequence[Message]) -> list[BaseException | None]:
        """Together; where the broker closes the channel over one of them, one by one."""
        if not messages:
            return []
        errors = self._send_together(messages)
        if len(messages) > 1 and any(isinstance(error, _Refused) for error in errors):
            return [
                self._send_together([message])[0] if isinstance(error, _Refused) else error
                for message, error in zip(messages, errors, strict=True)
            ]
        return errors

    def _send_together(self, messages: Sequence[Message]) -> list[BaseException | None]:
        by_message = [self._letters(message) for message in messages]
        try:
            answers = iter(self._publisher.publish([letter for letters in by_message for letter in letters]))
        except TransportError as error:
            return [_Away(str(error))] * len(messages)
        # A message has arrived when each of its queues has it.
        by_message_answers = [[next(answers) for _ in letters] for letters in by_message]
        return [next((error for error in each if error is not None), None) for each in by_message_answers]

    def close(self) -> None:
        self._publisher.close()


# ---- queues --------------------------------------------------------------------------------------------------------------


class _Declaration(NamedTuple):
    """One queue.declare; passive: it only asks whether the queue is there."""

    queue: str
    arguments: Mapping[str, Any] = {}
    passive: bool = False


def create_queue(
    parameters: ParametersOrFactory, name: str, *, dead_letter: str | None = None, delivery_limit: int | None = None
) -> None:
    """The durable quorum queue `name` exists, with its delay queues, and with the queue `dead_letter` where it is given.

    A message that was delivered more often than `delivery_limit` + 1 times, or that was rejected, goes to the queue
    `dead_letter`, at least once. Without a limit, none is put aside.

    Raises `UsageError` when such a queue exists with other arguments, or when this user may not make queues.
    """
    if not name or not isinstance(name, str):
        raise UsageError(f"a queue has a name, not {name!r}")
    if delivery_limit is not None and dead_letter is None:
        raise UsageError("with a delivery_limit and no dead_letter queue, RabbitMQ throws away what is over the limit")
    arguments: dict[str, Any] = {}
    declarations = []
    if dead_letter is not None:
        declarations.append(_Declaration(dead_letter))
        arguments |= _dead_letter_to(dead_letter)
    if delivery_limit is not None:
        arguments["x-delivery-limit"] = delivery_limit
    declarations += [_Declaration(name, arguments), *_delay_queues(name)]
    try:
        _declare(parameters, declarations)
    except _Refused as error:
        raise UsageError(f"the queue {name!r} cannot be made: {error}") from error


def check_queue(parameters: ParametersOrFactory, name: str) -> None:
    """Raises `UsageError` when this queue does not exist, or when this user cannot reach it.

    AMQP does not tell of which type it is.
    """
    try:
        _declare(parameters, [_Declaration(name, passive=True)])
    except _Refused as error:
        raise UsageError(f"there is no queue {name!r} to be used: {error}; make it with `rabbitmq.create_queue`") from error


def _dead_letter_to(queue: str) -> dict[str, Any]:
    # At least once needs a quorum queue that refuses what is too much, instead of dropping its oldest message. By default a
    # message is dead-lettered without a confirm: a crash, or a target that is full, loses it.
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _delay_queue(queue: str, level_seconds: int) -> str:
    return f"{queue}.delay.{level_seconds}s"


def _delay_queues(queue: str) -> list[_Declaration]:
    return [
        _Declaration(_delay_queue(queue, level), _dead_letter_to(queue) | {"x-message-ttl": level * 1000})
        for level in DELAY_LEVELS_SECONDS
    ]


def _declare(parameters: ParametersOrFactory, declarations: Sequence[_Declaration]) -> None:
    """The broker has taken all these. Raises `TransportError`."""
    link = _Link(parameters, "queues")
    try:
        link.open()

        def declare(channel: Any, answer: Future[None]) -> None:
            for queue, arguments, passive in declarations:
                arguments = {"x-queue-type": "quorum", **arguments}  # noqa: PLW2901
                # Only the last is answered: an error closes the channel.
                last = (lambda _: answered(answer, None)) if queue == declarations[-1].queue else None
                channel.queue_declare(
                    queue, passive=passive, durable=True, arguments=None if passive else arguments, callback=last
                )

        link.ask(declare, "to queue.declare")
    finally:
        link.close()
        link.join()


# ---- headers -------------------------------------------------------------------------------------------------------------


def _properties(message: Message) -> BasicProperties:
    headers, _ = message.to_wire()
    # `traceparent` travels under its own name, where tracing looks for it.
    named = {name if name == "traceparent" else f"{_PREFIXES[0]}{name}": value for name, value in headers.items()}
    # Only a short string fits into the property; the header holds every id.
    message_id = message.id if len(message.id.encode()) <= SHORT_BYTES_MAX else None
    return BasicProperties(headers=named, message_id=message_id, delivery_mode=2)


def _unencodable(letter: _Letter) -> UsageError | None:
    """Why pika cannot send this. Asked beforehand: raised amid a batch, the error would be that of all its letters."""
    try:
        letter.properties.encode()
    except Exception as error:  # noqa: BLE001 - what pika, struct or a codec raise for what AMQP cannot hold
        return UsageError(f"AMQP cannot carry its headers: {error!r}")
    if len(letter.routing_key.encode()) > SHORT_BYTES_MAX:
        return UsageError(f"a routing key has at most {SHORT_BYTES_MAX} bytes: {letter.routing_key!r} is longer")
    return None


def _headers(properties: BasicProperties, routing_key: Any) -> dict[str, str]:
    """Headers as text to text: the envelope without its prefix, foreign headers as they are, properties as `amqp_...`."""
    amqp = {f"amqp_{name}": value for name in _PROPERTIES if (value := getattr(properties, name)) is not None}
    given = {_text(name): value for name, value in (properties.headers or {}).items()}
    envelope = {
        name.removeprefix(prefix): value for name, value in given.items() for prefix in _PREFIXES if name.startswith(prefix)
    }
    others = {name: value for name, value in given.items() if not name.startswith(_PREFIXES)}
    # The envelope last: a header of a stranger's must not stand in for its id.
    everything = amqp | {"amqp_routing_key": routing_key} | others | envelope
    return {name: _text(value) for name, value in everything.items() if value is not None}


def _text(value: Any) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _plain(value: Any) -> Any:
    """The value in JSON's types; what JSON has no type for is text."""
    match value:
        case None | str() | bool() | int():
            return value
        case bytes():
            return value.decode(errors="backslashreplace")
        case datetime():
            return value.isoformat()
        case dict():
            return {_text(name): _plain(each) for name, each in value.items()}
        case list():
            return [_plain(each) for each in value]
        case _:
            return str(value)


def _count(properties: BasicProperties, *, redelivered: bool) -> int:
    """How often the message was delivered, this time included; 0: the queue does not count."""
    headers = properties.headers or {}
    before = _whole(headers.get(_COUNT_HEADER))
    # RabbitMQ 4 counts what was given out by the one, and what failed by the other.
    here = max(_whole(headers.get("x-acquired-count")), _whole(headers.get("x-delivery-count")))
    if redelivered and not here:
        return 0  # a classic queue
    return before + here + 1


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
