"""Upkeep: partitions are there before they are needed, and go when no duplicate can come back to them.

`run` does it from a thread of its own; `onceward upkeep` does it once. Whoever comes second finds nothing to do.
"""

from __future__ import annotations

import logging
import threading
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection, sql

from onceward.database import Database
from onceward.inbox import WINDOW_DEFAULT
from onceward.schema import (
    PARTITIONED,
    attached,
    database_now,
    make_partitions,
    partition_bounds,
    partition_day,
    partition_name,
)

logger = logging.getLogger("onceward")
EVERY_SECONDS: Final = 3600.0
TRIES: Final = 5


class Upkept(NamedTuple):
    """What one upkeep did. `kept`: days that are due but hold messages that are not finished, with the count."""

    made: list[str]
    dropped: list[str]
    kept: dict[str, int]


def upkeep(conn: Connection[Any], schema: str) -> Upkept:
    """Partitions exist for the next days; those past the longest window of all consumers, and all done, are dropped.

    A partition with a pending or parked message, or an intent without an answer, is never dropped.
    Crash between detaching and dropping: the next upkeep finds the table, detached, and drops it.
    `conn` must be in autocommit mode (DETACH ... CONCURRENTLY cannot run in a transaction).
    """
    made = make_partitions(conn, schema)
    _finish_half_done(conn, schema)
    last_day = database_now(conn).date() - _window(conn, schema) - timedelta(days=1)
    dropped: list[str] = []
    kept: dict[str, int] = {}
    for day in _days_before(conn, schema, last_day):
        unfinished = _unfinished(conn, schema, day)
        if unfinished:
            kept[day.isoformat()] = unfinished
        else:
            dropped += [_retire(conn, schema, partition_name(table, day), table) for table in PARTITIONED]
    _prune_attempts(conn, schema, last_day)
    return Upkept(made, dropped, kept)


def _window(conn: Connection[Any], schema: str) -> timedelta:
    statement = sql.SQL("SELECT max(window_seconds) FROM {}").format(sql.Identifier(schema, "consumers"))
    row = conn.execute(statement).fetchone()
    return timedelta(seconds=row[0]) if row and row[0] is not None else WINDOW_DEFAULT


def _days_before(conn: Connection[Any], schema: str, last_day: date) -> list[date]:
    """The days whose partitions end before `last_day` began."""
    days = {partition_day(name) for name, _ in attached(conn, schema)}
    return sorted(day for day in days if day is not None and day < last_day)


def _unfinished(conn: Connection[Any], schema: str, day: date) -> int:
    low, high = partition_bounds(day)
    statement = sql.SQL(
        "SELECT (SELECT count(*) FROM {} WHERE message_id >= %(low)s AND message_id < %(high)s AND state <> 'done')"
        " + (SELECT count(*) FROM {} WHERE message_id >= %(low)s AND message_id < %(high)s AND state <> 'done')"
    ).format(sql.Identifier(schema, "inbox"), sql.Identifier(schema, "intents"))
    row = conn.execute(statement, {"low": low, "high": high}).fetchone()
    return int(row[0]) if row else 0


def _retire(conn: Connection[Any], schema: str, name: str, table: str) -> str:
    parent, child = sql.Identifier(schema, table), sql.Identifier(schema, name)
    _patiently(conn, sql.SQL("ALTER TABLE {} DETACH PARTITION {} CONCURRENTLY").format(parent, child))
    _patiently(conn, sql.SQL("DROP TABLE {}").format(child))
    return name


def _patiently(conn: Connection[Any], statement: sql.Composed) -> None:
    """Short waits for the lock, several times: a long wait would make everybody queue up behind it."""
    conn.execute("SET lock_timeout TO '1s'")
    for left in reversed(range(TRIES)):
        try:
            conn.execute(statement)
            return
        except psycopg.errors.LockNotAvailable:
            if not left:
                raise


def _finish_half_done(conn: Connection[Any], schema: str) -> None:
    """What an upkeep that died left behind: a detach half done, or a detached table."""
    for name, pending in attached(conn, schema):
        if pending:
            parent = sql.Identifier(schema, name.rpartition("_p")[0])
            statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE")
            _patiently(conn, statement.format(parent, sql.Identifier(schema, name)))
    there = {name for name, _ in attached(conn, schema)}
    rows = conn.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname ~ '^(inbox|intents)_p[0-9]{8}$'",
        (schema,),
    ).fetchall()
    for (name,) in rows:
        if name not in there:
            _patiently(conn, sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name)))


def _prune_attempts(conn: Connection[Any], schema: str, last_day: date) -> None:
    low, _ = partition_bounds(last_day)
    statement = sql.SQL(
        "DELETE FROM {attempts} AS a WHERE a.message_id < %s AND NOT EXISTS"
        " (SELECT 1 FROM {inbox} AS i WHERE i.consumer = a.consumer AND i.message_id = a.message_id)"
    ).format(attempts=sql.Identifier(schema, "attempts"), inbox=sql.Identifier(schema, "inbox"))
    conn.execute(statement, (low,))


class UpkeepThread:
    """Upkeep at once and every hour, until stopped; a failure is logged and tried again at the next turn."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onceward-upkeep", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._database.connection() as conn:
                    upkeep(conn, self._database.schema)
                    conn.execute("SET lock_timeout TO '1s'")
            except psycopg.Error as error:
                logger.warning("upkeep failed, it is tried again within the hour: %s", error)
            self._stop.wait(EVERY_SECONDS)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
