"""Parked messages: what a person sees when paged, and the redrive that puts one back on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from psycopg import Connection

from onceward.database import dicts, one_tuple
from onceward.errors import SchemaMismatch
from onceward.message import ATTRIBUTE_BYTES_MAX, MalformedMessage, Message, canonical_id, parse_uuid7
from onceward.outbox import publish
from onceward.protocol.reasons import ParkReason
from onceward.statements import SCHEMA_DEFAULT, statements, storable

InboxState = Literal["pending", "done", "parked"]


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
    """One effect of a parked message. `answer` is JSON text; state `unknown`: nobody knows whether it happened."""

    n: int
    name: str
    state: Literal["pending", "done", "unknown"]
    refused: bool
    key: str
    answer: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage(ParkedRow):
    """One parked message, whole."""

    headers: Mapping[str, str]
    body: bytes
    intents: Sequence[ParkedIntent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redrive:
    """What became of a redrive.

    `why_not`: the reason for which nothing was done; '' when the message is on its way, under `token`.
    `expect`: what its handler will meet that no redrive changes; '' when nothing of that kind is recorded.
    """

    consumer: str
    message_id: str
    token: int = 0
    why_not: str = ""
    expect: str = ""

    @property
    def redriven(self) -> bool:
        """The message is on its way."""
        return not self.why_not


def list_parked(
    conn: Connection[Any], *, consumer: str | None = None, limit: int = 100, schema: str = SCHEMA_DEFAULT
) -> list[ParkedRow]:
    """The parked messages, newest first, at most `limit`; of one consumer, or of all. A long `detail` is cut."""
    rows = dicts(conn, statements(schema)["parked_list"], {"consumer": consumer, "limit": limit})
    return [ParkedRow(**_typed(row)) for row in rows]


def show_parked(
    conn: Connection[Any], message_id: str, *, consumer: str | None = None, schema: str = SCHEMA_DEFAULT
) -> list[ParkedMessage]:
    """All that is parked under this id, whole: one per consumer and body; empty when there is none."""
    params = {"consumer": consumer, "message_id": canonical_id(message_id)}
    return [
        ParkedMessage(**_typed(row), intents=_intents(conn, schema, row["consumer"], row["message_id"]))
        for row in dicts(conn, statements(schema)["parked_show"], params)
    ]


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its reason as a member. Raises `SchemaMismatch` for one that newer code has written."""
    try:
        return row | {"reason": ParkReason(row["reason"])}
    except ValueError:
        raise SchemaMismatch(
            f"a message is parked for a reason that this code does not know ({row['reason']!r}): use the version of "
            "onceward that parked it"
        ) from None


def redrive(
    conn: Connection[Any],
    message_id: str,
    *,
    consumer: str,
    fingerprint: str | None = None,
    schema: str = SCHEMA_DEFAULT,
) -> Redrive:
    """The message is pending again, without attempts, and an outbox row sends it under its own id.

    One transaction (a savepoint, inside one of the caller's), under a new token. The inbox row is what lets it past the
    window, so what is parked without one (outside the window, a conflict, no id) is refused with the reason, and so are two
    answers. Effects that have an answer keep it; an unknown one is looked up again, never called. `fingerprint` (or how it
    begins) chooses between two bodies.

    A "foreign commit" runs its handler again: look first that nothing of the first run stands.

    Crash before commit: it is parked as before.
    Crash after commit: the relay finds the outbox row and sends it; the worker that held it before is fenced out.
    """
    known = canonical_id(message_id)
    # An inbox row is found by the UUID, a parked row by text: what has no UUIDv7 can be parked, too.
    params = {"consumer": consumer, "message_id": parse_uuid7(known), "parked_id": known}
    with conn.transaction():
        candidates = _candidates(conn, schema, params, fingerprint)
        chosen = next((row for row in candidates if not row.refusal), None)
        if chosen is None:
            return Redrive(consumer=consumer, message_id=known, why_not=_why_not(candidates))
        # The inbox row first, and only if it is parked: its lock decides between two redrives at once.
        token = _move(conn, schema, params | {"fingerprint": chosen.fingerprint})
        if token is None:
            return Redrive(consumer=consumer, message_id=known, why_not="another redrive of it came first")
        publish(conn, chosen.message, schema=schema)
        expect = _what_to_expect(_intents(conn, schema, consumer, known))
    return Redrive(consumer=consumer, message_id=known, token=token, expect=expect)


def _what_to_expect(intents: Sequence[ParkedIntent]) -> str:
    """That a recorded refusal will be raised again; '' when there is none."""
    names = ", ".join(repr(intent.name) for intent in intents if intent.refused)
    if not names:
        return ""
    return (
        f"its provider refused {names}, and that is recorded: the provider is not asked again, `once.effect` raises "
        "`EffectRefused` again, and the message is parked again unless the handler catches it now"
    )


class _Candidate(NamedTuple):
    fingerprint: bytes
    message: Message
    refusal: str


def _candidates(conn: Connection[Any], schema: str, params: dict[str, Any], fingerprint: str | None) -> list[_Candidate]:
    rows = dicts(conn, statements(schema)["redrive_read"], params)
    wanted = (fingerprint or "").lower()
    return [_candidate(**_typed(row)) for row in rows if row["fingerprint"].hex().startswith(wanted)]


def _candidate(
    fingerprint: bytes,
    reason: ParkReason,
    headers: dict[str, str],
    body: bytes,
    inbox_state: InboxState | None,
    same_payload: bool | None,
) -> _Candidate:
    try:
        message, malformed = Message.from_wire(headers, body), ""
    except MalformedMessage as error:
        # A stand-in that is never sent: it is refused by the reason beside it.
        message, malformed = Message(type="malformed", body=body), f"it was parked ({reason.value}) for its {error}"
    return _Candidate(fingerprint, message, malformed or _refusal(reason, inbox_state, same_payload))


def _refusal(reason: ParkReason, inbox_state: InboxState | None, same_payload: bool | None) -> str:
    """Why a message that was parked for `reason` beside such an inbox row cannot be redriven; '' when it can."""
    if reason is ParkReason.TWO_ANSWERS:
        # Running the handler again cannot mend that, whatever the inbox row says.
        return "its provider gave two answers, so it may have acted twice: a person must look, not a retry"
    if inbox_state is None:
        return (
            f"it was parked ({reason.value}) without an inbox row, so nothing would stop a second run: make sure that it "
            "was never handled, and publish it again under a new id"
        )
    if not same_payload:
        return f"it was parked ({reason.value}), and the inbox row of its id is of another payload: one of the two is wrong"
    if inbox_state == "parked":
        return ""
    if inbox_state == "done" and reason is ParkReason.OUTSIDE_WINDOW:
        return f"it was parked ({reason.value}), and another copy of it was handled since: nothing is left to do"
    return f"it was parked ({reason.value}) beside its inbox row, which is {inbox_state}: a person must look, not a retry"


def _why_not(candidates: list[_Candidate]) -> str:
    if not candidates:
        return "nothing is parked there under this id"
    return "; ".join(dict.fromkeys(candidate.refusal for candidate in candidates))


def _move(conn: Connection[Any], schema: str, params: dict[str, Any]) -> int | None:
    """The inbox row is pending, attempts and parked row are gone; its new token, or None: it is no longer parked."""
    texts = statements(schema)
    row = one_tuple(conn, texts["redrive_inbox"], params)
    if row is None:
        return None
    conn.execute(texts["redrive_delete_attempts"], params)
    conn.execute(texts["redrive_delete_parked"], params)
    return int(row[0])


def _intents(conn: Connection[Any], schema: str, consumer: str, message_id: str) -> list[ParkedIntent]:
    known = parse_uuid7(message_id)
    if known is None:
        return []
    rows = dicts(conn, statements(schema)["parked_intents"], {"consumer": consumer, "message_id": known})
    return [ParkedIntent(**row) for row in rows]


def parked_id(text: str) -> str:
    """The text as the id of a parked row: storable, and short enough for an index entry; a longer one ends in its hash."""
    whole = storable(text)
    if len(whole.encode()) <= ATTRIBUTE_BYTES_MAX:
        return whole
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    # 80 bytes are room for the dots and the hash.
    return f"{whole.encode()[: ATTRIBUTE_BYTES_MAX - 80].decode(errors='ignore')}...{digest}"
