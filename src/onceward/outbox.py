"""The outbox row: "this message is to be sent", in the transaction of its publisher; and the nudge to relays."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal, DecimalException
from typing import Any, Final
from weakref import WeakSet

from psycopg import AsyncConnection, BaseConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from onceward.database import Database, check_connection
from onceward.errors import NotInTransaction, UsageError
from onceward.message import MalformedMessage, Message, parse_uuid7
from onceward.statements import SCHEMA_DEFAULT, statements
from onceward.steps import Steps, all_rows, carry_out

logger = logging.getLogger("onceward")
COALESCE_SECONDS: Final = 0.01
CLOSE_SECONDS_MAX: Final = 5.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BEHIND: Final = """\
{table} has a row at position {newest}, and its sequence is at {last} (a logical failover, or a restore of data only?):
new rows would overtake those that wait. Nothing is sent until the rows are numbered again, in the order in which they were
written:
{renumbering}"""
_RENUMBERING: Final = """\
BEGIN;
LOCK TABLE {table} IN EXCLUSIVE MODE;
SELECT setval(pg_get_serial_sequence('{table}', 'position'), max(position)) FROM {table};
WITH moved AS (DELETE FROM {table} RETURNING *)
INSERT INTO {table} ({columns})
SELECT {columns} FROM moved ORDER BY created_at, position;
COMMIT;"""
_COLUMNS: Final = (
    "id, aggregatetype, aggregateid, type, source, time, traceparent, payload, created_at, attempts, error, retry_at, "
    "set_aside_at"
)

# Connections whose open transaction holds an outbox row: the runtime nudges the relay after their commit. Weak, because a
# connection of the second door is never asked about, and must not be kept alive by this.
_published: Final[WeakSet[Connection[Any]]] = WeakSet()


def publish(conn: Connection[Any], message: Message, *, schema: str = SCHEMA_DEFAULT, untimed_ids: bool = False) -> None:
    """Store `message` for sending, inside the transaction open on `conn`, which will commit durably.

    Its id must be a UUIDv7 (the default), because without a time in it, nobody knows for how long a duplicate can come.
    `untimed_ids` lets others through, for consumers that take them (`Consumer(..., untimed_ids=True)`) or are not ours.

    Crash before commit: nothing is stored, nothing will be sent.
    Crash after commit: the relay finds the row and sends it.

    Raises `NotInTransaction` if `conn` would commit this row on its own; `UsageError` for another id, or for what is not a
    psycopg 3 connection.
    """
    check_in_transaction(conn)
    carry_out(conn, publish_steps(message, schema=schema, untimed_ids=untimed_ids))
    _published.add(conn)


def publish_steps(message: Message, *, schema: str, untimed_ids: bool) -> Steps[None]:
    """`publish`, as steps."""
    if not untimed_ids and parse_uuid7(message.id) is None:
        raise UsageError(
            f"the id {message.id[:80]!r} is not a UUIDv7: leave `id` out and keep the one that is made, or pass a UUIDv7 "
            "of your own (`untimed_ids=True` sends it all the same; a consumer without `untimed_ids=True` parks it)"
        )
    yield from all_rows(statements(schema)["outbox_insert"], outbox_row(message))


def outbox_row(message: Message) -> dict[str, Any]:
    """The columns of one outbox row; the aggregate type is the first part of the message's type."""
    return {
        "id": message.id,
        "aggregatetype": message.type.split(".", 1)[0],
        "aggregateid": message.subject,
        "type": message.type,
        "source": message.source,
        "time": message.time,
        "traceparent": message.traceparent,
        "payload": message.body,
    }


def row_message(row: dict[str, Any]) -> Message:
    """The message in an outbox row. Raises `MalformedMessage` when the row does not hold one."""
    if "unreadable" in row:
        raise MalformedMessage(row["unreadable"])
    return Message(
        id=row["id"],
        type=row["type"],
        source=row["source"],
        subject=row["aggregateid"],
        time=_time(row["time"]),
        traceparent=row["traceparent"],
        body=row["payload"],
    )


def _time(seconds: str) -> datetime:
    """The time at this many seconds (a decimal number as text) since 1970."""
    try:
        return _EPOCH + timedelta(microseconds=int(Decimal(seconds) * 1_000_000))
    except (OverflowError, ValueError, DecimalException):
        raise MalformedMessage(f"its time, {seconds} s since 1970, is not between the years 1 and 9999") from None


def pop_published(conn: Connection[Any]) -> bool:
    """Whether something was published on `conn` since the last time that this was asked."""
    published = conn in _published
    _published.discard(conn)
    return published


def check_in_transaction(conn: Connection[Any]) -> None:
    """Raises `NotInTransaction` when the next statement on `conn` would be committed on its own.

    And `UsageError` for what is not a psycopg 3 connection.
    """
    check_connection(conn)
    check_would_join(conn)


def check_would_join(conn: BaseConnection[Any]) -> None:
    """As `check_in_transaction`, for a connection of either kind."""
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        how = "async with" if isinstance(conn, AsyncConnection) else "with"
        raise NotInTransaction(
            f"this connection is in autocommit mode and no transaction is open: use `{how} conn.transaction():`"
        )


def check_numbering(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> None:
    """Raises `UsageError`, with the statements that repair it, when new rows would get positions below those that wait.

    Not repaired here: that locks the table and moves every row, and the person who failed over may want to look first.
    """
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statements(schema)["outbox_numbering"]).fetchone()
    if row is not None:
        table = f"{schema}.outbox"
        renumbering = _RENUMBERING.format(table=table, columns=_COLUMNS)
        raise UsageError(_BEHIND.format(table=table, newest=row["newest"], last=row["last"] or 0, renumbering=renumbering))


def channel(schema: str) -> str:
    """The channel that relays of this schema listen on."""
    return f"{schema}_outbox"


def nudge_relays(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> None:
    """The relays of this schema look at the outbox now.

    Never inside the transaction that published: a NOTIFY there takes a lock of the whole server until its commit, so that
    commits wait for each other.
    """
    conn.execute("SELECT pg_notify(%s, '')", (channel(schema),))


class Nudge:
    """Wakes the relays: call it after a commit that published. At most one NOTIFY every `COALESCE_SECONDS`.

    From a thread and a connection of its own: the one that published may still be in its transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __call__(self) -> None:
        # Not in __init__: a consumer that publishes nothing needs no thread.
        if self._thread is None:
            self._start()
        self._wanted.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="onceward-nudge", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if self._stop.is_set():
                return
            try:
                with self._database.connection() as conn:
                    nudge_relays(conn, schema=self._database.schema)
            except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; relays poll behind it
                logger.info("nudge failed; relays find the rows when they next poll: %s", error)
            self._stop.wait(COALESCE_SECONDS)

    def stop(self) -> None:
        """No more nudges. Returns at the latest after `CLOSE_SECONDS_MAX`, also when the database hangs."""
        self._stop.set()
        # In this order: the thread must see the stop when it is woken.
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_SECONDS_MAX)
