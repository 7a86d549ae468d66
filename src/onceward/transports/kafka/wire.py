"""A message as a Kafka record: CloudEvents' Kafka binding, binary mode (github.com/cloudevents/spec).

Each attribute is a header `ce_...` in UTF-8, `traceparent` is a header of that name, the record's value is the body, and
its key is the subject.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from confluent_kafka import Message as KafkaMessage

from onceward.message import Message

ATTRIBUTE: Final = "ce_"
# The W3C's own name, which tracing libraries look for on every transport.
_PLAIN: Final = frozenset({"traceparent"})
RETRY_AT: Final = "onceward-retry-at"  # Unix milliseconds, by the clock of whoever released it
RETRY_DELAY: Final = "onceward-retry-delay"  # milliseconds
_OURS: Final = frozenset({RETRY_AT, RETRY_DELAY})
Header = tuple[str, bytes | None]
Headers = Iterable[Header]


class Outgoing(NamedTuple):
    """A record that is to be sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[Header]


def record_of(message: Message, topic: str) -> Outgoing:
    """The message as it goes to this topic."""
    attributes, body = message.to_wire()
    headers: list[Header] = [
        (name if name in _PLAIN else ATTRIBUTE + name, value.encode()) for name, value in attributes.items()
    ]
    key = None if message.subject is None else message.subject.encode()
    return Outgoing(topic, key, body, headers)


def read_headers(headers: Headers | None) -> dict[str, str]:
    """Headers as text to text, attributes without their prefix. Of a header that is repeated, the last one counts.

    A header without the prefix keeps its name, where no attribute has it. So the `id` of Debezium's outbox event router is
    the message's id.
    """
    attributes: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, value in headers or ():
        if value is None or name in _OURS:
            continue
        if name.startswith(ATTRIBUTE):
            attributes[name.removeprefix(ATTRIBUTE)] = read_text(value)
        else:
            others[name] = read_text(value)
    return others | attributes


def headers_of(record: KafkaMessage) -> list[Header]:
    """The record's own headers, as bytes."""
    headers: Any = record.headers()
    return list(headers or ())


def read_text(value: bytes) -> str:
    """The bytes as text; what is not UTF-8 is shown as escapes."""
    return value.decode("utf-8", "backslashreplace")


def retry_copy(record: Outgoing, delay_seconds: float) -> Outgoing:
    """The record as it goes to a retry topic, to be given after the delay."""
    headers = [header for header in record.headers if header[0] not in _OURS]
    delay = round(delay_seconds * 1000)
    headers += [(RETRY_AT, b"%d" % (round(time.time() * 1000) + delay)), (RETRY_DELAY, b"%d" % delay)]
    return record._replace(headers=headers)


def retry_seconds(headers: Headers | None) -> float:
    """In how many seconds a record of a retry topic is due."""
    values = {name: value for name, value in headers or () if value is not None}
    try:
        at, delay = int(values[RETRY_AT]), int(values[RETRY_DELAY])
        # Never longer than the delay itself: the clock of whoever released it may be ahead of this one.
        return max(0.0, min(at - time.time() * 1000, delay)) / 1000
    except (KeyError, ValueError, OverflowError):
        return 0.0  # of a stranger, or written by hand: due at once
