"""Upkeep: partitions are there before they are needed, and go only when nothing in them is unfinished."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.days import OLD_SECONDS, SCHEMA, names_of, old_day, old_message, partitions, tables
from tests.support.deliveries import order_aged
from tests.support.waiting import Background, until_blocked

from onceward.day_partitions import (
    RetireSkipped,
    attached,
    database_now,
    make_partitions,
    partition_bounds,
    partition_name,
    upkeep,
)
from onceward.inbox import Inbox
from onceward.statements import statements

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]


def test_partitions_are_made_ahead_and_only_once(db: Db) -> None:
    ahead = database_now(db).date() + timedelta(days=3)
    db.execute("".join(f"DROP TABLE onceward.{name};" for name in names_of(ahead)).encode())
    assert set(upkeep(db, schema=SCHEMA).made) == names_of(ahead)
    assert upkeep(db, schema=SCHEMA).made == []


def test_a_partition_past_the_window_and_all_done_is_dropped(db: Db) -> None:
    old_message(db)
    before = partitions(db)
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(old_day(db))
    assert partitions(db) == tables(db) == before - names_of(old_day(db))


@pytest.mark.parametrize("state", ["pending", "parked"])
def test_a_partition_with_an_unfinished_message_is_kept_and_said(state: str, db: Db) -> None:
    old_message(db, state)
    done = upkeep(db, schema=SCHEMA)
    assert (done.dropped, done.unfinished) == ([], {old_day(db).isoformat(): 1})
    assert names_of(old_day(db)) <= partitions(db)


@pytest.mark.parametrize("state", ["pending", "unknown"])
def test_a_partition_with_an_unresolved_intent_is_kept_though_its_message_is_done(state: str, db: Db) -> None:
    message = old_message(db)
    db.execute(
        "INSERT INTO onceward.intents (consumer, message_id, n, name, request_fingerprint, key, state)"
        " VALUES (%s, %s, 1, 'charge', '', 'k', %s)",
        (rows.CONSUMER, message.id, state),
    )
    assert upkeep(db, schema=SCHEMA).unfinished == {old_day(db).isoformat(): 1}
    db.execute("UPDATE onceward.intents SET state = 'done'")
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(old_day(db))


def test_the_longest_window_of_all_consumers_decides(db: Db) -> None:
    old_message(db)
    params = [{"consumer": "short", "window_seconds": 86_400.0}, {"consumer": "long", "window_seconds": 90 * 86_400.0}]
    for param in params:
        db.execute(statements()["consumer_seen"], param)
    assert upkeep(db, schema=SCHEMA).dropped == []
    db.execute("DELETE FROM onceward.consumers WHERE name = 'long'")
    assert names_of(old_day(db)) <= set(upkeep(db, schema=SCHEMA).dropped)


def test_yesterday_stays_with_the_shortest_window(db: Db) -> None:
    db.execute(statements()["consumer_seen"], {"consumer": "short", "window_seconds": 1.0})
    upkeep(db, schema=SCHEMA)
    assert names_of(database_now(db).date() - timedelta(days=1)) <= partitions(db)


def test_an_id_whose_partition_was_retired_is_outside_the_window(db: Db) -> None:
    message = old_message(db)
    upkeep(db, schema=SCHEMA)
    with db.transaction():
        assert Inbox(rows.CONSUMER).take(db, message).result.value == "outside window"


def test_attempts_of_retired_days_go_too_and_the_others_stay(db: Db) -> None:
    for message in (order_aged(db, OLD_SECONDS), order_aged(db, 60), old_message(db, "parked")):
        db.execute("INSERT INTO onceward.attempts VALUES (%s, %s, 1, 'x')", (rows.CONSUMER, message.id))
    upkeep(db, schema=SCHEMA)
    assert rows.scalar(db, "SELECT count(*) FROM onceward.attempts") == 2


def test_a_detached_table_that_a_dead_upkeep_left_is_dropped(db: Db) -> None:
    old_message(db)
    name = partition_name("inbox", old_day(db))
    db.execute(f"ALTER TABLE onceward.inbox DETACH PARTITION onceward.{name}".encode())
    upkeep(db, schema=SCHEMA)
    assert not names_of(old_day(db)) & tables(db)


@pytest.mark.parametrize("table", ["inbox", "intents"])
def test_an_upkeep_that_died_between_its_two_tables_is_finished_by_the_next(table: str, db: Db) -> None:
    old_message(db)
    db.execute(f"DROP TABLE onceward.{partition_name(table, old_day(db))}".encode())
    upkeep(db, schema=SCHEMA)
    assert not names_of(old_day(db)) & tables(db)


def test_a_half_done_detach_is_finished(db: Db, connect: Connect, background: Background) -> None:
    """An open transaction that has read the table stops DETACH CONCURRENTLY half way; its session is killed there."""
    old_message(db)
    name = partition_name("inbox", old_day(db))
    reader, dying = connect(autocommit=False), connect()
    reader.execute("SELECT count(*) FROM onceward.inbox")
    detaching = background(dying.execute, f"ALTER TABLE onceward.inbox DETACH PARTITION onceward.{name} CONCURRENTLY")
    until_blocked(db, dying)
    db.execute("SELECT pg_terminate_backend(%s)", (dying.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        detaching.result()
    assert (name, True) in attached(db, schema=SCHEMA)
    reader.rollback()
    upkeep(db, schema=SCHEMA)
    assert not names_of(old_day(db)) & tables(db)


def test_an_open_handler_delays_retirement_and_blocks_nobody(db: Db, connect: Connect, background: Background) -> None:
    """Upkeep gives up for now; a take that comes meanwhile goes through at once; the next upkeep finishes."""
    old_message(db)
    handler, upkeeping = connect(autocommit=False), connect()
    Inbox(rows.CONSUMER).take(handler, order_aged(db, 0))
    running = background(_upkeep_quietly, upkeeping)
    until_blocked(db, upkeeping)
    with db.transaction():
        db.execute("SET LOCAL statement_timeout TO '900ms'")
        assert Inbox(rows.CONSUMER).take(db, order_aged(db, 0)).result.value == "taken"
    handler.commit()
    running.result()
    upkeep(db, schema=SCHEMA)
    assert not names_of(old_day(db)) & tables(db)


def _upkeep_quietly(conn: Db) -> None:
    try:
        upkeep(conn, schema=SCHEMA)
    except psycopg.errors.LockNotAvailable:
        conn.execute("SELECT 1")


def test_an_upkeep_whose_wait_runs_out_leaves_what_the_next_one_finishes(
    db: Db, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onceward.day_partitions.TRIES", 1)
    old_message(db)
    handler = connect(autocommit=False)
    Inbox(rows.CONSUMER).take(handler, order_aged(db, 0))
    with pytest.raises(psycopg.errors.LockNotAvailable):
        upkeep(db, schema=SCHEMA)
    handler.commit()
    upkeep(db, schema=SCHEMA)
    assert not names_of(old_day(db)) & tables(db)


def test_two_upkeeps_at_once_do_it_once(db: Db, connect: Connect, background: Background) -> None:
    old_message(db)
    reader = connect(autocommit=False)
    reader.execute("SELECT count(*) FROM onceward.inbox")
    conns = [connect() for _ in range(3)]
    running = [background(upkeep, conn, schema=SCHEMA) for conn in conns[:1]]
    until_blocked(db, conns[0])
    running += [background(upkeep, conn, schema=SCHEMA) for conn in conns[1:]]
    assert [future.result()[1:] for future in running[1:]] == [([], {}, RetireSkipped.BUSY, 0)] * 2
    reader.rollback()
    assert set(running[0].result().dropped) == names_of(old_day(db))
    assert not names_of(old_day(db)) & tables(db)


def test_two_that_make_the_same_partition_at_once_make_it_once(db: Db, connect: Connect, background: Background) -> None:
    day = database_now(db).date() + timedelta(days=9)
    first, second = connect(autocommit=False), connect()
    first.execute("SELECT 1")
    assert set(make_partitions(first, schema=SCHEMA, days=[day])) == names_of(day)
    waiting = background(make_partitions, second, schema=SCHEMA, days=[day])
    until_blocked(db, second)
    first.commit()
    assert waiting.result() == []


def test_making_a_partition_waits_for_no_open_handler(db: Db, connect: Connect) -> None:
    handler = connect(autocommit=False)
    Inbox(rows.CONSUMER).take(handler, order_aged(db, 0))
    db.execute("SET statement_timeout TO '900ms'")
    assert len(make_partitions(db, schema=SCHEMA, days=[database_now(db).date() + timedelta(days=9)])) == 2


def test_the_bounds_of_neighbouring_days_meet(db: Db) -> None:
    today = database_now(db).date()
    assert partition_bounds(today)[1] == partition_bounds(today + timedelta(days=1))[0]


@pytest.mark.parametrize("locked", [False, True])
def test_the_callers_lock_timeout_is_as_it_was(
    locked: bool, db: Db, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an upkeep that failed: the caller may go on with its connection."""
    monkeypatch.setattr("onceward.day_partitions.TRIES", 1)
    old_message(db)
    db.execute("SET lock_timeout TO '7s'")
    handler = connect(autocommit=False)
    if locked:
        Inbox(rows.CONSUMER).take(handler, order_aged(db, 0))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            upkeep(db, schema=SCHEMA)
    else:
        assert upkeep(db, schema=SCHEMA).dropped
    assert rows.scalar(db, "SHOW lock_timeout") == "7s"
