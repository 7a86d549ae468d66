"""A Kafka that dies and comes back, connections that break, and workers that are killed or frozen."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import order
from tests.support.kafka import Topic, kafka_behind_a_proxy, kafka_of_our_own, receive_all, receive_one, start_worker
from tests.support.waiting import until

from onceward.errors import TransportError
from onceward.testing.proxy import Proxy
from onceward.testing.servers import Server
from onceward.testing.transport import OpenRig, Rig, TransportSuite
from onceward.transport import ACK, Outcome
from onceward.transports import kafka

pytestmark = pytest.mark.kafka
Db = psycopg.Connection[Any]
Closing = Callable[[Any], Any]
LOCK = 11
# So short that a frozen process is found out in a second or two.
SHORT = {"session_timeout_ms": 1500, "max_poll_interval_ms": 6000}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with kafka_of_our_own() as running:
        yield running


@pytest.fixture
def topic(server: Server) -> Topic:
    return Topic(server.url)


def kill_child(child: Any) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.join(timeout=20)


def effects_of(db: Db) -> int:
    return int(rows.scalar(db, "SELECT count(*) FROM effects"))


# ---- workers -------------------------------------------------------------------------------------------------------------


def test_of_a_killed_worker_nothing_is_lost_and_nothing_skipped(server: Server, dsn: str, db: Db) -> None:
    topic = Topic(server.url, partitions=2)
    sent = [order(subject=str(n % 5)) for n in range(40)]
    topic.publish(*sent)
    config = topic.member(**SHORT)
    db.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    killed = start_worker(dsn, config, topic.name, LOCK)
    until(lambda: rows.scalar(db, "SELECT count(*) > 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
    kill_child(killed)
    db.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))
    other = start_worker(dsn, config, topic.name)
    until(lambda: topic.committed() == topic.ends(), "every partition being committed to its end", 40)
    kill_child(other)
    assert [rows.effects(db, message) for message in sent] == [1] * 40


def test_a_worker_that_was_frozen_past_its_session_goes_on_and_nothing_is_doubled(server: Server, dsn: str, db: Db) -> None:
    topic = Topic(server.url, partitions=2)
    sent = [order() for _ in range(20)]
    topic.publish(*sent)
    config = topic.member(**SHORT)
    db.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    frozen = start_worker(dsn, config, topic.name, LOCK)
    until(lambda: rows.scalar(db, "SELECT count(*) > 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
    os.kill(frozen.pid, signal.SIGSTOP)
    # Its partitions go to this one. What the frozen one has begun is in flight until it wakes.
    other = start_worker(dsn, config, topic.name)
    until(lambda: effects_of(db) >= 10, "the other worker's work", 40)
    db.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))
    os.kill(frozen.pid, signal.SIGCONT)
    until(lambda: topic.committed() == topic.ends(), "every partition being committed to its end", 40)
    kill_child(other)
    # Alone, the one that was frozen has rejoined and works.
    late = [order() for _ in range(10)]
    topic.publish(*late)
    until(lambda: topic.committed() == topic.ends(), "what came later being committed", 40)
    kill_child(frozen)
    assert [rows.effects(db, message) for message in [*sent, *late]] == [1] * 30


# ---- the broker ----------------------------------------------------------------------------------------------------------


def test_after_the_broker_was_killed_and_restarted_everything_goes_on(
    server: Server, topic: Topic, closing: Closing
) -> None:
    """What was confirmed is there, what failed said so, and what could not be committed is made up for."""
    source = closing(topic.source(config=topic.member(**SHORT)))
    sink = closing(kafka.Sink({**topic.brokers, "delivery.timeout.ms": 2000}, topic.name))
    first, second = order(1), order(2)
    assert list(sink.publish([first])) == [None]
    held = receive_one(source)
    server.kill()
    with pytest.raises(TransportError):
        sink.publish([second])
    with pytest.raises(TransportError):
        until(lambda: source.receive(1, 0.1).deliveries)
    server.restart()
    until(lambda: _again(lambda: sink.publish([second])) == [None], "a publish after the restart", 40)
    seen: set[str] = set()

    def both_are_done() -> bool:
        received = _again(lambda: source.receive(5, 0.2))
        entries = [(delivery, ACK) for delivery in received.deliveries] if received is not None else []
        if _again(lambda: source.settle(entries)) is not None:
            seen.update(delivery.headers["id"] for delivery, _ in entries)
        return topic.committed() == topic.ends()

    # Still ours, or given again: in either case it is done once it is acknowledged.
    if _again(lambda: source.settle([(held, ACK)])) == [Outcome.SETTLED]:
        seen.add(first.id)
    until(both_are_done, "both messages", 60)
    assert {first.id, second.id} <= seen


def _again(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except TransportError:
        return None


def test_a_broker_that_is_down_at_the_start_is_waited_for(server: Server, topic: Topic, closing: Closing) -> None:
    topic.publish(order())
    server.kill()
    source = closing(topic.source())
    assert source.traits.retention_seconds is None
    with pytest.raises(TransportError, match="no broker"):
        until(lambda: source.receive(1, 0.1).deliveries)
    server.restart()
    until(lambda: _again(lambda: source.receive(1, 0.5).deliveries), "the message", 60)


# ---- connections ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_a_proxy() -> Iterator[tuple[Proxy, str]]:
    with kafka_behind_a_proxy() as both:
        yield both


class Suite(TransportSuite):
    def __init__(self, proxy: Proxy, bootstrap: str) -> None:
        self._proxy = proxy
        self._topic = Topic(bootstrap)

    def make(self) -> Rig:
        return Rig(source=self._topic.source, sink=self._topic.sink, cut=self._cut)

    def _cut(self) -> None:
        self._proxy.cut()
        self._proxy.heal()


@pytest.mark.parametrize(
    "test",
    [
        TransportSuite.test_after_a_lost_connection_everything_goes_on,
        TransportSuite.test_a_settle_after_a_lost_connection_does_not_raise_what_is_not_an_error_of_the_queue,
    ],
    ids=lambda test: test.__name__,
)
def test_it_conforms_when_its_connections_are_cut(
    test: Callable[[TransportSuite, OpenRig], None], behind_a_proxy: tuple[Proxy, str]
) -> None:
    suite = Suite(*behind_a_proxy)
    with ExitStack() as stack:
        test(suite, OpenRig(suite.make(), stack))


def test_a_commit_over_a_broken_connection_is_sent_again(behind_a_proxy: tuple[Proxy, str], closing: Closing) -> None:
    proxy, bootstrap = behind_a_proxy
    topic = Topic(bootstrap)
    topic.publish(order(1), order(2))
    source = closing(topic.source())
    first, second = receive_all(source, 2)
    proxy.cut()
    proxy.heal()
    assert source.settle([(first, ACK), (second, ACK)]) == [Outcome.SETTLED] * 2
    assert topic.committed() == [2]
