"""What the tests read from the database, and the few things that they do to it (age a row, redrive a message)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import dict_row, namedtuple_row

from onceward.inbox import Inbox, Take, TakeResult
from onceward.message import Message, row_key

CONSUMER = "payments"
Conn = Connection[Any]


class Books(NamedTuple):
    """All that is written of one message."""

    state: str | None
    token: int | None
    attempts: int
    parked: list[str]
    effects: int


def books(conn: Conn, message: Message, consumer: str = CONSUMER) -> Books:
    row = inbox_row(conn, message, consumer)
    return Books(
        row.state if row else None,
        row.token if row else None,
        attempts(conn, message, consumer),
        [entry.reason for entry in parked(conn)],
        effects(conn, message),
    )


def inbox_row(conn: Conn, message: Message, consumer: str = CONSUMER) -> Any:
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        statement = (
            "SELECT *, lease_until - clock_timestamp() AS lease_left, lease_until > clock_timestamp() AS leased"
            " FROM onceward.inbox WHERE consumer = %s AND message_id = %s"
        )
        return cursor.execute(statement, (consumer, row_key(message.id))).fetchone()


def state(conn: Conn, message: Message, consumer: str = CONSUMER) -> str | None:
    row = inbox_row(conn, message, consumer)
    return str(row.state) if row else None


def intents(conn: Conn, message: Message) -> list[Any]:
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        statement = "SELECT *, answer::text AS text FROM onceward.intents WHERE message_id = %s ORDER BY n"
        return cursor.execute(statement, (row_key(message.id),)).fetchall()


def parked(conn: Conn) -> list[Any]:
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute("SELECT * FROM onceward.parked ORDER BY parked_at").fetchall()


def attempts(conn: Conn, message: Message, consumer: str = CONSUMER) -> int:
    statement = "SELECT coalesce(max(n), 0) FROM onceward.attempts WHERE consumer = %s AND message_id = %s"
    return int(scalar(conn, statement, (consumer, row_key(message.id))))


def sessions_lost(conn: Conn, message: Message, consumer: str = CONSUMER) -> int:
    statement = "SELECT coalesce(max(sessions_lost), 0) FROM onceward.attempts WHERE consumer = %s AND message_id = %s"
    return int(scalar(conn, statement, (consumer, row_key(message.id))))


def effects(conn: Conn, message: Message) -> int:
    return int(scalar(conn, "SELECT count(*) FROM effects WHERE message_id = %s", (message.id,)))


def keys(conn: Conn, table: str) -> set[Any]:
    """The keys of all rows of this table."""
    return {row[0] for row in conn.execute(f"SELECT message_id FROM onceward.{table}".encode())}


def outbox(conn: Conn) -> list[Any]:
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute("SELECT * FROM onceward.outbox ORDER BY position").fetchall()


def scalar(conn: Conn, statement: str, params: tuple[Any, ...] = ()) -> Any:
    row = conn.execute(statement.encode(), params or None).fetchone()
    assert row is not None
    return row[0]


def write_effect(conn: Conn, message: Message, note: str = "") -> None:
    """The least idempotent thing there is: one more row."""
    conn.execute("INSERT INTO effects (message_id, note) VALUES (%s, %s)", (message.id, note))


def lapse(conn: Conn, message: Message) -> None:
    """As if the lease's time had passed."""
    changed = conn.execute(
        "UPDATE onceward.inbox SET lease_until = clock_timestamp() - interval '1 ms'"
        " WHERE message_id = %s AND state = 'pending'",
        (row_key(message.id),),
    )
    assert changed.rowcount == 1


def age_windows(conn: Conn, longer_than: timedelta) -> None:
    """As if no process with a window so long had been seen for two days."""
    changed = conn.execute(
        "UPDATE onceward.consumers SET seen_at = clock_timestamp() - interval '2 days' WHERE window_seconds > %s",
        (longer_than.total_seconds(),),
    )
    assert changed.rowcount > 0


def age_intents(conn: Conn, message: Message, age: timedelta) -> None:
    """As if the intents had been committed so long ago."""
    changed = conn.execute(
        "UPDATE onceward.intents SET started_at = clock_timestamp() - %s WHERE message_id = %s", (age, row_key(message.id))
    )
    assert changed.rowcount > 0


def claim_by_another(conn: Conn, message: Message, consumer: str = CONSUMER) -> Take:
    """Another worker takes the message over, its lease having lapsed. Its Take."""
    lapse(conn, message)
    take = Inbox(consumer, worker="another").claim(conn, message)
    assert take.result is TakeResult.TAKEN, take
    return take


def explain(conn: Conn, statement: str, params: dict[str, Any]) -> dict[str, Any]:
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}".encode(), params).fetchone()
    assert row is not None
    plan: dict[str, Any] = row["QUERY PLAN"][0]["Plan"]
    return plan
