"""The message, its identity, and its wire form. No I/O.

One envelope on every transport: CloudEvents 1.0 attributes and `traceparent` as the transport's native headers (text to
text), the body as bytes beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time as _time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self
from uuid import UUID

SOURCE_DEFAULT: Final = "onceward"
_ATTRIBUTES: Final = ("id", "source", "type", "subject", "time", "traceparent")
# In UTF-8. Every transport's headers can carry it, and an index entry of Postgres (at most 2,704 bytes) can hold it.
ATTRIBUTE_BYTES_MAX: Final = 1024


class MalformedMessage(ValueError):
    """What was to be a message cannot be one; its text says why, and a delivery is parked with it."""


def uuid7() -> UUID:
    """A new UUIDv7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then 74 random bits.

    Its time only chooses a partition and bounds the window; every *decision* on age is made on the database's clock.
    """
    milliseconds = _time.time_ns() // 1_000_000
    return uuid7_at(milliseconds, int.from_bytes(os.urandom(10)))


def uuid7_at(milliseconds: int, random_bits: int = 0) -> UUID:
    """The UUIDv7 of this Unix millisecond with these low bits: with 0, the smallest of that millisecond."""
    # From the top: 48 bits of time, 4 of version (7), 12 of chance, 2 of variant (binary 10), 62 of chance.
    value = (milliseconds & (1 << 48) - 1) << 80 | random_bits & (1 << 80) - 1
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def parse_uuid7(text: str) -> UUID | None:
    """The id as a UUIDv7, or None when it is anything else (then it has no time of its own)."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if value.version == 7 else None


def canonical_id(text: str) -> str:
    """The id as it is stored: a UUIDv7 in its one spelling, anything else as it is written."""
    value = parse_uuid7(text)
    return text if value is None else str(value)


def row_key(message_id: str) -> UUID:
    """The key of every row about a message of this id: a UUIDv7 itself, or a UUID made from the text of an untimed id.

    The latter is of version 8 (RFC 9562, 5.8): the byte ff, then 112 bits of the SHA-256 of the text, around the version
    and the variant. The same text has the same key for ever: it is data, as the id is.
    """
    value = parse_uuid7(message_id)
    if value is not None:
        return value
    # Whole hexadecimal digits, not bits, so that a person can make the key in SQL, too. Two ids of one key are another
    # payload under a known id: a conflict, which is parked, so nothing would be lost. backslashreplace, because a person
    # may look for a text that no message can have as its id.
    digits = hashlib.sha256(message_id.encode("utf-8", "backslashreplace")).hexdigest()
    return UUID(f"ff{digits[:10]}8{digits[10:13]}8{digits[13:28]}")


@dataclass(frozen=True, init=False, repr=False)
class Message:
    """One fact that travels. Immutable; equal to another when every attribute and the body are.

    `id` is made once, by the producer, and kept over every resend: the inbox knows a message again by its id, its type and
    its body (`fingerprint`), whatever else a resend has changed. `subject` is what the message is about, and the key whose
    order the relay keeps. `body` is bytes; `data` is the same as a JSON value.
    """

    __slots__ = ("body", "id", "source", "subject", "time", "traceparent", "type")

    id: str
    type: str
    source: str
    subject: str | None
    time: datetime
    traceparent: str | None
    body: bytes

    def __init__(
        self,
        *,
        type: str,  # noqa: A002 - CloudEvents' own name
        data: object = None,
        body: bytes | None = None,
        subject: object = None,
        id: str | UUID | None = None,  # noqa: A002 - CloudEvents' own name
        source: str = SOURCE_DEFAULT,
        time: datetime | None = None,
        traceparent: str | None = None,
    ) -> None:
        """A new message, or (with its `id`) one that exists already.

        `data` (any JSON value) or `body` (bytes as they are) is the content, not both. `type` is the fact's name, like
        "order.placed"; `source` is what produced it; `time` is when it happened (now, unless it is given); `traceparent` is
        the W3C trace context, passed on as it is.

        Raises `MalformedMessage` (a ValueError) for an attribute that no transport could carry, TypeError or ValueError
        for `data` that is not JSON.
        """
        if body is not None and data is not None:
            raise MalformedMessage("a message has data or a body, not both")
        content = body if body is not None else encode_json(data)
        values = {
            "id": _attribute("id", str(id if id is not None else uuid7())),
            "type": _attribute("type", type),
            "source": _attribute("source", source),
            "subject": None if subject is None else _attribute("subject", str(subject)),
            "time": _with_zone(time or datetime.now(UTC)),
            "traceparent": None if traceparent is None else _attribute("traceparent", traceparent),
            "body": bytes(content),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        # Not of all attributes, as a dataclass would have it: a body may be large, and ids hardly ever collide.
        return hash(self.id)

    def __reduce__(self) -> tuple[Callable[[dict[str, str], bytes], Self], tuple[dict[str, str], bytes]]:
        # Copies and pickles travel as any other copy of a message does. (Without this, they would set one attribute after
        # the other, which a frozen class refuses.)
        return self.from_wire, self.to_wire()

    # Without the body: a message that is logged must not show a card's number.
    def __repr__(self) -> str:
        return f"Message(type={self.type!r}, id={self.id!r}, subject={self.subject!r}, body_bytes={len(self.body)})"

    def json(self) -> Any:
        """The body as a JSON value. Raises ValueError when it is not JSON; unhandled, that parks the message in the end."""
        return json.loads(self.body)

    def fingerprint(self) -> bytes:
        """32 bytes that tell two facts under one id apart: SHA-256 of the type and the raw body.

        The other headers are left out: they change on a resend, or where a bridge passes the message on.
        """
        kind = self.type.encode()
        # The type's length first: else a byte could move from the one into the other unseen.
        digest = hashlib.sha256(b"%d:%b:" % (len(kind), kind))
        digest.update(self.body)
        return digest.digest()

    def to_wire(self) -> tuple[dict[str, str], bytes]:
        """The headers (text to text, absent attributes left out) and the body."""
        values = {name: getattr(self, name) for name in _ATTRIBUTES} | {"time": self.time.isoformat()}
        present = {name: value for name, value in values.items() if value is not None}
        return {"specversion": "1.0"} | present, self.body

    @classmethod
    def from_wire(cls, headers: Mapping[str, str], body: bytes) -> Self:
        """The message that these headers and this body carry. Raises `MalformedMessage` with the reason."""
        missing = [name for name in ("id", "type") if not headers.get(name)]
        if missing:
            raise MalformedMessage(f"envelope without {' and '.join(missing)}")
        # Headers that are not ours are let pass: other producers and brokers add their own.
        attributes: dict[str, Any] = {name: headers[name] for name in _ATTRIBUTES if headers.get(name) is not None}
        if "time" in attributes:
            attributes["time"] = _parse_time(attributes["time"])
        return cls(body=body, **attributes)


def encode_json(value: object) -> bytes:
    """JSON as bytes, ASCII only, keys in the caller's order; NaN and infinities are refused, for they are not JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def canonical_json(value: object) -> str:
    """One text per JSON value: keys sorted, no spaces, ASCII. Two equal answers have equal canonical texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _attribute(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"{name} must be a text that is not empty, not {value!r}")
    if not value.isprintable():
        raise MalformedMessage(f"{name} has a character that headers cannot carry: {value!r}")
    # A character is at most four bytes in UTF-8: most values need not be encoded to be measured.
    if len(value) > ATTRIBUTE_BYTES_MAX // 4 and len(value.encode()) > ATTRIBUTE_BYTES_MAX:
        raise MalformedMessage(f"{name} is longer than {ATTRIBUTE_BYTES_MAX} bytes in UTF-8")
    return value


def _with_zone(time: datetime) -> datetime:
    """The time, in UTC where it names no zone. One whose year in UTC is not between 1 and 9999 cannot travel."""
    zoned = time if time.tzinfo else time.replace(tzinfo=UTC)
    try:
        zoned.astimezone(UTC)
    except OverflowError:
        raise MalformedMessage(f"time {time.isoformat()} is, in UTC, not between the years 1 and 9999") from None
    return zoned


def _parse_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise MalformedMessage(f"time is not an RFC 3339 timestamp: {text!r}") from None
