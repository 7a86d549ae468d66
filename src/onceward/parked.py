"""Parked messages: what a person sees when paged. What ends them is in `decisions`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection

from onceward.database import dicts
from onceward.errors import SchemaMismatch
from onceward.message import ATTRIBUTE_BYTES_MAX, canonical_id, row_key
from onceward.protocol.reasons import ParkReason
from onceward.statements import SCHEMA_DEFAULT, statements, storable

InboxState = Literal["pending", "done", "parked", "discarded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedRow:
    """One parked message in a list. `fingerprint` (hex, of type and body) tells two messages under one id apart."""

    consumer: str
    message_id: str
    fingerprint: str
    reason: ParkReason
    detail: str
    attempts: int
    source: str
    parked_at: datetime
    type: str | None
    subject: str | None
    body_bytes: int


@dataclass(frozen=True, slots=True)
class ParkedIntent:
    """One effect of a parked message. `answer` is JSON text; state `unknown`: nobody knows whether it happened.

    `generation` is 1, and one more each time when a person decided that it had not happened; `key` is the latest one.
    """

    n: int
    name: str
    state: Literal["pending", "done", "unknown", "discarded"]
    refused: bool
    key: str
    generation: int
    answer: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage(ParkedRow):
    """One parked message, whole."""

    headers: Mapping[str, str]
    body: bytes
    intents: Sequence[ParkedIntent]


def list_parked(
    conn: Connection[Any], *, consumer: str | None = None, limit: int = 100, schema: str = SCHEMA_DEFAULT
) -> list[ParkedRow]:
    """The parked messages, newest first, at most `limit`; of one consumer, or of all. A long `detail` is cut."""
    rows = dicts(conn, statements(schema)["parked_list"], {"consumer": consumer, "limit": limit})
    return [ParkedRow(**typed(row)) for row in rows]


def show_parked(
    conn: Connection[Any], message_id: str, *, consumer: str | None = None, schema: str = SCHEMA_DEFAULT
) -> list[ParkedMessage]:
    """All that is parked under this id, whole: one per consumer and body; empty when there is none."""
    params = {"consumer": consumer, "message_id": canonical_id(message_id)}
    return [
        ParkedMessage(**typed(row), intents=intents_of(conn, schema, row["consumer"], row["message_id"]))
        for row in dicts(conn, statements(schema)["parked_show"], params)
    ]


def parked_like(conn: Connection[Any], beginning: str, *, schema: str = SCHEMA_DEFAULT) -> list[str]:
    """The ids of parked messages that begin so, at most five: what a half-typed id may have meant."""
    rows = dicts(conn, statements(schema)["parked_beginning"], {"beginning": beginning})
    return [row["message_id"] for row in rows]


def typed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its reason as a member. Raises `SchemaMismatch` for one that newer code has written."""
    try:
        return row | {"reason": ParkReason(row["reason"])}
    except ValueError:
        raise SchemaMismatch(
            f"a message is parked for a reason that this code does not know ({row['reason']!r}): use the version of "
            "onceward that parked it"
        ) from None


def intents_of(conn: Connection[Any], schema: str, consumer: str, message_id: str) -> list[ParkedIntent]:
    """The effects of this message, in order."""
    params = {"consumer": consumer, "message_id": row_key(message_id)}
    rows = dicts(conn, statements(schema)["parked_intents"], params)
    return [ParkedIntent(**row) for row in rows]


def parked_id(text: str) -> str:
    """The text as the id of a parked row: storable, and short enough for an index entry; a longer one ends in its hash."""
    whole = storable(text)
    if len(whole.encode()) <= ATTRIBUTE_BYTES_MAX:
        return whole
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    # 80 bytes are room for the dots and the hash.
    return f"{whole.encode()[: ATTRIBUTE_BYTES_MAX - 80].decode(errors='ignore')}...{digest}"
