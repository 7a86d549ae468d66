"""The loop around a consumer, a retryable shell: databases and queues go and come, and nothing is lost."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.points import Gate, Recorder
from tests.support.queues import ListSink, ListSource, consuming
from tests.support.shop import SHAPES, of_shape, transactional
from tests.support.waiting import Background, until

from onceward.consumer_loop import Settler, run
from onceward.errors import TransportError, UsageError
from onceward.events import Event
from onceward.testing.proxy import Proxy
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, release

Db = psycopg.Connection[Any]


@pytest.mark.parametrize("shape", SHAPES)
def test_while_the_database_is_away_messages_stay_and_no_handler_runs(
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


class Odd(ListSource):
    """Settles as it should, and then answers something else, once."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.odd = [answer]

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        outcomes = super().settle(entries)
        if not self.odd:
            return outcomes
        answer = self.odd.pop()
        if isinstance(answer, BaseException):
            raise answer
        result: Sequence[Outcome] = answer
        return result


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "gave None for 1 deliveries"),
        ([], "gave 0 outcomes for 1 deliveries"),
        ([Outcome.SETTLED] * 2, "gave 2 outcomes"),
        (["settled"], "gave a str"),
        ("settled", "gave a str"),
        (42, "gave a int"),
        (RuntimeError("a defect"), "settling 1 deliveries failed; they will be delivered again: RuntimeError: a defect"),
        (SystemExit(3), "settling 1 deliveries failed; they will be delivered again when"),
    ],
    ids=str,
)
def test_a_bad_answer_of_settle_is_said_and_settling_goes_on(
    answer: Any, text: str, dsn: str, db: Db, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    source, messages = Odd(answer), [order() for _ in range(8)]
    source.waiting.append(delivery(messages[0]))
    with consuming(background, run, consumer=transactional(), source=lambda: source, database=dsn, threads=3):
        until(lambda: text in caplog.text)
        source.waiting.extend(delivery(message) for message in messages[1:])
        source.wait_for_settled(8)
    assert [rows.effects(db, message) for message in messages] == [1] * 8
    (record,) = [record for record in caplog.records if "settl" in record.getMessage()]
    assert record.__dict__["onceward"] == {"consumer": rows.CONSUMER}


def test_ctrl_c_while_settling_passes_and_settling_goes_on(dsn: str, db: Db) -> None:
    """On the main thread alone, where Python raises it: whoever drives deliveries by hand wants to be interrupted."""
    source: Any = Odd(KeyboardInterrupt())
    keeper = SimpleNamespace(drop=lambda _: None)
    opened: Any = SimpleNamespace(keeper=keeper, listeners=(), consumer=transactional())
    settler = Settler(opened, source)
    with pytest.raises(KeyboardInterrupt):
        settler.settle(delivery(order()), ACK)
    settler.settle(delivery(order()), ACK)
    assert len(source.settled) == 2


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_listener_that_always_raises_stops_no_worker_and_fills_no_log(
    error: BaseException, dsn: str, db: Db, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Event) -> None:
        raise error

    source, messages, seen = ListSource(), [order() for _ in range(20)], Recorder()
    source.waiting.extend(delivery(message) for message in messages)
    options = {"source": lambda: source, "database": dsn, "threads": 2, "listeners": [broken, seen]}
    with consuming(background, run, consumer=transactional(), **options):
        source.wait_for_settled(20)
    assert seen.count("consumer.settled") == 20
    (record,) = [record for record in caplog.records if "broken" in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert "it is called again at the next event" in record.getMessage()


@pytest.mark.parametrize("where", ["receive", "answer"])
def test_whatever_a_source_raises_it_is_asked_again(
    where: str, dsn: str, db: Db, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ListSource):
        def receive(self, limit: int, wait_seconds: float) -> Received:
            self.receives += 1
            if self.receives > 3:
                return super().receive(limit, wait_seconds)
            if where == "receive":
                raise KeyError("a defect of the adapter")
            nothing: Any = None
            result: Received = nothing
            return result

    source, message = Broken(), order()
    source.waiting.append(delivery(message))
    with consuming(background, run, consumer=transactional(), source=lambda: source, database=dsn, threads=1):
        source.wait_for_settled(1)
    assert rows.effects(db, message) == 1
    records = [record for record in caplog.records if "receive failed; retrying" in record.getMessage()]
    assert [bool(record.exc_info) for record in records] == [True, False, False]
    assert "retrying in 0.1 s" in records[0].getMessage()


def test_a_usage_error_of_a_source_ends_the_run(dsn: str) -> None:
    """No try can succeed, and a loop that logs it for ever is a consumer that does nothing."""

    class Misused(ListSource):
        def receive(self, *_: Any) -> Received:
            raise UsageError("there is no queue 'order'")

    with pytest.raises(UsageError, match="no queue 'order'"):
        run(transactional(), source=Misused, database=dsn, threads=1)


class OperationalErrorOfAnORM(Exception):
    """What a caller's `database` raises need not be psycopg's."""


def test_an_outage_of_a_callers_own_database_ends_no_thread(
    dsn: str, db: Db, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    def connect() -> Db:
        asked.append(threading.current_thread().name)
        if down.is_set():
            raise OperationalErrorOfAnORM("connection refused")
        return psycopg.connect(dsn)

    asked: list[str] = []
    down = threading.Event()
    source, early, late = ListSource(), order(), order()
    source.waiting.append(delivery(early))
    options = {"source": lambda: source, "database": connect, "threads": 1, "prefetch": 0}
    with consuming(background, run, consumer=transactional(), **options):
        source.wait_for_settled(1)
        down.set()
        source.waiting.append(delivery(order(), id="during"))
        until(lambda: "the database check before receive failed; retrying in 0.2 s" in caplog.text)
        down.clear()
        source.waiting.append(delivery(late))
        source.wait_for_settled(2)
    assert (rows.effects(db, late), source.actions("during")) == (1, [])


def test_a_delivery_that_could_not_be_handled_stays_in_its_queue(
    dsn: str, db: Db, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter's defect, such as no headers at all: nothing is known of the message, so its queue is told nothing."""
    nothing: Any = None
    source, good = ListSource(), order()
    source.waiting.extend([replace(delivery(order(), id="bad"), headers=nothing), delivery(good, id="good")])
    with consuming(background, run, consumer=transactional(), source=lambda: source, database=dsn, threads=1):
        source.wait_for_settled(1)
    assert "handling delivery bad failed; it stays in its queue" in caplog.text
    assert source.settled == [("good", ACK)]


def test_a_worker_that_sees_the_stop_gives_its_delivery_back(dsn: str, db: Db, background: Background) -> None:
    """The receiving thread still waits at the queue: what it will give back at the drain, a worker meets first."""

    class Waiting(ListSource):
        def receive(self, limit: int, wait_seconds: float) -> Received:
            if self.receives:
                released.wait(20)
            return super().receive(limit, wait_seconds)

    source, stop, released, messages = Waiting(), Stop(), threading.Event(), [order(), order()]
    source.waiting.extend(delivery(message, id=str(n)) for n, message in enumerate(messages))
    with Gate("consumer.handled") as gate:
        options = {"database": dsn, "threads": 1, "prefetch": 8, "stop": stop, "listeners": [gate]}
        running = background(run, transactional(), source=lambda: source, **options)
        gate.wait()
        stop.pass_on()
        gate.release()
        source.wait_for_settled(2)
        released.set()
        running.result(timeout=20)
    assert source.settled == [("0", ACK), ("1", release(0))]
    assert rows.books(db, messages[1]) == rows.Books(None, None, 0, [], 0)


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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threads": 0}, "threads is a whole number of at least 1, not 0"),
        ({"threads": 1.5}, "threads is a whole number of at least 1, not 1.5"),
        ({"threads": True}, "threads is a whole number"),
        ({"prefetch": -1}, "prefetch is a whole number of at least 0, not -1"),
        ({"prefetch": "8"}, "prefetch is a whole number of at least 0, not '8'"),
        ({"drain_seconds": -1}, "drain_seconds is at least 0"),
        ({"drain_seconds": float("inf")}, "drain_seconds is at least 0"),
        ({"drain_seconds": float("nan")}, "drain_seconds is at least 0"),
        ({"drain_seconds": "20"}, "drain_seconds is a number of seconds, not '20'"),
        ({"stop": lambda: True}, "stop is a threading.Event, not a function"),
        ({"listeners": [None]}, "listeners: a function that takes an Event, not a NoneType"),
        ({"listeners": print}, "listeners: a list of functions"),
        ({"listeners": None}, "listeners: a list of functions"),
        ({"source": "orders"}, "source: pass a Source or a function that makes one, not a str (it has no name, traits"),
        ({"source": lambda: None}, "the function gave None, which is not a Source: it has no name, traits, receive"),
        ({"source": ListSink}, "the function gave a ListSink, which is not a Source: it has no name, receive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_loop_that_cannot_work_is_refused(options: dict[str, Any], text: str, dsn: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        run(transactional(), **{"source": ListSource, "database": dsn, **options})


def test_an_async_listener_is_refused(dsn: str) -> None:
    async def listen(_: Event) -> None: ...

    with pytest.raises(UsageError, match="listen is async; nobody would await it"):
        run(transactional(), source=ListSource, database=dsn, listeners=[listen])  # type: ignore[list-item]


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


class Closing(ListSource):
    """Says how often it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("by_factory", [True, False])
def test_a_source_is_closed_by_whoever_made_it(by_factory: bool, dsn: str, background: Background) -> None:
    source, message = Closing(), order()
    source.waiting.append(delivery(message))
    passed = (lambda: source) if by_factory else source
    with consuming(background, run, consumer=transactional(), source=passed, database=dsn, threads=1):
        source.wait_for_settled(1)
        assert source.closed == 0
    assert source.closed == by_factory
    with transactional().open(dsn, source=passed):
        assert source.closed == by_factory
    assert source.closed == 2 * by_factory
