"""What a running loop says of itself: live and ready, and which of its two neighbours is away."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
from tests.support.deliveries import delivery, order
from tests.support.points import Gate
from tests.support.queues import ListSink, ListSource, consuming, relaying
from tests.support.shop import transactional
from tests.support.waiting import Background, until

from onceward.consumer_loop import run
from onceward.errors import TransportError
from onceward.health import Health, of_relay
from onceward.outbox import publish
from onceward.testing.proxy import Proxy
from onceward.transport import Received

Db = psycopg.Connection[Any]


def test_an_idle_consumer_is_ready_and_a_busy_one_says_what_it_holds(dsn: str, background: Background) -> None:
    """A handler that takes longer than a turn may is still in hand, and the loop is live all the same."""
    source, health = ListSource(), Health(live_seconds=2.0)
    options = {"source": lambda: source, "database": dsn, "threads": 1, "prefetch": 0, "health": health}
    with (
        Gate("consumer.handled") as gate,
        consuming(background, run, consumer=transactional(), listeners=[gate], **options),
    ):
        until(lambda: health.ready)
        assert health.report()["last_progress_seconds"] is None
        source.waiting.append(delivery(order()))
        gate.wait()
        assert health.in_hand == 1
        until(lambda: health.report()["last_progress_seconds"] > 2.5)
        assert health.live
        gate.release()
        until(lambda: health.in_hand == 0)
        until(lambda: health.report()["last_progress_seconds"] < 1.0)


def test_an_idle_consumer_notices_that_its_database_is_away_and_back(dsn: str, background: Background) -> None:
    source, health = ListSource(), Health(ready_seconds=0.2)
    with Proxy(dsn) as proxy:
        options = {"source": lambda: source, "database": proxy.dsn, "threads": 1, "health": health}
        with consuming(background, run, consumer=transactional(), **options):
            until(lambda: health.ready)
            proxy.cut()
            until(lambda: health.report()["database_answered_seconds"] is None)
            assert (health.live, health.ready) == (True, False)
            proxy.heal()
            until(lambda: health.ready)


def test_a_queue_that_is_away_is_not_ready(dsn: str, background: Background) -> None:
    class Away(ListSource):
        away = True

        def receive(self, limit: int, wait_seconds: float) -> Received:
            self.receives += 1
            if self.away:
                raise TransportError("the broker is away")
            return super().receive(limit, wait_seconds)

    source, health = Away(), Health()
    options = {"source": lambda: source, "database": dsn, "threads": 1, "health": health}
    with consuming(background, run, consumer=transactional(), **options):
        until(lambda: source.receives >= 2)
        assert (health.live, health.ready) == (True, False)
        report = health.report()
        assert report["queue_answered_seconds"] is None
        assert report["database_answered_seconds"] is not None, "the queue's failure is not the database's"
        source.away = False
        until(lambda: health.ready)


def test_a_receive_that_never_returns_is_not_live(dsn: str, background: Background) -> None:
    class Stuck(ListSource):
        def receive(self, limit: int, wait_seconds: float) -> Received:
            released.wait(20)
            return super().receive(limit, wait_seconds)

    released, health = threading.Event(), Health(live_seconds=0.3)
    options = {"source": Stuck, "database": dsn, "threads": 1, "health": health}
    with consuming(background, run, consumer=transactional(), **options):
        until(lambda: not health.live)
        released.set()
        until(lambda: health.live)


def test_a_relay_is_ready_when_idle_and_not_while_its_sink_is_away(dsn: str, db: Db, background: Background) -> None:
    sink, health = ListSink(), Health()
    with relaying(background, dsn, sink, of_relay(health)):
        until(lambda: health.ready)
        sink.down = True
        with db.transaction():
            publish(db, order())
        until(lambda: not health.ready)
        assert health.live
        sink.down = False
        until(lambda: health.ready)
        until(lambda: health.report()["last_progress_seconds"] is not None)
