"""What passes between a worker and RabbitMQ: AMQP's frames, with many channels on one connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pika import frame, spec

from onceward_proof.brokers.recorder import Acks, Content, Log, order_of


@dataclass(slots=True)
class Parser:
    """Cuts a stream of AMQP into whole frames."""

    _buffer: bytes = b""

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """Those that are whole with this chunk."""
        self._buffer += chunk
        while True:
            consumed, found = frame.decode_frame(self._buffer)
            if not consumed:
                return
            self._buffer = self._buffer[consumed:]
            # What a client begins with is no frame of any channel.
            if not isinstance(found, frame.ProtocolHeader):
                yield found


@dataclass(slots=True)
class Body:
    """A message whose body is still coming: what it was announced by, and how many bytes are missing."""

    method: Any
    missing: int = 0
    parts: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Channel:
    """What is under way on one channel."""

    coming: dict[str, Body] = field(default_factory=dict)  # by the end that sends it
    published: int = 0
    unconfirmed: dict[int, Content] = field(default_factory=dict)
    delivered: dict[int, Content] = field(default_factory=dict)


@dataclass(slots=True)
class AmqpInterpreter:
    """Understands publishes with their confirms, and deliveries with their acks."""

    log: Log
    _from_worker: Parser = field(default_factory=Parser)
    _from_broker: Parser = field(default_factory=Parser)
    _channels: defaultdict[int, Channel] = field(default_factory=lambda: defaultdict(Channel))

    def from_worker(self, chunk: bytes) -> Acks:
        acked: list[Content] = []
        for found in self._from_worker.feed(chunk):
            channel = self._channels[found.channel_number]
            method = getattr(found, "method", None)
            if isinstance(method, spec.Channel.Open):
                self._channels[found.channel_number] = Channel()
            elif isinstance(method, spec.Basic.Ack):
                acked += _taken(channel.delivered, method)
            elif (whole := _follow(channel, "worker", found, spec.Basic.Publish)) is not None:
                channel.published += 1
                channel.unconfirmed[channel.published] = whole
        # RabbitMQ does not answer an ack.
        return Acks(acked, final=True)

    def from_broker(self, chunk: bytes) -> None:
        for found in self._from_broker.feed(chunk):
            channel = self._channels[found.channel_number]
            method = getattr(found, "method", None)
            if isinstance(method, spec.Basic.Ack):
                for content in _taken(channel.unconfirmed, method):
                    self.log.note("stored", content)
            elif isinstance(method, spec.Basic.Nack):
                _taken(channel.unconfirmed, method)
            else:
                self._follow_delivery(channel, found)

    def _follow_delivery(self, channel: Channel, found: Any) -> None:
        announced = channel.coming.get("broker")
        whole = _follow(channel, "broker", found, (spec.Basic.Deliver, spec.Basic.GetOk))
        method = getattr(found, "method", None) if announced is None else announced.method
        if whole is not None and method is not None:
            channel.delivered[method.delivery_tag] = whole


def _follow(channel: Channel, end: str, found: Any, announces: Any) -> Content | None:
    """The message that is whole with this frame."""
    if isinstance(getattr(found, "method", None), announces):
        channel.coming[end] = Body(found.method)
        return None
    body = channel.coming.get(end)
    if body is None:
        return None
    if isinstance(found, frame.Header):
        body.missing = found.body_size
    elif isinstance(found, frame.Body):
        body.parts.append(found.fragment)
        body.missing -= len(found.fragment)
    else:
        return None
    if body.missing > 0:
        return None
    del channel.coming[end]
    return Content(body.method.routing_key, order_of(b"".join(body.parts)))


def _taken(open_ones: dict[int, Content], method: spec.Basic.Ack | spec.Basic.Nack) -> list[Content]:
    """Those that an ack or a nack is about, which are open no longer."""
    tag = method.delivery_tag
    tags = [each for each in open_ones if each <= tag] if method.multiple else [tag]
    return [open_ones.pop(each) for each in tags if each in open_ones]


interpret = AmqpInterpreter
