"""The loop around a consumer, a retryable shell: databases and queues go and come, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.points import Gate, Recorder
from tests.support.queues import ListSource, consuming
from tests.support.shop import SHAPES, of_shape, transactional
from tests.support.waiting import Background, until

from onceward.errors import TransportError, UsageError
from onceward.loop import run
from onceward.proof.sweep.proxy import Proxy
from onceward.transport import Delivery, Outcome, Received, Settlement

Db = psycopg.Connection[Any]


@pytest.mark.parametrize("shape", SHAPES)
def test_scenario_22_while_the_database_is_away_messages_stay_and_no_handler_runs(
    shape: str, dsn: str, db: Db, background: Background
) -> None:
    """And when it is back, the loop goes on by itself."""
    runs: list[str] = []
    source, early, late = ListSource(), order(), order()
    consumer = of_shape(shape, lambda message: runs.append(message.id))
    with Proxy(dsn) as proxy:
        options = {"source": lambda: source, "database": proxy.dsn, "threads": 1, "prefetch": 0}
        with consuming(background, run, consumer=consumer, **options):
            source.waiting.append(delivery(early, id="early"))
            source.wait_for_settled(1)
            proxy.cut()
            receives = source.receives
            source.waiting.append(delivery(late, id="late"))
            until(lambda: source.receives > receives and not source.waiting)
            proxy.heal()
            source.waiting.append(delivery(late, id="again"))
            source.wait_for_settled(2)
    assert runs == [early.id, late.id]
    assert source.actions("late") == []
    assert source.actions("again") == ["ack"]
    assert rows.attempts(db, late) == 0


def test_a_source_that_fails_is_asked_again(dsn: str, db: Db, background: Background) -> None:
    class Failing(ListSource):
        def receive(self, limit: int, wait_seconds: float) -> Received:
            if self.receives < 3:
                self.receives += 1
                raise TransportError("the broker is away")
            return super().receive(limit, wait_seconds)

    source, message = Failing(), order()
    source.waiting.append(delivery(message))
    with consuming(background, run, consumer=transactional(), source=lambda: source, database=dsn, threads=1):
        source.wait_for_settled(1)
    assert rows.effects(db, message) == 1


def test_a_settle_that_fails_is_left_to_redelivery(dsn: str, db: Db, background: Background) -> None:
    class Failing(ListSource):
        fails = 1

        def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
            if self.fails:
                self.fails -= 1
                self.waiting.append(delivery(message, id="again", times=2))
                raise TransportError("the broker is away")
            return super().settle(entries)

    source, message, seen = Failing(), order(), Recorder()
    source.waiting.append(delivery(message, id="first"))
    options = {"source": lambda: source, "database": dsn, "threads": 1, "listeners": [seen]}
    with consuming(background, run, consumer=transactional(), **options):
        source.wait_for_settled(1)
    assert (source.settled[0][0], rows.effects(db, message), seen.count("consumer.duplicate")) == ("again", 1, 1)


def test_a_stop_lets_what_runs_finish_and_gives_back_what_waits(dsn: str, db: Db, background: Background) -> None:
    source, messages, stop = ListSource(), [order() for _ in range(4)], threading.Event()
    source.waiting.extend(delivery(message, id=str(n)) for n, message in enumerate(messages))
    with Gate("consumer.handled") as gate:
        options = {"source": lambda: source, "database": dsn, "threads": 1, "prefetch": 8, "listeners": [gate]}
        running = background(run, transactional(), stop=stop, **options)
        gate.wait()
        until(lambda: not source.waiting)
        stop.set()
        gate.release()
        running.result(timeout=20)
    done = [n for n in range(4) if source.actions(str(n)) == ["ack"]]
    released = [n for n in range(4) if source.actions(str(n)) == ["release"]]
    assert done[0] == 0
    assert sorted(done + released) == [0, 1, 2, 3]
    assert rows.scalar(db, "SELECT count(*) FROM effects") == len(done)


def test_many_threads_share_one_source(dsn: str, db: Db, background: Background) -> None:
    source, messages = ListSource(), [order() for _ in range(60)]
    for _ in range(2):
        source.waiting.extend(delivery(message) for message in messages)
    with consuming(background, run, consumer=of_shape("effectful"), source=lambda: source, database=dsn, threads=6):
        until(lambda: rows.scalar(db, "SELECT count(*) FROM onceward.inbox WHERE state = 'done'") == 60)
        source.wait_for_settled(120)
    assert rows.scalar(db, "SELECT count(*) FROM effects") == 60


@pytest.mark.parametrize("options", [{"threads": 0}, {"prefetch": -1}])
def test_a_loop_that_cannot_work_is_refused(options: dict[str, Any], dsn: str) -> None:
    with pytest.raises(UsageError):
        run(transactional(), source=ListSource, database=dsn, **options)


def test_a_database_that_does_not_answer_is_said_at_the_start(dsn: str) -> None:
    closed: list[bool] = []

    class Closing(ListSource):
        def close(self) -> None:
            closed.append(True)

    def refuse() -> Db:
        raise psycopg.OperationalError("not there")

    with pytest.raises(psycopg.OperationalError):
        run(transactional(), source=Closing, database=refuse)
    assert closed == [True]
