"""One connection to RabbitMQ, on a thread of its own, and what its loss is called."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

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
from pika.spec import FRAME_END_SIZE, FRAME_HEADER, FRAME_HEADER_SIZE

from onceward.errors import TransportError, UsageError

T = TypeVar("T")
# A function is asked for them at every connection: where a password changes, it gives the one of the moment.
ParametersOrFactory: TypeAlias = Parameters | Sequence[Parameters] | Callable[[], Parameters | Sequence[Parameters]]

CONNECT_SECONDS_MAX: Final = 30.0
ANSWER_SECONDS_MAX: Final = 30.0
BLOCKED_SECONDS_MAX: Final = 5.0
CLOSE_SECONDS_MAX: Final = 2.0
_UNDECODABLE: Final = (ValueError, OverflowError, struct.error, IndexError, RecursionError, AMQPError)
_FOUND_WRONG: Final = (AuthenticationError, ProbableAccessDeniedError, ProbableAuthenticationError)
_REFUSED_CODES: Final = (403, 404, 406, 530)  # access refused, not found, precondition failed, not allowed


class Refused(TransportError):
    """The broker answers, and says no: to the credentials, to the queue, or to what was sent."""


class Unroutable(TransportError):
    """No queue takes the message."""


class Away(TransportError):
    """There is no connection, or it was lost."""


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


class Link:
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

    @property
    def server_major(self) -> int:
        """The first part of the server's version; 0: it does not say."""
        properties = {} if self._connection is None else self._connection.server_properties or {}
        version = str(properties.get("version", ""))
        return int(version.partition(".")[0]) if version[:1].isdigit() else 0

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
                raise again(self.error)
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
                reason = error or Away("the connection was closed")
                self._ioloop.add_callback_threadsafe(partial(self._fail, reason, at_once=at_once))

    def join(self) -> None:
        """Wait until the connection is closed."""
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * CLOSE_SECONDS_MAX)

    def _wait(self, answer: Future[T], seconds: float, what: str) -> T:
        try:
            return answer.result(seconds)
        except TimeoutError:
            error = Away(f"RabbitMQ did not answer {what} within {seconds:g} s")
            # Whether it was carried out is not known. With the connection, all that it held goes back to its queue.
            self.close(error, at_once=True)
            raise error from None
        except TransportError as error:
            raise again(error) from error
        finally:
            with self._lock:
                self._answers.discard(answer)

    # All below runs on the thread of the connection.

    def _run(self) -> None:
        error: TransportError = Away("the connection was closed")
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
        reason = Away(f"RabbitMQ takes no messages at the moment (a resource alarm): {frame.method.reason}")
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
        elif self._connection.is_closing and not at_once:
            # The channel has closed, as the first step of the connection's own close: dropped amid it, pika would fail over
            # the second step. If that does not come, the timer below drops the connection.
            return
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
        closed = "channel" if isinstance(reason, ChannelClosedByBroker) else "connection"
        text = f"RabbitMQ closed the {closed}: {reason.reply_code} {reason.reply_text}"
        return (Refused if reason.reply_code in _REFUSED_CODES else Away)(text)
    kind = Refused if isinstance(reason, _FOUND_WRONG) else Away
    return kind(f"the connection to RabbitMQ is lost: {reason!r}")


def again(error: TransportError) -> TransportError:
    """The same error for one more caller: an exception that is raised twice would show the first one's traceback."""
    return type(error)(*error.args)
