"""The threads beside the handlers: heartbeat, nudges and upkeep outlive whatever the world raises, and say what failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.database.test_leases import Opened, beats
from tests.support.deliveries import delivery, order
from tests.support.points import Gate
from tests.support.queues import ListSource
from tests.support.shop import effectful, of_shape
from tests.support.waiting import Background, until

from onceward.database import Database
from onceward.day_partitions import UpkeepThread, attached, database_now, partition_name
from onceward.outbox import Nudge, channel
from onceward.transport import ACK

Db = psycopg.Connection[Any]


class OperationalErrorOfAnORM(Exception):
    """What a caller's `database` raises need not be psycopg's."""


def test_a_database_that_raises_errors_of_its_own_does_not_end_the_heartbeat(
    opened: Opened, db: Db, dsn: str, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    def connect() -> Db:
        if down and threading.current_thread().name == "onceward-heartbeat":
            raise OperationalErrorOfAnORM(down.pop())
        return psycopg.connect(dsn)

    down: list[str] = []
    message = order()
    with Gate("consumer.claimed") as gate:
        running = background(opened(effectful(lease_seconds=0.6), gate, database=connect).deliver, delivery(message))
        gate.wait()
        down.append("connection refused")
        until(lambda: not down)
        until(beats(db, message))
        gate.release()
        assert running.result() == ACK
    assert "extending the leases of 1 claims failed; retrying in 0.2 s: the database callable raised" in caplog.text


@pytest.mark.parametrize("answer", [None, [], SystemExit("a defect of the adapter")], ids=repr)
def test_a_bad_answer_of_extend_does_not_end_the_heartbeat(
    answer: Any, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(ListSource):
        def extend(self, deliveries: Any, seconds: float) -> Any:
            outcomes = super().extend(deliveries, seconds)
            if len(self.extended) > 2:
                return outcomes
            if isinstance(answer, BaseException):
                raise answer
            return answer

    source = Odd(lease_seconds=0.05)
    opened(of_shape("effectful"), source=source).keeper.received([delivery(order())])
    until(lambda: len(source.extended) > 4)
    assert "retrying in" in caplog.text


def test_a_database_that_raises_errors_of_its_own_does_not_end_the_nudges(dsn: str, db: Db) -> None:
    def connect() -> Db:
        if down:
            raise OperationalErrorOfAnORM(down.pop())
        return psycopg.connect(dsn)

    down = ["connection refused"]
    database = Database(connect)
    db.execute(f"LISTEN {channel(database.schema)}")
    nudge = Nudge(database)
    nudge()
    until(lambda: not down)
    nudge()
    assert len(list(db.notifies(timeout=20, stop_after=1))) == 1
    nudge.stop()


@pytest.fixture
def keep_up() -> Iterator[Callable[[Any], UpkeepThread]]:
    """Starts an upkeep that comes at once; stopped at the end."""
    started: list[UpkeepThread] = []

    def start(database: Any) -> UpkeepThread:
        started.append(UpkeepThread(Database(database), lambda _conn: None, first_after_seconds=(0, 0), retry_seconds=0.01))
        return started[-1]

    yield start
    for thread in started:
        thread.stop()


def drop_tomorrow(db: Db) -> str:
    """The partitions of tomorrow are gone; the name of one."""
    tomorrow = database_now(db).date() + timedelta(days=1)
    names = [partition_name(table, tomorrow) for table in ("inbox", "intents")]
    db.execute("".join(f"DROP TABLE onceward.{name};" for name in names).encode())
    return names[0]


def test_a_failed_upkeep_is_an_error_and_is_tried_again_soon(
    keep_up: Callable[[Any], UpkeepThread], dsn: str, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    def connect() -> Db:
        if down:
            raise OperationalErrorOfAnORM(down.pop())
        return psycopg.connect(dsn)

    down = ["connection refused"] * 2
    dropped = drop_tomorrow(db)
    keep_up(connect)
    until(lambda: dropped in {name for name, _ in attached(db, schema="onceward")}, "upkeep having made the partitions")
    records = [record for record in caplog.records if "upkeep failed" in record.getMessage()]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    assert "raised OperationalErrorOfAnORM: connection refused" in records[0].getMessage()


def test_an_upkeep_without_the_right_to_it_names_the_remedy(
    keep_up: Callable[[Any], UpkeepThread], dsn: str, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    def connect() -> Db:
        conn: Db = psycopg.connect(dsn, autocommit=True)
        conn.execute("SET ROLE pg_monitor")
        return conn

    drop_tomorrow(db)
    keep_up(connect)
    until(lambda: "upkeep failed" in caplog.text)
    assert "run `onceward upkeep` every day as the owner of the tables, or" in caplog.text
    assert "GRANT owner TO role" in caplog.text
