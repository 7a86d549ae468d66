"""Partitions of inbox and intents, one day each.

They are made before they are needed, and dropped when no duplicate can come back.

Names and bounds of partitions; making them; upkeep, which also retires the days that are past every window; and the thread
that does upkeep beside a consumer. `onceward upkeep` does it once. Two at the same time do it once.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from hashlib import sha256
from typing import Any, Final, LiteralString, NamedTuple, cast
from uuid import UUID

import psycopg
from psycopg import Connection, sql

from onceward.database import Database, tuples
from onceward.message import parse_uuid7, uuid7_at
from onceward.statements import SCHEMA_DEFAULT, statements
from onceward.steps import Steps, all_rows, carry_out, in_transaction
from onceward.untimed_rows import prune_untimed

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
STOP_SECONDS_MAX: Final = 5.0
CLOCKS_APART_SECONDS_MAX: Final = 3600.0
_EPOCH: Final = date(1970, 1, 1)  # no UUIDv7 is older


def lock_key(schema: str, purpose: int) -> tuple[int, int]:
    """The advisory lock of this schema for this purpose."""
    # By schema: upkeep of one schema does not wait for that of another.
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


def days_of(names: Iterable[str]) -> set[date]:
    """The days of those of these tables that are partitions."""
    return {day for name in names if (day := partition_day(name)) is not None}


def partition_bounds(day: date) -> tuple[UUID, UUID]:
    """The smallest UUIDv7 of this day (UTC), and that of the next."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first = int(midnight.timestamp() * 1000)
    return uuid7_at(first), uuid7_at(first + 86_400_000)


def make_partitions(
    conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT, days: Sequence[date] | None = None
) -> list[str]:
    """Partitions of inbox and intents exist for `days`; returns the new ones.

    The default is from yesterday to three days ahead.

    Not for a day at or before the youngest that was ever retired: what was finished there would be taken as new.
    Crash in it: nothing is made, or a whole partition.
    """
    return carry_out(conn, make_partitions_steps(schema=schema, days=days))


def make_partitions_steps(*, schema: str, days: Sequence[date] | None = None) -> Steps[list[str]]:
    """`make_partitions`, as steps."""
    wanted = days if days is not None else (yield from _days_around())
    return (yield from in_transaction(_make_missing(schema, wanted)))


def make_coming_partitions_steps(*, schema: str) -> Steps[list[str]]:
    """As `make_partitions`, outside any transaction: where none is missing, no right to make one is needed."""
    wanted = yield from _days_around()
    # Not in make_partitions itself: inside a transaction, an older snapshot may show a day that has been retired since.
    if not (yield from _missing(schema, wanted)):
        return []
    return (yield from make_partitions_steps(schema=schema, days=wanted))


def _make_missing(schema: str, days: Sequence[date]) -> Steps[list[str]]:
    yield from all_rows("SELECT pg_advisory_xact_lock(%s, %s)", lock_key(schema, LOCK_UPKEEP))
    yield from all_rows("SET LOCAL lock_timeout TO '2s'")
    # Read under its lock, which is held until the partitions are committed: no day can be retired meanwhile.
    [(retired,)] = yield from all_rows(statements(schema)["retired_hold"])
    allowed = [day for day in days if retired is None or day > retired]
    made: list[str] = []
    for table, day in (yield from _missing(schema, allowed)):
        made.append((yield from _make_partition(schema, table, day)))
    return made


def _missing(schema: str, days: Sequence[date]) -> Steps[list[tuple[str, date]]]:
    existing = {name for name, _ in (yield from _attached_steps(schema))}
    return [(table, day) for day in days for table in PARTITIONED if partition_name(table, day) not in existing]


def make_partition_for(conn: Connection[Any], message_id: str, *, schema: str = SCHEMA_DEFAULT) -> list[str]:
    """The partitions that this id falls into exist, unless its day was retired.

    Returns the new ones.
    """
    return carry_out(conn, make_partition_for_steps(message_id, schema=schema))


def make_partition_for_steps(message_id: str, *, schema: str) -> Steps[list[str]]:
    """`make_partition_for`, as steps."""
    timed = parse_uuid7(message_id)
    # An untimed id has no day: the partition of such ids came with the schema, and stays.
    return [] if timed is None else (yield from make_partitions_steps(schema=schema, days=[day_of(timed)]))


def day_of(message_id: UUID) -> date:
    """The day (UTC) of this UUIDv7's own time."""
    return datetime.fromtimestamp((message_id.int >> 80) / 1000, UTC).date()


def _days_around() -> Steps[list[date]]:
    today = (yield from _now_steps()).date()
    return [today + timedelta(days=offset) for offset in range(-1, DAYS_AHEAD + 1)]


def _make_partition(schema: str, table: str, day: date) -> Steps[str]:
    name = partition_name(table, day)
    # CREATE TABLE (LIKE), and ATTACH below: a CREATE TABLE ... PARTITION OF would wait behind every open handler, and
    # every other session would wait behind it.
    create = sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL)")
    yield from all_rows(create.format(sql.Identifier(schema, name), sql.Identifier(schema, table)))
    for (owner,) in (yield from all_rows(statements(schema)["partition_owner"], {"table": f"{schema}.{table}"})):
        change = sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(schema, name), sql.Identifier(owner))
        yield from all_rows(change)
    yield from all_rows(attach(schema, table, day))
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


def attached(conn: Connection[Any], *, schema: str) -> list[tuple[str, bool]]:
    """(name, its detaching is half done) of every day's partition of inbox and intents."""
    return carry_out(conn, _attached_steps(schema))


def _attached_steps(schema: str) -> Steps[list[tuple[str, bool]]]:
    params = {"schema": schema, "tables": list(PARTITIONED)}
    found = yield from all_rows(statements(schema)["partitions_attached"], params)
    return [(row[0], row[1]) for row in found]


def database_now(conn: Connection[Any]) -> datetime:
    """The database's clock, in UTC: the only clock that decides anything."""
    return carry_out(conn, _now_steps())


def _now_steps() -> Steps[datetime]:
    [(now,)] = yield from all_rows("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
    return cast("datetime", now).replace(tzinfo=UTC)


class RetireSkipped(Enum):
    """Why an upkeep retired no day, although some may be due."""

    BUSY = "another upkeep of this schema is at work"
    CLOCK = "the clocks of the database and of this process are more than an hour apart"


class UpkeepResult(NamedTuple):
    """What one upkeep did: the partitions that it made, and those that it dropped.

    `unfinished`: days that are due, but were not dropped because messages there are not finished, and how many.
    `retire_skipped`: why no day was looked at; None: all that are due were.
    `pruned`: messages with untimed ids that were over, and past their consumer's window.
    """

    made: list[str]
    dropped: list[str]
    unfinished: dict[str, int]
    retire_skipped: RetireSkipped | None = None
    pruned: int = 0


def upkeep(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> UpkeepResult:
    """Partitions exist for the next days.

    Those that are past the longest window of all consumers, and all done, are dropped. Of messages with untimed ids, which
    have no day, those that are over and past their consumer's window are pruned.

    A partition with a pending or parked message, or an intent without an answer, is never dropped. A day counts as retired,
    for every process and for ever, from before its partitions are touched: they are never made again.
    `conn` must be in autocommit mode (DETACH ... CONCURRENTLY cannot run in a transaction); its settings stay as they are.

    Crash anywhere in it: the day counts as retired, and the next upkeep finishes it (or finds something unfinished there,
    and keeps its partitions).
    """
    made = make_partitions(conn, schema=schema)
    with _retire_lock(conn, schema) as locked:
        skipped = _clock_problem(conn) if locked else RetireSkipped.BUSY
        if skipped is not None:
            return UpkeepResult(made, [], {}, skipped)
        dropped, unfinished = Retirement(conn, schema).retire_due_days()
        # After the days: until then, windows that nobody has any more still count.
        pruned = prune_untimed(conn, schema=schema, window_max=WINDOW_MAX)
    return UpkeepResult(made, dropped, unfinished, pruned=pruned)


@contextmanager
def _retire_lock(conn: Connection[Any], schema: str) -> Iterator[bool]:
    """One upkeep of a schema at a time retires days.

    False: another one is at it, and nothing is left to do.
    """
    key = lock_key(schema, LOCK_RETIRE)
    # A session's lock: DETACH ... CONCURRENTLY cannot run in a transaction. It goes with the session, however that ends.
    locked = bool(tuples(conn, "SELECT pg_try_advisory_lock(%s, %s)", key)[0][0])
    try:
        yield locked
    finally:
        if locked and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s, %s)", key)


def _clock_problem(conn: Connection[Any]) -> RetireSkipped | None:
    """A database whose clock has jumped a month ahead must not throw that month away."""
    # The clock of this process decides nothing else, and here it can only refuse: nothing is lost by retiring later.
    apart_seconds = abs((database_now(conn) - datetime.now(UTC)).total_seconds())
    if apart_seconds <= CLOCKS_APART_SECONDS_MAX:
        return None
    logger.error(
        "upkeep retires no day: the clocks of the database and of this process are %.0f s apart; correct the wrong one",
        apart_seconds,
    )
    return RetireSkipped.CLOCK


class Retirement:
    """Retires the days of one schema that are due.

    It needs a connection in autocommit mode, and the lock of `upkeep`.
    """

    def __init__(self, conn: Connection[Any], schema: str) -> None:
        self._conn = conn
        self._schema = schema
        self._statements = statements(schema)

    def retire_due_days(self) -> tuple[list[str], dict[str, int]]:
        """Returns the tables that were dropped, and the days that had to stay.

        Each of these days comes with the number of rows that are not finished there.
        """
        first_kept_day = self._first_kept_day()
        dropped: list[str] = []
        unfinished: dict[str, int] = {}
        # Postgres has room for one detach that is half done: it is finished before another one starts.
        half_done = self._half_done_days()
        due = {day for day in days_of(name for name, _ in self._attached()) if day < first_kept_day}
        for day in [*sorted(half_done), *sorted(due - half_done)]:
            names = self._tables_of(day)
            rows = self._retire(day, names)
            if rows:
                unfinished[day.isoformat()] = rows
            else:
                dropped += names
        self._prune_attempts(first_kept_day)
        return dropped, unfinished

    def _first_kept_day(self) -> date:
        """The day that is still inside the longest window: what lies before it is due."""
        self._forget_windows()
        longest = tuples(self._conn, self._statements["window_longest"])[0][0]
        window = WINDOW_DEFAULT if longest is None else timedelta(seconds=min(longest, WINDOW_MAX.total_seconds()))
        # One day more: the window ends somewhere within a day, and that whole day is kept.
        return max(_EPOCH, database_now(self._conn).date() - window - timedelta(days=1))

    def _forget_windows(self) -> None:
        for name, seconds in tuples(self._conn, self._statements["consumer_windows_forget"]):
            logger.warning(
                "forgetting the window of %.0f s of consumer %r: no process with that window was seen for a day",
                seconds, name,
            )  # fmt: skip

    def _half_done_days(self) -> set[date]:
        """The days that an upkeep that died has left detached, or half detached."""
        whole = {name for name, half_detached in self._attached() if not half_detached}
        return days_of(name for name in self._all_tables() if name not in whole)

    def _attached(self) -> list[tuple[str, bool]]:
        return attached(self._conn, schema=self._schema)

    def _all_tables(self) -> list[str]:
        rows = tuples(self._conn, self._statements["partition_tables"], {"schema": self._schema})
        return [row[0] for row in rows]

    def _tables_of(self, day: date) -> list[str]:
        """The tables of this day, the inbox's first, attached or not.

        It is only one where an upkeep died between the two.
        """
        return [name for name in self._all_tables() if partition_day(name) == day]

    def _retire(self, day: date, names: Sequence[str]) -> int:
        """The tables of this day are dropped; returns 0.

        Or they are partitions as before; returns how many rows are not finished there.

        Crash after `retire`: the day is retired, and its partitions, where they are still attached, serve on as they did.
        """
        unfinished = self._unfinished(names)
        if not unfinished:
            self._execute_patiently(lambda: self._statements["retire"], {"day": day})
            # The inbox's table goes first and comes back last: where an inbox row can be seen, so can its intents.
            for name in names:
                self._detach(name)
            # A process whose window is longer may have taken a message of this day since the first look.
            unfinished = self._unfinished(names)
        for name in reversed(names):
            if unfinished:
                self._keep(name, day)
            else:
                self._drop(name)
        return unfinished

    def _unfinished(self, names: Sequence[str]) -> int:
        """How many rows of these tables are not over: neither done nor discarded.

        Each is asked by its own name: a detached one cannot be seen through its parent.
        """
        counts = sql.SQL(" + ").join(
            sql.SQL("(SELECT count(*) FROM {} WHERE state IN ('pending', 'parked', 'unknown'))").format(
                self._identifier(name)
            )
            for name in names
        )
        return int(tuples(self._conn, sql.SQL("SELECT {}").format(counts))[0][0])

    def _detach(self, name: str) -> None:
        """The table is not a partition any more.

        That is so also where an earlier detach was left half done.
        """
        parent, child = self._identifier(name.rpartition("_p")[0]), self._identifier(name)
        if name not in dict(self._attached()):
            return

        def next_step() -> sql.Composed:
            # Asked before each try: a CONCURRENTLY that gives up waiting for old transactions leaves a half-done detach.
            how = sql.SQL("FINALIZE" if (name, True) in self._attached() else "CONCURRENTLY")
            return sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(parent, child, how)

        self._execute_patiently(next_step)

    def _keep(self, name: str, day: date) -> None:
        """The table is a partition, as it was: also when a detach of it was started."""
        if (name, False) in self._attached():
            return
        self._detach(name)
        statement = attach(self._schema, name.rpartition("_p")[0], day)
        self._execute_patiently(lambda: statement)

    def _drop(self, name: str) -> None:
        statement = sql.SQL("DROP TABLE {}").format(self._identifier(name))
        self._execute_patiently(lambda: statement)

    def _execute_patiently(
        self, statement: Callable[[], LiteralString | sql.Composed], params: dict[str, Any] | None = None
    ) -> None:
        """The statement is carried out, with short waits for its lock, several times."""
        # A long wait for one of these locks would make every other session queue up behind it.
        with self._short_lock_waits():
            for tries_left in reversed(range(TRIES)):
                try:
                    self._conn.execute(statement(), params)
                    return
                except psycopg.errors.LockNotAvailable:
                    if not tries_left:
                        raise

    @contextmanager
    def _short_lock_waits(self) -> Iterator[None]:
        """Inside, the session waits for a lock for one second.

        Afterwards it waits as long as it did before.
        """
        before = tuples(self._conn, "SHOW lock_timeout")[0][0]
        # SET, not SET LOCAL: there is no transaction here in which it could be local.
        self._conn.execute(self._statements["lock_timeout_set"], {"lock_timeout": "1s"})
        try:
            yield
        finally:
            if not self._conn.closed:
                self._conn.execute(self._statements["lock_timeout_set"], {"lock_timeout": before})

    def _prune_attempts(self, first_kept_day: date) -> None:
        low, _ = partition_bounds(first_kept_day)
        statement = sql.SQL(
            "DELETE FROM {attempts} AS a WHERE a.message_id < %s AND NOT EXISTS"
            " (SELECT 1 FROM {inbox} AS i WHERE i.consumer = a.consumer AND i.message_id = a.message_id)"
        ).format(attempts=self._identifier("attempts"), inbox=self._identifier("inbox"))
        self._conn.execute(statement, (low,))

    def _identifier(self, table: str) -> sql.Identifier:
        return sql.Identifier(self._schema, table)


class UpkeepThread:
    """Upkeep within the first half minute and then every hour, until stopped.

    A failure is logged, and tried again sooner.

    Not at once: consumers that are restarted again and again must not do upkeep again and again. (A partition that is
    missing meanwhile is made by the take that misses it, if its role has the right.)
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
        """`seen` records each hour that the consumer is still here, with its window.

        Without `upkeep` the thread does nothing else.
        """
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
                    self._seen(conn)
                    if self._upkeep:
                        upkeep(conn, schema=self._database.schema)
            except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; tried again
                failures += 1
                wait_seconds = min(self._retry_seconds * 2 ** (failures - 1), EVERY_SECONDS)
                logger.error("upkeep failed; retrying in %.0f s: %s", wait_seconds, _with_remedy(error))
            else:
                failures = 0
                wait_seconds = EVERY_SECONDS

    def stop(self) -> None:
        """The thread has ended, or is in an upkeep that ends with the process."""
        self._stop.set()
        self._thread.join(timeout=STOP_SECONDS_MAX)


def _with_remedy(error: Exception) -> str:
    """The error; where it is a missing right, also what to do.

    Only the owner of a table may attach or drop partitions.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if getattr(error, "sqlstate", None) != psycopg.errors.InsufficientPrivilege.sqlstate:
        return text
    return (
        f"{text}; without upkeep no message is taken once the partitions end, a few days from now: run `onceward upkeep` "
        f"every day as the owner of the tables, or make this role a member of the owner (GRANT owner TO role)"
    )
