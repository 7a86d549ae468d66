"""Upkeep: partitions are there before they are needed, and go when no duplicate can come back to them.

`run` does it from a thread of its own; `onceward upkeep` does it once. Whoever comes second finds nothing to do.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection, sql

from onceward.database import Database, tuples
from onceward.inbox import WINDOW_DEFAULT
from onceward.schema import (
    LOCK_CLASS,
    LOCK_RETIRE,
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
FIRST_AFTER_SECONDS: Final = (5.0, 30.0)
RETRY_SECONDS: Final = 60.0
TRIES: Final = 5


class Upkept(NamedTuple):
    """What one upkeep did. `kept`: days that are due but hold messages that are not finished, with the count."""

    made: list[str]
    dropped: list[str]
    kept: dict[str, int]


def upkeep(conn: Connection[Any], schema: str) -> Upkept:
    """Partitions exist for the next days; those past the longest window of all consumers, and all done, are dropped.

    A partition with a pending or parked message, or an intent without an answer, is never dropped.
    Crash anywhere between detaching and dropping: the next upkeep finds what is left, and finishes it.
    `conn` must be in autocommit mode (DETACH ... CONCURRENTLY cannot run in a transaction).
    """
    made = make_partitions(conn, schema)
    with _alone(conn) as alone:
        dropped, kept = _retire_days(conn, schema) if alone else ([], {})
    return Upkept(made, dropped, kept)


@contextmanager
def _alone(conn: Connection[Any]) -> Iterator[bool]:
    """One upkeep at a time retires; whoever comes meanwhile (False) has nothing to do."""
    alone = bool(tuples(conn, "SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, LOCK_RETIRE))[0][0])
    try:
        yield alone
    finally:
        if alone and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCK_CLASS, LOCK_RETIRE))


def _retire_days(conn: Connection[Any], schema: str) -> tuple[list[str], dict[str, int]]:
    _finish_half_done(conn, schema)
    last_day = database_now(conn).date() - _window(conn, schema) - timedelta(days=1)
    dropped: list[str] = []
    kept: dict[str, int] = {}
    for day in _days_before(conn, schema, last_day):
        unfinished = _unfinished(conn, schema, day)
        if unfinished:
            kept[day.isoformat()] = unfinished
        else:
            dropped += _retire_day(conn, schema, day)
    _prune_attempts(conn, schema, last_day)
    return dropped, kept


def _window(conn: Connection[Any], schema: str) -> timedelta:
    statement = sql.SQL("SELECT max(window_seconds) FROM {}").format(sql.Identifier(schema, "consumers"))
    longest = tuples(conn, statement)[0][0]
    return WINDOW_DEFAULT if longest is None else timedelta(seconds=longest)


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
    return int(tuples(conn, statement, {"low": low, "high": high})[0][0])


def _retire_day(conn: Connection[Any], schema: str, day: date) -> list[str]:
    """Both partitions of this day, or the one that is left of them after a crash between the two."""
    there = {name for name, _ in attached(conn, schema)}
    names = [name for table in PARTITIONED if (name := partition_name(table, day)) in there]
    for name in names:
        _detach(conn, schema, name)
        _drop(conn, schema, name)
    return names


def _detach(conn: Connection[Any], schema: str, name: str) -> None:
    """Begun if it was not, and finished if it was: waiting for old transactions may end half way."""
    parent, child = sql.Identifier(schema, name.rpartition("_p")[0]), sql.Identifier(schema, name)

    def next_step() -> sql.Composed:
        how = sql.SQL("FINALIZE" if (name, True) in attached(conn, schema) else "CONCURRENTLY")
        return sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(parent, child, how)

    _patiently(conn, next_step)


def _drop(conn: Connection[Any], schema: str, name: str) -> None:
    statement = sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name))
    _patiently(conn, lambda: statement)


def _patiently(conn: Connection[Any], statement: Callable[[], sql.Composed]) -> None:
    """Short waits for the lock, several times: a long wait would make everybody queue up behind it."""
    conn.execute("SET lock_timeout TO '1s'")
    for left in reversed(range(TRIES)):
        try:
            conn.execute(statement())
            return
        except psycopg.errors.LockNotAvailable:
            if not left:
                raise


def _finish_half_done(conn: Connection[Any], schema: str) -> None:
    """What an upkeep that died left behind: a detach half done, or a detached table."""
    for name, pending in attached(conn, schema):
        if pending:
            _detach(conn, schema, name)
    there = {name for name, _ in attached(conn, schema)}
    rows = tuples(
        conn,
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname ~ '^(inbox|intents)_p[0-9]{8}$'",
        (schema,),
    )
    for (name,) in rows:
        if name not in there:
            _drop(conn, schema, name)


def _prune_attempts(conn: Connection[Any], schema: str, last_day: date) -> None:
    low, _ = partition_bounds(last_day)
    statement = sql.SQL(
        "DELETE FROM {attempts} AS a WHERE a.message_id < %s AND NOT EXISTS"
        " (SELECT 1 FROM {inbox} AS i WHERE i.consumer = a.consumer AND i.message_id = a.message_id)"
    ).format(attempts=sql.Identifier(schema, "attempts"), inbox=sql.Identifier(schema, "inbox"))
    conn.execute(statement, (low,))


class UpkeepThread:
    """Upkeep within the first half minute and then every hour, until stopped; a failure is loud, and tried again sooner.

    Not at once: consumers that are restarted again and again must not do upkeep again and again. (A partition that is
    missing meanwhile is made by the take that misses it, if its role may.)
    """

    def __init__(
        self,
        database: Database,
        *,
        first_after_seconds: tuple[float, float] = FIRST_AFTER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._database = database
        self._first_after_seconds = first_after_seconds
        self._retry_seconds = retry_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onceward-upkeep", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait_seconds = random.uniform(*self._first_after_seconds)
        failures = 0
        while not self._stop.wait(wait_seconds):
            try:
                self._upkeep()
            except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; tried again
                failures += 1
                wait_seconds = min(self._retry_seconds * 2 ** (failures - 1), EVERY_SECONDS)
                logger.error("upkeep failed, it is tried again in %.0f s: %s", wait_seconds, _with_remedy(error))
            else:
                failures = 0
                wait_seconds = EVERY_SECONDS

    def _upkeep(self) -> None:
        with self._database.connection() as conn:
            upkeep(conn, self._database.schema)
            conn.execute("SET lock_timeout TO '1s'")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)


def _with_remedy(error: Exception) -> str:
    """The error; where it is a missing right, also what to do. Only the owner of a table may attach or drop partitions."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if getattr(error, "sqlstate", None) != psycopg.errors.InsufficientPrivilege.sqlstate:
        return text
    return (
        f"{text}; without upkeep no message is taken once the partitions end, a few days from now: run `onceward upkeep` "
        f"every day as the owner of the tables, or make this role a member of the owner (GRANT owner TO role)"
    )
