"""Partitions of inbox and intents, one day each: there before they are needed, gone when no duplicate can come back.

`run` does it from a thread of its own; `onceward upkeep` does it once. Whoever comes second finds nothing to do.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from hashlib import sha256
from typing import Any, Final, LiteralString, NamedTuple, cast
from uuid import UUID

import psycopg
from psycopg import Connection, sql

from onceward.database import Database, tuples
from onceward.message import uuid7_at
from onceward.statements import SCHEMA_DEFAULT, statements

logger = logging.getLogger("onceward")
WINDOW_DEFAULT: Final = timedelta(days=30)
WINDOW_MAX: Final = timedelta(days=36_525)  # a century: far below what Postgres and Python can count
PARTITIONED: Final = ("inbox", "intents")
DAYS_AHEAD: Final = 3
LOCK_CLASS: Final = 0x6F6E6365  # "once": the first half of every advisory lock of ours
LOCK_UPKEEP: Final = 2
LOCK_RETIRE: Final = 3
EVERY_SECONDS: Final = 3600.0
FIRST_AFTER_SECONDS: Final = (5.0, 30.0)
RETRY_SECONDS: Final = 60.0
TRIES: Final = 5
CLOCKS_APART_SECONDS_MAX: Final = 3600.0
_EPOCH: Final = date(1970, 1, 1)  # no UUIDv7 is older


def lock_key(schema: str, purpose: int) -> tuple[int, int]:
    """The advisory lock of this schema for this purpose: upkeep of one schema does not wait for that of another."""
    digest = sha256(f"{purpose} {schema}".encode()).digest()
    return LOCK_CLASS, int.from_bytes(digest[:4], "big", signed=True)


def partition_name(table: str, day: date) -> str:
    return f"{table}_p{day:%Y%m%d}"


def partition_day(name: str) -> date | None:
    """The day of a partition, from its name; None for any other table."""
    _, _, digits = name.rpartition("_p")
    try:
        return datetime.strptime(digits, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def partition_bounds(day: date) -> tuple[UUID, UUID]:
    """The smallest UUIDv7 of this day (UTC), and that of the next."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first = int(midnight.timestamp() * 1000)
    return uuid7_at(first), uuid7_at(first + 86_400_000)


def make_partitions(conn: Connection[Any], schema: str = SCHEMA_DEFAULT, *, days: list[date] | None = None) -> list[str]:
    """Partitions of inbox and intents exist for `days` (default: yesterday to three days ahead); returns the new ones.

    Not for a day at or before the youngest that was ever retired: what was finished there would be taken as new.
    CREATE TABLE (LIKE) and then ATTACH: a CREATE TABLE ... PARTITION OF would wait behind every open handler, and
    everybody else behind it. Crash in it: nothing is made, or a whole partition.
    """
    wanted = days if days is not None else _days_around(conn)
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock_key(schema, LOCK_UPKEEP))
        conn.execute("SET LOCAL lock_timeout TO '2s'")
        retired = cast("date | None", tuples(conn, statements(schema)["retired_hold"])[0][0])
        there = {name for name, _ in attached(conn, schema)}
        pairs = [(table, day) for day in wanted if retired is None or day > retired for table in PARTITIONED]
        missing = [(table, day) for table, day in pairs if partition_name(table, day) not in there]
        return [_make_partition(conn, schema, table, day) for table, day in missing]


def make_partition_for(conn: Connection[Any], message_id: str, schema: str = SCHEMA_DEFAULT) -> list[str]:
    """The partitions that this UUIDv7 falls into exist, unless its day was retired."""
    return make_partitions(conn, schema, days=[day_of(UUID(message_id))])


def day_of(message_id: UUID) -> date:
    """The day (UTC) of this UUIDv7's own time."""
    return datetime.fromtimestamp((message_id.int >> 80) / 1000, UTC).date()


def _days_around(conn: Connection[Any]) -> list[date]:
    today = database_now(conn).date()
    return [today + timedelta(days=offset) for offset in range(-1, DAYS_AHEAD + 1)]


def _make_partition(conn: Connection[Any], schema: str, table: str, day: date) -> str:
    name = partition_name(table, day)
    create = sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL)")
    conn.execute(create.format(sql.Identifier(schema, name), sql.Identifier(schema, table)))
    for (owner,) in tuples(conn, statements(schema)["partition_owner"], {"table": f"{schema}.{table}"}):
        change = sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(schema, name), sql.Identifier(owner))
        conn.execute(change)
    conn.execute(attach(schema, table, day))
    return name


def attach(schema: str, table: str, day: date) -> sql.Composed:
    """The statement that makes this day's table a partition of `table`."""
    low, high = partition_bounds(day)
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
        sql.Identifier(schema, table),
        sql.Identifier(schema, partition_name(table, day)),
        sql.Literal(str(low)),
        sql.Literal(str(high)),
    )


def attached(conn: Connection[Any], schema: str) -> list[tuple[str, bool]]:
    """(name, its detaching is half done) of every partition of inbox and intents."""
    rows = tuples(conn, statements(schema)["partitions_attached"], {"schema": schema, "tables": list(PARTITIONED)})
    return [(row[0], row[1]) for row in rows]


def database_now(conn: Connection[Any]) -> datetime:
    """The database's clock, in UTC: the only clock that decides anything."""
    row = tuples(conn, "SELECT clock_timestamp() AT TIME ZONE 'UTC'")[0]
    return cast("datetime", row[0]).replace(tzinfo=UTC)


class HeldBack(Enum):
    """Why an upkeep retired nothing, although days may be due."""

    BUSY = "another upkeep of this schema is at work"
    CLOCK = "the clocks of the database and of this process are more than an hour apart"


class Upkept(NamedTuple):
    """What one upkeep did. `kept`: days that are due but hold messages that are not finished, with the count.

    `held_back`: why no day was looked at; None: all that are due were.
    """

    made: list[str]
    dropped: list[str]
    kept: dict[str, int]
    held_back: HeldBack | None = None


def upkeep(conn: Connection[Any], schema: str) -> Upkept:
    """Partitions exist for the next days; those past the longest window of all consumers, and all done, are dropped.

    A partition with a pending or parked message, or an intent without an answer, is never dropped. A day counts as retired,
    for every process and for ever, from before its partitions are touched: they are never made again.
    Crash anywhere in it: the day counts as retired, and the next upkeep finishes it (or finds something unfinished there,
    and keeps its partitions).
    `conn` must be in autocommit mode (DETACH ... CONCURRENTLY cannot run in a transaction).
    """
    made = make_partitions(conn, schema)
    with _alone(conn, schema) as alone:
        held_back = _held_back(conn) if alone else HeldBack.BUSY
        if held_back is not None:
            return Upkept(made, [], {}, held_back)
        dropped, kept = _retire_days(conn, schema)
    return Upkept(made, dropped, kept)


@contextmanager
def _alone(conn: Connection[Any], schema: str) -> Iterator[bool]:
    """One upkeep of a schema at a time retires; whoever comes meanwhile (False) has nothing to do."""
    key = lock_key(schema, LOCK_RETIRE)
    alone = bool(tuples(conn, "SELECT pg_try_advisory_lock(%s, %s)", key)[0][0])
    try:
        yield alone
    finally:
        if alone and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s, %s)", key)


def _held_back(conn: Connection[Any]) -> HeldBack | None:
    """A database whose clock has jumped a month ahead must not throw that month away.

    The clock of this process decides nothing else, and here it can only refuse: nothing is lost by retiring later.
    """
    apart_seconds = abs((database_now(conn) - datetime.now(UTC)).total_seconds())
    if apart_seconds <= CLOCKS_APART_SECONDS_MAX:
        return None
    logger.error(
        "upkeep retires nothing: the clocks of the database and of this process are %.0f s apart; set the wrong one right",
        apart_seconds,
    )
    return HeldBack.CLOCK


def _retire_days(conn: Connection[Any], schema: str) -> tuple[list[str], dict[str, int]]:
    last_day = _last_day(conn, schema)
    dropped: list[str] = []
    kept: dict[str, int] = {}
    # Postgres has room for one detach that is half done: it is finished before another one begins.
    half_done = _half_done(conn, schema)
    for day in [*sorted(half_done), *sorted(_days_before(conn, schema, last_day) - half_done)]:
        names = _tables(conn, schema, day)
        unfinished = _retire_day(conn, schema, day, names)
        if unfinished:
            kept[day.isoformat()] = unfinished
        else:
            dropped += names
    _prune_attempts(conn, schema, last_day)
    return dropped, kept


def _last_day(conn: Connection[Any], schema: str) -> date:
    """The day that is still inside the longest window: what lies before it is due."""
    _forget_windows(conn, schema)
    longest = tuples(conn, statements(schema)["window_longest"])[0][0]
    window = WINDOW_DEFAULT if longest is None else timedelta(seconds=min(longest, WINDOW_MAX.total_seconds()))
    return max(_EPOCH, database_now(conn).date() - window - timedelta(days=1))


def _forget_windows(conn: Connection[Any], schema: str) -> None:
    for name, seconds in tuples(conn, statements(schema)["consumer_windows_forget"]):
        logger.warning(
            "the window of %.0f s of consumer %r is given up: no process of it with that window was seen for a day",
            seconds, name,
        )  # fmt: skip


def _days_before(conn: Connection[Any], schema: str, last_day: date) -> set[date]:
    """The days whose partitions end before `last_day` began."""
    days = {partition_day(name) for name, _ in attached(conn, schema)}
    return {day for day in days if day is not None and day < last_day}


def _half_done(conn: Connection[Any], schema: str) -> set[date]:
    """The days that a dead upkeep has left with a detached table, or with a detach half done."""
    whole = {name for name, pending in attached(conn, schema) if not pending}
    days = {partition_day(name) for name in _all_tables(conn, schema) if name not in whole}
    return {day for day in days if day is not None}


def _all_tables(conn: Connection[Any], schema: str) -> list[str]:
    return [row[0] for row in tuples(conn, statements(schema)["partition_tables"], {"schema": schema})]


def _tables(conn: Connection[Any], schema: str, day: date) -> list[str]:
    """The tables of this day, the inbox's first, attached or not; one only, where an upkeep died between the two."""
    return [name for name in _all_tables(conn, schema) if partition_day(name) == day]


def _retire_day(conn: Connection[Any], schema: str, day: date, names: list[str]) -> int:
    """The tables of this day are dropped; or, with how many messages are not finished there, they are partitions as before.

    The inbox's table goes first and comes back last: where an inbox row can be seen, so can its intents.
    Crash after `retire`: the day is retired, and its partitions, where they are still attached, serve on as they did.
    """
    unfinished = _unfinished(conn, schema, names)
    if not unfinished:
        _patiently(conn, lambda: statements(schema)["retire"], {"day": day})
        for name in names:
            _detach(conn, schema, name)
        # A process whose window is longer may have taken a message of this day since the first look.
        unfinished = _unfinished(conn, schema, names)
    for name in reversed(names):
        if unfinished:
            _keep(conn, schema, name, day)
        else:
            _drop(conn, schema, name)
    return unfinished


def _unfinished(conn: Connection[Any], schema: str, names: list[str]) -> int:
    """How many rows of these tables are not done. Each by its own name: a detached one is seen through no other."""
    counts = sql.SQL(" + ").join(
        sql.SQL("(SELECT count(*) FROM {} WHERE state <> 'done')").format(sql.Identifier(schema, name)) for name in names
    )
    return int(tuples(conn, sql.SQL("SELECT {}").format(counts))[0][0])


def _detach(conn: Connection[Any], schema: str, name: str) -> None:
    """Finishing if it was not, and finished if it was: waiting for old transactions may end half way."""
    parent, child = sql.Identifier(schema, name.rpartition("_p")[0]), sql.Identifier(schema, name)
    if name not in dict(attached(conn, schema)):
        return

    def next_step() -> sql.Composed:
        how = sql.SQL("FINALIZE" if (name, True) in attached(conn, schema) else "CONCURRENTLY")
        return sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(parent, child, how)

    _patiently(conn, next_step)


def _keep(conn: Connection[Any], schema: str, name: str, day: date) -> None:
    """The table is a partition, as it was: also when a detach of it was begun."""
    if (name, False) in attached(conn, schema):
        return
    _detach(conn, schema, name)
    statement = attach(schema, name.rpartition("_p")[0], day)
    _patiently(conn, lambda: statement)


def _drop(conn: Connection[Any], schema: str, name: str) -> None:
    statement = sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name))
    _patiently(conn, lambda: statement)


def _patiently(
    conn: Connection[Any], statement: Callable[[], LiteralString | sql.Composed], params: dict[str, Any] | None = None
) -> None:
    """Short waits for the lock, several times: a long wait would make everybody queue up behind it."""
    conn.execute("SET lock_timeout TO '1s'")
    for left in reversed(range(TRIES)):
        try:
            conn.execute(statement(), params)
            return
        except psycopg.errors.LockNotAvailable:
            if not left:
                raise


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
        seen: Callable[[Connection[Any]], object],
        *,
        upkeep: bool = True,
        first_after_seconds: tuple[float, float] = FIRST_AFTER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`seen` says each hour that the consumer is still here, with its window; without `upkeep` that is all."""
        self._database = database
        self._seen = seen
        self._upkeep = upkeep
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
                with self._database.connection() as conn:
                    self._turn(conn)
            except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; tried again
                failures += 1
                wait_seconds = min(self._retry_seconds * 2 ** (failures - 1), EVERY_SECONDS)
                logger.error("upkeep failed, it is tried again in %.0f s: %s", wait_seconds, _with_remedy(error))
            else:
                failures = 0
                wait_seconds = EVERY_SECONDS

    def _turn(self, conn: Connection[Any]) -> None:
        self._seen(conn)
        if self._upkeep:
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
