"""The window only ever forgets forward: what was retired stays retired, for every process and whatever its window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.support import rows
from tests.support.days import OLD_SECONDS, SCHEMA, names_of, old_day, old_message, partitions, tables
from tests.support.deliveries import delivery, order, order_aged
from tests.support.shop import SHAPES, of_shape
from tests.support.waiting import Background, until, until_blocked

from onceward.consumer import OpenConsumer
from onceward.day_partitions import (
    LOCK_RETIRE,
    RetireSkipped,
    UpkeepThread,
    database_now,
    day_of,
    lock_key,
    make_partition_for,
    partition_name,
    upkeep,
)
from onceward.inbox import Inbox, InboxTable, TakeResult
from onceward.message import Message
from onceward.schema import migrate
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]
Opened = Callable[..., OpenConsumer]


class Interrupted(psycopg.Connection[Any]):
    """A connection that calls `before(number, statement)` before each of its statements."""

    before: Callable[[int, str], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.before = lambda _number, _statement: None
        self._numbers = count(1)
        self.cursor_factory = Interrupting


class Interrupting(psycopg.Cursor[Any]):
    """Its cursors."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        conn: Any = self.connection
        conn.before(next(conn._numbers), query if isinstance(query, str) else query.as_string(conn))
        return super().execute(query, params, **options)


@pytest.fixture
def interrupted(dsn: str) -> Iterator[Callable[..., Interrupted]]:
    """Connections that may be interrupted before each statement."""
    with ExitStack() as stack:

        def connected(before: Callable[[int, str], None]) -> Interrupted:
            conn = Interrupted.connect(dsn, autocommit=True)
            stack.callback(conn.close)
            conn.before = before
            return conn

        yield connected


def widest(db: Db, message: Message) -> Inbox:
    """The inbox of a process of this consumer for whose window `message` is young."""
    wide = timedelta(days=365)
    table = InboxTable(rows.CONSUMER, window=wide)
    assert table.read(db, table.take_params(message, "done", lock_timeout="0") or {}).age == "current"
    return Inbox(rows.CONSUMER, window=wide)


def take(db: Db, message: Message) -> TakeResult:
    with db.transaction():
        return widest(db, message).take(db, message).result


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_done_on_a_retired_day_is_outside_every_window(shape: str, opened: Opened, db: Db) -> None:
    """Its window was seven days when upkeep dropped the day, and is a year now, as for whoever redrives a dead letter."""
    message = order_aged(db, OLD_SECONDS)
    make_partition_for(db, message.id, schema=SCHEMA)
    wide = of_shape(shape, window=timedelta(days=365))
    assert opened(wide).deliver(delivery(message)) == ACK
    opened(of_shape(shape, window=timedelta(days=7)))
    rows.age_windows(db, timedelta(days=7))
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(old_day(db))
    consumer = opened(wide)
    assert [consumer.deliver(delivery(message)) for _ in range(3)] == [ACK] * 3
    assert rows.books(db, message) == rows.Books(None, None, 0, ["outside window"], 1)
    assert "retired" in rows.parked(db)[0].detail


def test_the_partition_of_a_retired_day_is_never_made_again(db: Db) -> None:
    message = old_message(db)
    upkeep(db, schema=SCHEMA)
    assert make_partition_for(db, message.id, schema=SCHEMA) == []
    assert make_partition_for(db, order_aged(db, OLD_SECONDS + 86_400).id, schema=SCHEMA) == []
    assert len(make_partition_for(db, order_aged(db, OLD_SECONDS - 86_400).id, schema=SCHEMA)) == 2
    assert take(db, message) is TakeResult.OUTSIDE_WINDOW


def test_the_memory_of_what_was_retired_only_grows(db: Db) -> None:
    """An older day was kept, and is retired after a younger one."""
    older = order_aged(db, 2 * OLD_SECONDS)
    make_partition_for(db, older.id, schema=SCHEMA)
    widest(db, older).claim(db, older)
    young = old_message(db)
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(old_day(db))
    db.execute("UPDATE onceward.inbox SET state = 'done'")
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(day_of(UUID(older.id)))
    assert rows.scalar(db, "SELECT day FROM onceward.retired") == day_of(UUID(young.id))
    assert take(db, young) is TakeResult.OUTSIDE_WINDOW


def test_a_day_that_is_kept_below_a_retired_one_serves_on(db: Db) -> None:
    """Its partition is there, so uniqueness is real there."""
    kept = order_aged(db, OLD_SECONDS + 86_400)
    make_partition_for(db, kept.id, schema=SCHEMA)
    assert widest(db, kept).claim(db, kept).result is TakeResult.TAKEN
    old_message(db)
    done = upkeep(db, schema=SCHEMA)
    assert (set(done.dropped), list(done.unfinished.values())) == (names_of(old_day(db)), [1])
    assert take(db, kept) is TakeResult.IN_FLIGHT
    other = order_aged(db, OLD_SECONDS + 86_400)
    assert (take(db, other), take(db, other)) == (TakeResult.TAKEN, TakeResult.DUPLICATE)


@pytest.mark.parametrize("state", ["pending", "done"])
def test_a_take_between_the_look_and_the_detach_is_not_dropped_unless_it_is_done(
    state: str, db: Db, interrupted: Callable[..., Interrupted]
) -> None:
    """A process with a longer window takes a message of the day after upkeep has found everything there done."""
    old_message(db)
    late = order_aged(db, OLD_SECONDS)

    def take_late(_: int, statement: str) -> None:
        if "DETACH" in statement and names_of(old_day(db)) <= partitions(db):
            if state == "done":
                assert take(db, late) is TakeResult.TAKEN
            else:
                assert widest(db, late).claim(db, late).result is TakeResult.TAKEN

    done = upkeep(interrupted(take_late), schema=SCHEMA)
    if state == "done":
        assert (set(done.dropped), done.unfinished) == (names_of(old_day(db)), {})
        assert take(db, late) is TakeResult.OUTSIDE_WINDOW
    else:
        assert (done.dropped, done.unfinished) == ([], {old_day(db).isoformat(): 1})
        assert names_of(old_day(db)) <= partitions(db)
        assert (rows.state(db, late), take(db, late)) == ("pending", TakeResult.IN_FLIGHT)
        db.execute("UPDATE onceward.inbox SET state = 'done'")
        assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(old_day(db))


@pytest.mark.parametrize("table", ["inbox", "intents"])
def test_a_detached_table_with_something_unfinished_becomes_a_partition_again(table: str, db: Db) -> None:
    """An upkeep died between its detach and its second look."""
    message = old_message(db, "pending")
    name = partition_name(table, old_day(db))
    db.execute(f"ALTER TABLE onceward.{table} DETACH PARTITION onceward.{name} CONCURRENTLY".encode())
    assert upkeep(db, schema=SCHEMA).unfinished == {old_day(db).isoformat(): 1}
    assert names_of(old_day(db)) <= partitions(db)
    assert rows.state(db, message) == "pending"


def test_where_an_inbox_row_can_be_seen_so_can_its_intents(db: Db, interrupted: Callable[..., Interrupted]) -> None:
    """The inbox's table goes first and comes back last: without its intents, a finish would not know what was called."""
    old_message(db)
    late, seen = order_aged(db, OLD_SECONDS), set()
    inbox, intents = (partition_name(table, old_day(db)) for table in ("inbox", "intents"))

    def look(_: int, statement: str) -> None:
        if "DETACH" in statement and rows.inbox_row(db, late) is None and inbox in partitions(db):
            widest(db, late).claim(db, late)
        seen.add((inbox in partitions(db), intents in partitions(db)))

    assert upkeep(interrupted(look), schema=SCHEMA).unfinished
    assert seen == {(True, True), (False, True), (False, False)}


def test_while_upkeep_has_not_decided_a_message_of_that_day_is_given_back(opened: Opened, db: Db) -> None:
    message = old_message(db, "pending")
    db.execute("UPDATE onceward.retired SET day = %s", (old_day(db),))
    name = partition_name("inbox", old_day(db))
    db.execute(f"ALTER TABLE onceward.inbox DETACH PARTITION onceward.{name}".encode())
    consumer = opened(of_shape("transactional", window=timedelta(days=365)))
    assert consumer.deliver(delivery(message)).action == "release"
    assert rows.parked(db) == []


def killed_upkeep(db: Db, interrupted: Callable[..., Interrupted], at: int, first: Callable[[], object]) -> bool:
    """`first`, and then the session of an upkeep is killed, before its statement number `at`; False: it had fewer."""
    reached = []

    def kill(number: int, _: str) -> None:
        if number == at:
            reached.append(number)
            first()
            db.execute("SELECT pg_terminate_backend(%s, 5000)", (victim.info.backend_pid,))

    victim = interrupted(kill)
    with suppress(psycopg.OperationalError):
        upkeep(victim, schema=SCHEMA)
    return bool(reached)


def test_after_an_upkeep_killed_at_any_of_its_statements_nothing_done_is_new(
    db: Db, interrupted: Callable[..., Interrupted]
) -> None:
    """Whatever it leaves, no process takes what was done there; the next upkeep finishes, and the day stays retired."""
    for at in count(1):
        message = old_message(db)
        killed = killed_upkeep(db, interrupted, at, lambda: None)
        assert take(db, message) is not TakeResult.TAKEN, f"killed before statement {at}"
        upkeep(db, schema=SCHEMA)
        assert not names_of(old_day(db)) & tables(db)
        assert take(db, message) is TakeResult.OUTSIDE_WINDOW, f"killed before statement {at}"
        if not killed:
            break
        db.execute("UPDATE onceward.retired SET day = NULL")
    assert at > 20


def test_after_an_upkeep_killed_at_any_of_its_statements_nothing_pending_is_gone(
    db: Db, interrupted: Callable[..., Interrupted]
) -> None:
    """A process with a longer window claims a message just before the kill, where it finds the day served still."""
    results = set()
    for at in count(1):
        old_message(db)
        late = order_aged(db, OLD_SECONDS)
        killed = killed_upkeep(db, interrupted, at, partial(widest(db, late).claim, db, late))
        claimed = rows.inbox_row(db, late) is not None
        done = upkeep(db, schema=SCHEMA)
        assert (rows.state(db, late), bool(done.unfinished)) == (("pending", True) if claimed else (None, False)), at
        assert (names_of(old_day(db)) & partitions(db)) == (names_of(old_day(db)) if claimed else set())
        if not killed:
            break
        results.add(claimed)
        db.execute("DELETE FROM onceward.inbox; UPDATE onceward.retired SET day = NULL")
    assert results == {True, False}


def test_a_day_cannot_be_retired_while_its_partition_is_being_made(
    db: Db, connect: Connect, background: Background
) -> None:
    message, making, upkeeping = old_message(db), connect(autocommit=False), connect()
    making.execute("SELECT 1")
    other = order_aged(db, OLD_SECONDS + 86_400)
    make_partition_for(making, other.id, schema=SCHEMA)
    running = background(upkeep, upkeeping, schema=SCHEMA)
    until_blocked(db, upkeeping)
    making.commit()
    running.result()
    upkeep(db, schema=SCHEMA)
    assert (take(db, message), take(db, other)) == (TakeResult.OUTSIDE_WINDOW, TakeResult.OUTSIDE_WINDOW)


def test_an_older_snapshot_makes_no_partition_that_was_retired_since(db: Db, connect: Connect) -> None:
    message, making = old_message(db), connect(autocommit=False)
    making.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    making.execute("SELECT count(*) FROM onceward.retired")
    making_done = upkeep(db, schema=SCHEMA)
    assert making_done.dropped
    with pytest.raises(psycopg.errors.SerializationFailure):
        make_partition_for(making, message.id, schema=SCHEMA)


# ---- windows of several processes ------------------------------------------------------------------------------------


def test_a_shorter_window_does_not_take_the_longer_one_away_from_a_process_that_runs(
    opened: Opened, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    message = order_aged(db, OLD_SECONDS)
    long = opened(of_shape("transactional", window=timedelta(days=90)))
    assert [long.deliver(delivery(message)).action for _ in range(2)] == ["release", "ack"]
    opened(of_shape("transactional", window=timedelta(days=7)))
    assert any("keeps the longer one" in record.message for record in caplog.records)
    assert upkeep(db, schema=SCHEMA).dropped == []
    assert long.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


def test_a_longer_window_that_nobody_says_for_a_day_is_given_up_and_said(db: Db, caplog: pytest.LogCaptureFixture) -> None:
    old_message(db)
    InboxTable(rows.CONSUMER, window=timedelta(days=90)).seen(db)
    InboxTable(rows.CONSUMER, window=timedelta(days=7)).seen(db)
    rows.age_windows(db, timedelta(days=7))
    assert names_of(old_day(db)) <= set(upkeep(db, schema=SCHEMA).dropped)
    assert any("forgetting the window" in record.message for record in caplog.records)


def test_a_consumer_that_is_stopped_keeps_its_window(db: Db) -> None:
    old_message(db)
    InboxTable(rows.CONSUMER, window=timedelta(days=90)).seen(db)
    InboxTable("another", window=timedelta(days=7)).seen(db)
    rows.age_windows(db, timedelta(days=7))
    assert upkeep(db, schema=SCHEMA).dropped == []


def test_a_running_consumer_says_its_window_again_and_again(opened: Opened, db: Db) -> None:
    consumer = opened(of_shape("transactional", window=timedelta(days=90)))
    rows.age_windows(db, timedelta(0))
    thread = UpkeepThread(consumer.database, consumer.runtime.inbox.seen, upkeep=False, first_after_seconds=(0, 0))
    until(lambda: rows.scalar(db, "SELECT seen_at > now() - interval '1 hour' FROM onceward.consumers"))
    thread.stop()


# ---- held back -------------------------------------------------------------------------------------------------------


def test_a_database_clock_that_is_a_month_ahead_throws_nothing_away(
    db: Db, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    message = order()
    assert take(db, message) is TakeResult.TAKEN
    conn = connect()
    conn.execute(
        "CREATE SCHEMA clock; CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        " $$ SELECT pg_catalog.clock_timestamp() + interval '40 days' $$; SET search_path TO clock, pg_catalog"
    )
    assert (database_now(conn) - database_now(db)).days >= 39
    done = upkeep(conn, schema=SCHEMA)
    assert (done.dropped, done.retire_skipped) == ([], RetireSkipped.CLOCK)
    assert any("clocks" in record.message and record.levelname == "ERROR" for record in caplog.records)
    assert take(db, message) is TakeResult.DUPLICATE
    assert take(db, order()) is TakeResult.TAKEN


def test_upkeep_of_one_schema_does_not_wait_for_that_of_another(db: Db, connect: Connect) -> None:
    migrate(db, schema="second")
    make_partition_for(db, order_aged(db, OLD_SECONDS).id, schema="second")
    elsewhere = connect()
    elsewhere.execute("SELECT pg_advisory_lock(%s, %s)", lock_key(SCHEMA, LOCK_RETIRE))
    assert len(upkeep(db, schema="second").dropped) == 2
    assert upkeep(db, schema=SCHEMA).retire_skipped is RetireSkipped.BUSY
