"""The form of a message on SQS: our envelope as message attributes, a body that SQS carries unchanged, limits. No I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final, Literal

from onceward.message import Message, uuid7

__all__: list[str] = []  # internal: what two transports share
BATCH_MAX: Final = 10  # entries in one request, of whatever kind
# SQS keeps a delivery hidden for at most 12 hours since it was received, and refuses a request that would go beyond. A
# minute less: the request may reach it that much later than it was made.
HIDDEN_SECONDS_MAX: Final = 12 * 3600 - 60
# More than the attributes of the largest envelope: five of 1,024 bytes each, three short ones, all their names and types.
ENVELOPE_BYTES_MAX: Final = 6 * 1024
# How the body travels when SQS would not carry it unchanged. Without it, the body is the text's UTF-8.
_ENCODING: Final = "onceward-body"
# XML 1.0's characters without the carriage return, which a client that speaks XML reads as a line feed.
_NOT_CARRIED: Final = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GROUP_ID: Final = re.compile(r"[A-Za-z0-9!-/:-@\[-`{-~]{1,128}")
Encoding = Literal["base64", "empty"]
Entry = dict[str, Any]  # of a batch request, as boto3 takes it; its "Id" is the position in our own call


def send_entry(index: int, message: Message, *, fifo: bool) -> Entry:
    """The message as an entry of SendMessageBatch."""
    headers, body = message.to_wire()
    text, encoding = encoded_body(body)
    attributes = headers if encoding is None else headers | {_ENCODING: encoding}
    entry: Entry = {
        "Id": str(index),
        "MessageBody": text,
        "MessageAttributes": {
            name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
        },
    }  # fmt: skip
    if fifo:
        entry["MessageGroupId"] = group_id(message.subject or message.id)
        # Another one for each send, never the message's id: for five minutes SQS confirms, and drops, what carries an id
        # that it has seen, although it was consumed and deleted since. A message that was parked and redriven within that
        # time would be lost. What the relay sends again comes twice, and the inbox turns it away. The client's own retry of
        # one request carries the same value, so there SQS drops the double.
        entry["MessageDeduplicationId"] = str(uuid7())
    return entry


def entry_bytes(entry: Entry) -> int:
    """The size of a message as SQS counts it: the body, and the name, type and value of every attribute, in UTF-8."""
    attributes: Mapping[str, Mapping[str, str]] = entry["MessageAttributes"]
    return len(entry["MessageBody"].encode()) + sum(
        len(name) + len(value["DataType"]) + len(value["StringValue"].encode()) for name, value in attributes.items()
    )


def requests(entries: Iterable[Entry], bytes_max: int) -> Iterator[list[Entry]]:
    """The entries, in order, in requests that SQS takes."""
    request: list[Entry] = []
    request_bytes = 0
    for entry in entries:
        added_bytes = entry_bytes(entry)
        if request and (len(request) == BATCH_MAX or request_bytes + added_bytes > bytes_max):
            yield request
            request, request_bytes = [], 0
        request.append(entry)
        request_bytes += added_bytes
    if request:
        yield request


def group_id(subject: str) -> str:
    """The message group of a subject: itself, where SQS takes it as one, else its hash."""
    return subject if _GROUP_ID.fullmatch(subject) else f"sha256:{sha256(subject.encode()).hexdigest()}"


def encoded_body(body: bytes) -> tuple[str, Encoding | None]:
    """The body as SQS carries it unchanged, and how it is encoded; None: it is the body's own text."""
    if not body:
        return "empty", "empty"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"
    return (base64.b64encode(body).decode(), "base64") if _NOT_CARRIED.search(text) else (text, None)


def decoded(headers: Mapping[str, str], text: str) -> tuple[dict[str, str], bytes]:
    """The headers and the body that were sent. Another producer's body is the UTF-8 of its text."""
    kept = {name: value for name, value in headers.items() if name != _ENCODING}
    match headers.get(_ENCODING):
        case "empty":
            return kept, b""
        case "base64":
            with suppress(ValueError):
                return kept, base64.b64decode(text, validate=True)
    return dict(headers), text.encode(errors="surrogatepass")


def as_text(value: bytes) -> str:
    """A binary attribute as a header: what is not UTF-8 is shown as escapes."""
    return value.decode(errors="backslashreplace")
