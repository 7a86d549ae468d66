"""Publishes that are mandatory and confirmed: sent together, and answered one by one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from pika import BasicProperties
from pika.spec import Basic

from onceward.errors import TransportError, UsageError
from onceward.transports.rabbitmq.envelope import SHORT_BYTES_MAX
from onceward.transports.rabbitmq.link import Link, ParametersOrFactory, Unroutable, answered


class Letter(NamedTuple):
    """One message on its way to one exchange."""

    exchange: str
    routing_key: str
    properties: BasicProperties
    body: bytes

    @property
    def address(self) -> tuple[str, str, str | None]:
        """What the broker's return of it can be recognised by."""
        return self.exchange, self.routing_key, self.properties.message_id

    def flaw(self) -> UsageError | None:
        """Why AMQP cannot carry it. Asked before it is sent: raised amid a batch, the error would strike all of it."""
        try:
            self.properties.encode()
        except Exception as error:  # noqa: BLE001 - what pika, struct or a codec raise for what AMQP cannot hold
            return UsageError(f"AMQP cannot carry its headers: {error!r}")
        if len(self.routing_key.encode()) > SHORT_BYTES_MAX:
            return UsageError(f"a routing key has at most {SHORT_BYTES_MAX} bytes: {self.routing_key!r} is longer")
        return None


@dataclass(slots=True)
class _Confirms:
    """What became of each of these letters. Used on the thread of the connection."""

    letters: Sequence[Letter]
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

    def _returned(self, letter: Letter) -> TransportError | None:
        # A message that no queue takes is returned, and confirmed after that: the broker has dealt with it, and it is gone.
        reason = self.returned.get(letter.address)
        if reason is None:
            return None
        where = f"exchange {letter.exchange!r}" if letter.exchange else "the default exchange"
        return Unroutable(f"no queue takes it: {where} has no way for routing key {letter.routing_key!r} ({reason})")


UNCONFIRMED: Final = TransportError("RabbitMQ did not confirm it")


class Publisher:
    """Confirmed and mandatory publishes, over a link that is made again after it was lost. One caller at a time."""

    def __init__(self, parameters: ParametersOrFactory, name: str) -> None:
        self._parameters = parameters
        self._name = name
        self._link: Link | None = None
        self._numbered = 0  # publishes on this channel; the broker counts them too
        self._confirms: _Confirms | None = None
        self._lock = threading.Lock()

    def publish(self, letters: Sequence[Letter]) -> list[TransportError | None]:
        """All are sent, then all confirms awaited; one entry each: None = confirmed, else why not.

        Raises `TransportError` when there is no connection: then nothing was sent.
        """
        with self._lock:
            link = self._connected()
            confirms = _Confirms(letters, Future(), [UNCONFIRMED] * len(letters))
            try:
                link.ask(partial(self._send, confirms), "to publishes")
            except TransportError as error:
                # One whose confirm comes now is sent again: a double, which the inbox turns away.
                return [error if each is UNCONFIRMED else each for each in confirms.errors]
            return confirms.errors

    def close(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link.join()
                self._link = None

    def _connected(self) -> Link:
        if self._link is None or self._link.error is not None:
            self._link = None
            link = Link(self._parameters, self._name)
            try:
                link.open()
                link.ask(self._select_confirms, "to confirm.select")
            except BaseException:
                link.close()
                raise
            self._link = link
        return self._link

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
