"""Consumers measure their handlers, and say where the queue's lease is short for them, or its other settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support.deliveries import delivery, order
from tests.support.queues import ListSource, consuming
from tests.support.rows import CONSUMER
from tests.support.shop import SHAPES, of_shape, transactional
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.consumer_loop import run
from onceward.day_partitions import UpkeepThread
from onceward.errors import UsageError
from onceward.handler_times import HandlerClock, HandlerTimes, LeaseWatch, read_handler_times
from onceward.message import Message
from onceward.testing.proxy import Proxy

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
DAY = 86_400.0


def measured(db: Db) -> HandlerTimes:
    [times] = read_handler_times(db)
    return times


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("shape", SHAPES)
def test_handlers_are_measured_and_duplicates_are_not(shape: str, dsn: str, db: Db, background: Background) -> None:
    source, message = ListSource(), order()
    with consuming(background, run, consumer=of_shape(shape), source=lambda: source, database=dsn):
        for number, one in enumerate([message, message, order()]):
            source.waiting.append(delivery(one, id=f"{number}"))
            source.wait_for_settled(number + 1)
    assert (measured(db).consumer, measured(db).handled) == (CONSUMER, 2)
    assert 0 < measured(db).average_seconds <= measured(db).p99_seconds


def test_a_handler_that_fails_is_measured(opened: Opened, db: Db) -> None:
    def fail(_message: Message, _tx: object) -> None:
        raise RuntimeError("no")

    consumer = opened(transactional(fail))
    consumer.deliver(delivery(order()))
    consumer.seen(db)
    assert measured(db).handled == 1


def test_each_turn_of_upkeep_writes_what_was_measured(opened: Opened, db: Db) -> None:
    consumer = opened(transactional())
    consumer.deliver(delivery(order()))
    upkeep = UpkeepThread(consumer.database, consumer.seen, first_after_seconds=(0.0, 0.0))
    try:
        until(lambda: read_handler_times(db), "the times in the database")
    finally:
        upkeep.stop()


def test_what_many_processes_measure_is_added_up(db: Db) -> None:
    clocks = [HandlerClock("c"), HandlerClock("c")]
    for clock in clocks:
        clock.record(1.0)
        clock.record(3.0)
        clock.write(db)
        clock.write(db)
    assert (measured(db).handled, measured(db).average_seconds) == (4, 2.0)


def test_what_could_not_be_written_is_written_later(dsn: str, db: Db) -> None:
    clock = HandlerClock("c")
    clock.record(1.0)
    with Proxy(dsn) as proxy, psycopg.connect(proxy.dsn, autocommit=True) as conn:
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            clock.write(conn)
    clock.write(db)
    assert measured(db).handled == 1


def test_a_week_is_kept(db: Db) -> None:
    clock = HandlerClock("c")
    clock.record(100.0)
    clock.write(db)
    db.execute("UPDATE onceward.handler_times SET day = day - 7")
    assert read_handler_times(db) == []
    clock.record(1.0)
    clock.write(db)
    assert db.execute("SELECT count(*) FROM onceward.handler_times").fetchone() == (1,)
    assert measured(db).handled == 1


def slow(db: Db, seconds: float) -> None:
    clock = HandlerClock(CONSUMER)
    clock.record(seconds)
    clock.write(db)


def test_at_its_start_a_consumer_says_that_the_lease_is_short(
    opened: Opened, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    slow(db, 6.0)
    opened(transactional(), source=ListSource(lease_seconds=30.0))
    [line] = warnings(caplog)
    assert "at least 36 s" in line
    caplog.clear()
    opened(transactional(), source=ListSource(lease_seconds=36.0))
    opened(transactional(), source=ListSource(lease_seconds=None))
    assert warnings(caplog) == []


def test_it_says_so_once_although_it_looks_at_each_turn(db: Db, caplog: pytest.LogCaptureFixture) -> None:
    watch = LeaseWatch(CONSUMER, 30.0)
    watch.look(db)
    assert warnings(caplog) == []
    slow(db, 6.0)
    watch.look(db)
    watch.look(db)
    assert len(warnings(caplog)) == 1


def test_a_consumer_says_that_its_queue_sets_messages_aside_first(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    opened(transactional(attempts_max=5), source=ListSource(dead_letters_after=5))
    assert warnings(caplog) == []
    opened(transactional(attempts_max=5), source=ListSource(dead_letters_after=4))
    [line] = warnings(caplog)
    assert "after 4 deliveries" in line


def test_a_window_that_is_too_short_must_be_accepted_and_is_said_at_each_start(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = ListSource(retention_seconds=31 * DAY)
    with pytest.raises(UsageError, match="allow_short_window"):
        transactional().open(dsn, source=source)
    for _ in range(2):
        caplog.clear()
        transactional().open(dsn, source=source, allow_short_window=True).close()
        [line] = warnings(caplog)
        assert "is parked instead of handled" in line
