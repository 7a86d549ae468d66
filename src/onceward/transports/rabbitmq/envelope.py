"""The envelope in AMQP's headers, and what others write there. No I/O."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from pika import BasicProperties

from onceward.message import Message

COUNT_HEADER: Final = "x-onceward-deliveries"  # of a copy: how often the message was delivered before
SHORT_BYTES_MAX: Final = 255  # of AMQP's short strings: routing keys, and the properties
_PREFIXES: Final = ("cloudEvents_", "cloudEvents:")
_PROPERTIES: Final = (
    "message_id", "correlation_id", "type", "app_id", "content_type", "content_encoding", "reply_to", "timestamp",
)  # fmt: skip


def properties_of(message: Message) -> BasicProperties:
    headers, _ = message.to_wire()
    # `traceparent` travels under its own name, where tracing looks for it.
    named = {name if name == "traceparent" else f"{_PREFIXES[0]}{name}": value for name, value in headers.items()}
    # Only a short string fits into the property; the header holds every id.
    message_id = message.id if len(message.id.encode()) <= SHORT_BYTES_MAX else None
    return BasicProperties(headers=named, message_id=message_id, delivery_mode=2)


def headers_of(properties: BasicProperties, routing_key: Any) -> dict[str, str]:
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
    try:
        plain = _plain(value)
        return plain if isinstance(plain, str) else json.dumps(plain)
    except RecursionError:
        return "(nested too deeply)"


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


def count_of(properties: BasicProperties, *, redelivered: bool) -> int:
    """How often the message was delivered, this time included; 0: the queue does not count."""
    headers = properties.headers or {}
    before = _whole(headers.get(COUNT_HEADER))
    # RabbitMQ 4 counts what was given out by the one, and what failed by the other.
    here = max(_whole(headers.get("x-acquired-count")), _whole(headers.get("x-delivery-count")))
    if redelivered and not here:
        return 0  # a classic queue
    return before + here + 1


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
