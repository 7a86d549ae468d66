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
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, release

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
            assert runs == [early.id]
            proxy.heal()
            source.waiting.append(delivery(late, id="again"))
            until(lambda: "ack" in source.actions("again"))
    assert runs == [early.id, late.id]
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


class Stop(threading.Event):
    """A stop that can be waited for: once the thread that waits on it has ended, the loop has been told."""

    watcher: threading.Thread | None = None

    def wait(self, timeout: float | None = None) -> bool:
        self.watcher = threading.current_thread()
        return super().wait(timeout)

    def pass_on(self) -> None:
        watcher = until(lambda: self.watcher)
        assert watcher is not None
        self.set()
        watcher.join(timeout=20)
        assert not watcher.is_alive()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stop_lets_what_runs_finish_and_gives_back_what_waits(
    shape: str, dsn: str, db: Db, background: Background
) -> None:
    """One is in its handler when the stop comes, three wait behind it: those are untouched, and the next run does them."""
    source, messages, stop = ListSource(), [order() for _ in range(4)], Stop()
    source.waiting.extend(delivery(message, id=str(n)) for n, message in enumerate(messages))
    options: dict[str, Any] = {"source": lambda: source, "database": dsn, "threads": 1, "prefetch": 8}
    with Gate("consumer.handled") as gate:
        running = background(run, of_shape(shape), stop=stop, listeners=[gate], **options)
        gate.wait()
        until(lambda: not source.waiting)
        stop.pass_on()
        source.wait_for_settled(3)  # at once, although the handler still runs
        gate.release()
        running.result(timeout=20)
    assert source.settled == [("1", release(0)), ("2", release(0)), ("3", release(0)), ("0", ACK)]
    untouched = rows.Books(None, None, 0, [], 0)
    assert [rows.books(db, message) for message in messages] == [rows.Books("done", 1, 0, [], 1), *[untouched] * 3]
    source.waiting.extend(delivery(message, id="again", times=2) for message in messages[1:])
    with consuming(background, run, consumer=of_shape(shape), **options):
        source.wait_for_settled(7)
    assert source.actions("again") == ["ack"] * 3
    assert [rows.books(db, message) for message in messages] == [rows.Books("done", 1, 0, [], 1)] * 4


@pytest.mark.parametrize(("prefetch", "many"), [(0, 1), (1, 2), (3, 4)])
def test_a_drain_is_bounded_although_every_handler_hangs_and_there_is_no_room(
    prefetch: int, many: int, dsn: str, background: Background
) -> None:
    source, stop = ListSource(), threading.Event()
    source.waiting.extend(delivery(order(), id=str(n)) for n in range(many))
    with Gate("consumer.handled") as gate:
        running = background(
            run, of_shape("effectful"), source=lambda: source, database=dsn, threads=1, prefetch=prefetch,
            drain_seconds=0.2, stop=stop, listeners=[gate],
        )  # fmt: skip
        gate.wait()
        until(lambda: not source.waiting)
        stop.set()
        running.result(timeout=20)
        assert source.settled == [(str(n), release(0)) for n in range(1, many)]


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
