"""The rows of the outbox as a person sees them, and the two decisions that end what is not sent: retry and discard."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from psycopg import Connection
from psycopg.pq import TransactionStatus

from onceward.database import dicts, one_tuple, tuples
from onceward.errors import UsageError
from onceward.message import canonical_id
from onceward.outbox import nudge_relays
from onceward.statements import SCHEMA_DEFAULT, statements, storable

BEHIND_MAX: Final = 1000  # a key with a long backlog is not counted to its end
POSITION_DIGITS_MAX: Final = 18  # more do not fit into a bigint
BEGIN_SO_MAX: Final = 5
Decision = Literal["retry", "discard"]
_STATEMENTS: Final[Mapping[Decision, str]] = {"retry": "outbox_retry", "discard": "outbox_discard"}


class OutboxState(Enum):
    """How far a row of the outbox has come."""

    WAITING = "waiting"  # it was not tried yet, or its queue was away
    FAILING = "failing"  # it failed, and is tried again
    SET_ASIDE = "set aside"  # it failed too often: it is not tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One row of the outbox in a list.

    `retry_at`: not before then; None: now. `behind`: how many later rows of its subject wait for it, counted up to 1,000.
    `error`: the first line of the last one.
    """

    position: int
    message_id: str
    type: str
    subject: str | None
    source: str
    state: OutboxState
    created_at: datetime
    age_seconds: float
    attempts: int
    retry_at: datetime | None
    set_aside_at: datetime | None
    error: str | None
    body_bytes: int
    behind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage(OutboxRow):
    """One row of the outbox, whole. `time` is text: Postgres knows years that Python does not."""

    time: str
    traceparent: str | None
    whole_error: str | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxDecision:
    """What became of a decision.

    `why_not`: the reason for which nothing was done; '' when it stands. `expect`: what to know of what was done.
    """

    decision: Decision
    position: int
    message_id: str = ""
    why_not: str = ""
    expect: str = ""

    @property
    def decided(self) -> bool:
        """The decision stands."""
        return not self.why_not


class FoundRows(NamedTuple):
    """The positions of the rows that a text names.

    When there are none: a few ids that begin with it, and who discarded the row that was there, and why.
    """

    positions: list[int]
    begin_so: list[str]
    discarded: str = ""


def list_outbox(
    conn: Connection[Any],
    *,
    states: Collection[OutboxState] = tuple(OutboxState),
    limit: int = 100,
    schema: str = SCHEMA_DEFAULT,
) -> list[OutboxRow]:
    """The rows of the outbox that are in one of these states, in the order in which they go, at most `limit`."""
    return [OutboxRow(**row) for row in _rows(conn, schema, states=states, limit=limit)]


def show_outbox(conn: Connection[Any], position: int, *, schema: str = SCHEMA_DEFAULT) -> OutboxMessage | None:
    """The row at this position, whole; None when there is none (any more)."""
    rows = _rows(conn, schema, position=position)
    wholes = dicts(conn, statements(schema)["outbox_show"], {"position": position})
    return OutboxMessage(**rows[0], **wholes[0]) if rows and wholes else None


def find_outbox(conn: Connection[Any], text: str, *, schema: str = SCHEMA_DEFAULT) -> FoundRows:
    """The rows that `text` names: by their position, or by their whole message id."""
    # An id may consist of digits, too (`untimed_ids`): both are looked for, and the caller sees when both are there.
    position = int(text) if text.isdecimal() and len(text) <= POSITION_DIGITS_MAX else None
    params = {"position": position, "message_id": canonical_id(storable(text)), "limit": BEGIN_SO_MAX}
    positions = [row[0] for row in tuples(conn, statements(schema)["outbox_find"], params)]
    if positions or not text:
        return FoundRows(positions, [])
    begin_so = [row[0] for row in tuples(conn, statements(schema)["outbox_begin_so"], params)]
    discard = one_tuple(conn, statements(schema)["outbox_last_discard"], params)
    return FoundRows([], begin_so, f"{discard[0]} discarded it ({discard[1]})" if discard else "")


def retry_outbox(
    conn: Connection[Any], position: int, *, decided_by: str, reason: str = "", schema: str = SCHEMA_DEFAULT
) -> OutboxDecision:
    """The row is due now, without attempts and not set aside; a row in `decisions` says who wanted it.

    One statement, in the caller's transaction if there is one. Without one, relays are nudged; else they find the row when
    they next poll. A row that has not failed, or that a relay is sending right now, is left alone, with the reason.

    Crash before commit: it is as before. Crash after commit: a relay finds it.
    """
    return _decide(conn, schema, "retry", position, decided_by=decided_by, reason=reason)


def discard_outbox(
    conn: Connection[Any], position: int, *, decided_by: str, reason: str, schema: str = SCHEMA_DEFAULT
) -> OutboxDecision:
    """The row leaves the outbox unsent; it is kept whole in `decisions`, with who did it and why.

    One statement, in the caller's transaction if there is one. A row that a relay is sending right now is left alone, with
    the reason. A row that failed may have been sent all the same, without a confirmation.

    Crash before commit: it is as before. Crash after commit: it is discarded.

    Raises `UsageError` without a reason.
    """
    if not reason.strip():
        raise UsageError("a discarded message is sent by nobody: give the reason, for whoever asks later")
    return _decide(conn, schema, "discard", position, decided_by=decided_by, reason=reason)


def _rows(
    conn: Connection[Any],
    schema: str,
    *,
    states: Collection[OutboxState] = tuple(OutboxState),
    position: int | None = None,
    limit: int = 1,
) -> list[dict[str, Any]]:
    wanted = [state.value for state in states]
    params = {"states": wanted, "position": position, "limit": limit, "behind_max": BEHIND_MAX}
    rows = dicts(conn, statements(schema)["outbox_list"], params)
    return [row | {"state": OutboxState(row["state"])} for row in rows]


def _decide(
    conn: Connection[Any],
    schema: str,
    decision: Decision,
    position: int,
    *,
    decided_by: str,
    reason: str,
) -> OutboxDecision:
    if not decided_by.strip():
        raise UsageError("decided_by: name who decides")
    params = {"position": position, "decided_by": storable(decided_by), "reason": storable(reason)}
    written = one_tuple(conn, statements(schema)[_STATEMENTS[decision]], params)
    if written is None:
        return OutboxDecision(decision=decision, position=position, why_not=_why_not(conn, schema, decision, position))
    # Only where that was a transaction of its own: inside another one, a NOTIFY would make its commit wait for all others.
    # After a discard, too: what was behind the row may go.
    if conn.info.transaction_status == TransactionStatus.IDLE:
        nudge_relays(conn, schema=schema)
    was = written[0]
    return OutboxDecision(decision=decision, position=position, message_id=was["id"], expect=_what_to_expect(decision, was))


def _what_to_expect(decision: Decision, was: dict[str, Any]) -> str:
    if decision == "discard":
        return "it may have been sent although no confirmation came" if was["attempts"] else ""
    if was["set_aside_at"] is None or was["aggregateid"] is None:
        return ""
    return (
        f"it comes late: the later messages of its subject, {was['aggregateid']!r}, did not wait; it overtakes none, "
        "because those that still wait come after it"
    )


def _why_not(conn: Connection[Any], schema: str, decision: Decision, position: int) -> str:
    """What is there instead of a row that the decision could be about."""
    [now] = dicts(conn, statements(schema)["outbox_why_not"], {"position": position})
    because = f" ({now['reason']})" if now["reason"] else ""
    earlier = f"{now['decided_by']} decided: {now['decision']}{because}" if now["decision"] else ""
    if not now["there"]:
        gone = earlier if now["decision"] == "discard" else "it was sent, or there never was such a position"
        return f"it is not in the outbox: {gone}"
    if decision == "retry" and not now["failed"]:
        since = f" since {earlier}" if earlier else ""
        return f"it has not failed{since}; a relay takes it in its turn"
    if decision == "discard" and now["sent_again"]:
        return (
            "it is a parked message that somebody sent again (`onceward parked decisions`), and this row is its only way: "
            "retry it; if it is parked once more, discard it there"
        )
    return "a relay is sending it right now, or somebody else decides about it; try again"
