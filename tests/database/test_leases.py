"""The heartbeat: what this process holds stays its own, from receive to settle; what it has lost, its handler is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.points import Gate, Recorder
from tests.support.queues import ListSource, consuming
from tests.support.shop import effectful, of_shape
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.consumer_loop import run
from onceward.inbox import Inbox, TakeResult
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.testing.proxy import Proxy
from onceward.transport import ACK
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]


def beats(db: Db, message: Message) -> Callable[[], bool]:
    """True once the claim was extended twice after this call."""
    before = rows.inbox_row(db, message).lease_until
    seen = {before}

    def extended() -> bool:
        seen.add(rows.inbox_row(db, message).lease_until)
        return len(seen) >= 3

    return extended


def test_a_claim_is_extended_while_its_handler_runs(opened: Opened, db: Db, background: Background) -> None:
    message = order()
    with Gate("consumer.claimed") as gate:
        running = background(opened(effectful(lease_seconds=0.4), gate).deliver, delivery(message))
        gate.wait()
        until(beats(db, message))
        assert Inbox(rows.CONSUMER).claim(db, message).result is TakeResult.IN_FLIGHT
    assert running.result() == ACK
    assert rows.inbox_row(db, message).token == 1


def test_a_claim_is_not_extended_once_it_is_over(opened: Opened, db: Db) -> None:
    consumer = opened(effectful(lease_seconds=0.4))
    consumer.deliver(delivery(order()))
    assert not consumer.keeper._held


def test_a_failed_attempt_gives_its_lease_back_although_its_handler_still_runs(
    opened: Opened, db: Db, background: Background
) -> None:
    """Else the heartbeat would take it back at once, and the retry wait for it to lapse."""
    failing, other, leave = order("fails"), order("waits"), threading.Event()
    leased: list[bool] = []

    def fail(_request: object, _key: str) -> None:
        raise ConnectionError("no answer")

    def handle(message: Message, once: Once) -> None:
        if message.json() == "waits":
            leave.wait(20)
            return
        try:
            once.effect("charge", fail, request=1, provider=STRIPE_V1)
        finally:
            for _ in range(2):
                until(beats(db, other))
            leased.append(bool(rows.inbox_row(db, failing).leased))

    consumer = opened(effectful(handle, lease_seconds=0.4))
    waiting = background(consumer.deliver, delivery(other))
    until(lambda: rows.state(db, other) == "pending")
    assert consumer.deliver(delivery(failing)).action == "release"
    leave.set()
    assert (leased, waiting.result()) == ([False], ACK)


def test_a_row_that_is_locked_does_not_stall_the_others(
    opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    """One is being finished, slowly: the other's lease goes on, and no one is told that it is lost."""
    slow, other, lock = order(), order(), connect(autocommit=False)
    seen = Recorder()
    with Gate("consumer.claimed", holds=2) as gate:
        consumer = opened(effectful(lease_seconds=0.4), gate, seen)
        running = [background(consumer.deliver, delivery(message)) for message in (slow, other)]
        until(lambda: rows.state(db, slow) and rows.state(db, other))
        lock.execute("SELECT 1 FROM onceward.inbox WHERE message_id = %s FOR UPDATE", (slow.id,))
        until(beats(db, other))
        assert seen.count("consumer.lease_lost") == 0
        lock.rollback()
        gate.release()
        assert [future.result() for future in running] == [ACK, ACK]


def test_a_handler_is_told_that_another_has_taken_its_message(opened: Opened, db: Db) -> None:
    def handle(message: Message, once: Once) -> None:
        assert not once.lease_lost
        rows.claim_by_another(db, message)
        until(lambda: once.lease_lost)
        is_lost.append(True)

    is_lost: list[bool] = []
    seen = Recorder()
    assert opened(effectful(handle, lease_seconds=0.3), seen).deliver(delivery(order())).action == "leave"
    assert (is_lost, seen.count("consumer.lease_lost")) == ([True], 2)


def test_a_handler_is_told_when_no_heartbeat_reaches_the_database(opened: Opened, db: Db, dsn: str) -> None:
    """Nobody can say whether another has the message: it may. The effect is not started, and nothing is settled."""

    def handle(message: Message, once: Once) -> None:
        proxy.cut()
        until(lambda: once.lease_lost)
        is_lost.append(True)
        rows.claim_by_another(db, message)
        proxy.heal()
        consumer.database.forget_broken()
        once.effect("charge", lambda *_: called.append(True), request=1, provider=STRIPE_V1)

    is_lost: list[bool] = []
    called: list[bool] = []
    message = order()
    with Proxy(dsn) as proxy:
        consumer = opened(effectful(handle, lease_seconds=0.4), database=proxy.dsn)
        assert consumer.deliver(delivery(message)).action == "leave"
    assert (is_lost, called, rows.inbox_row(db, message).token) == ([True], [], 2)


def test_a_database_that_is_away_does_not_keep_the_heartbeat_from_the_queue(dsn: str, background: Background) -> None:
    def handle(_: Message, __: Once) -> None:
        proxy.cut()
        before = len(source.extended)
        until(lambda: len(source.extended) >= before + 8)
        proxy.heal()

    source = ListSource(lease_seconds=0.5, poll_seconds_max=0.1)
    source.waiting.append(delivery(order()))
    with Proxy(dsn) as proxy:
        consumer = effectful(handle, lease_seconds=0.5)
        with consuming(
            background, run, consumer=consumer, source=lambda: source, database=proxy.dsn, threads=1, prefetch=1
        ):
            until(lambda: len(source.extended) >= 9)


@pytest.mark.parametrize("how", ["extend", "receive"])
def test_a_handler_is_told_that_the_queue_took_its_delivery_away(how: str, dsn: str, background: Background) -> None:
    def handle(_: Message, once: Once) -> None:
        if how == "extend":
            source.taken_away.add(arrived.id)
        else:
            source.lost.append(arrived)
        until(lambda: once.lease_lost)

    source, arrived = ListSource(lease_seconds=0.3, poll_seconds_max=0.1), delivery(order())
    source.waiting.append(arrived)
    consumer = effectful(handle, lease_seconds=0.3)
    with consuming(background, run, consumer=consumer, source=lambda: source, database=dsn, threads=1, prefetch=1):
        source.wait_for_settled(1)
    assert source.actions(arrived.id) == ["ack"]


def test_a_second_arrival_under_the_same_delivery_id_does_not_end_the_firsts_heartbeat(
    opened: Opened, db: Db, background: Background
) -> None:
    message = order()
    with Gate("consumer.claimed") as gate:
        consumer = opened(effectful(lease_seconds=0.4), gate)
        running = background(consumer.deliver, delivery(message, id="7"))
        gate.wait()
        assert consumer.deliver(delivery(message, id="7", times=2)).action == "release"
        until(beats(db, message))
    assert running.result() == ACK


def test_what_is_prefetched_is_kept_while_it_waits(dsn: str, db: Db, background: Background) -> None:
    """Ten messages, one thread, the first slow: each one's lease is extended, and each is acknowledged once."""
    source, messages = ListSource(lease_seconds=0.3), [order() for _ in range(10)]
    arrived = [delivery(message) for message in messages]
    source.waiting.extend(arrived)
    with Gate("consumer.claimed") as gate:
        options = {"source": lambda: source, "database": dsn, "threads": 1, "prefetch": 12, "listeners": [gate]}
        with consuming(background, run, consumer=effectful(), **options):
            gate.wait()
            until(lambda: all(source.extended.count(one.id) >= 2 for one in arrived))
            gate.release()
            source.wait_for_settled(10)
    assert [source.actions(one.id) for one in arrived] == [["ack"]] * 10
    assert [rows.effects(db, message) for message in messages] == [1] * 10


def test_pgmq_delivers_none_of_the_prefetched_again(dsn: str, db: Db, background: Background) -> None:
    """Another consumer of the queue gets nothing for more than two visibility timeouts."""
    pgmq.create_queue(db, "orders")
    sink, other = pgmq.Sink("orders", dsn), pgmq.Source("orders", dsn, visibility_seconds=1)
    sink.publish([order() for _ in range(10)])
    options = {"source": lambda: pgmq.Source("orders", dsn, visibility_seconds=1), "database": dsn}
    with Gate("consumer.claimed") as gate:
        seen = Recorder()
        listeners = [gate, seen]
        with consuming(background, run, consumer=effectful(), threads=1, prefetch=10, listeners=listeners, **options):
            gate.wait()
            assert not other.receive(10, 2.0).deliveries
            gate.release()
            seen.wait_for("consumer.settled", 10)
    assert rows.scalar(db, "SELECT count(*) FROM effects") == 10
    assert seen.count("consumer.received") == 10
    sink.close()
    other.close()


def test_settling_waits_for_an_extension_in_flight(opened: Opened, background: Background) -> None:
    """An extension that is carried out after the release would hide the message again."""

    class Slow(ListSource):
        def extend(self, deliveries: Any, seconds: float) -> Any:
            reached.append(True)
            until(lambda: released)
            return super().extend(deliveries, seconds)

    reached: list[bool] = []
    released: list[bool] = []
    source, arrived = Slow(lease_seconds=0.05), delivery(order())
    keeper = opened(of_shape("effectful"), source=source).keeper
    keeper.received([arrived])
    until(lambda: reached)
    dropping = background(keeper.drop, [arrived])
    assert not dropping.done()
    released.append(True)
    dropping.result(timeout=10)


def test_a_claim_that_is_over_is_not_extended_by_the_beat_that_is_under_way(
    opened: Opened, db: Db, dsn: str, background: Background
) -> None:
    """A failed attempt has given its lease back: an extension that came later would make its retry wait for a lease."""

    def connect() -> Db:
        if threading.current_thread().name == "onceward-heartbeat" and held:
            reached.set()
            released.wait(20)
        return psycopg.connect(dsn)

    over, other = order(), order()
    arrived = delivery(over)
    held: list[bool] = []
    reached, released = threading.Event(), threading.Event()
    with Gate("consumer.claimed", holds=2) as gate:
        consumer = opened(effectful(lease_seconds=3), gate, database=connect)
        running = [background(consumer.deliver, one) for one in (arrived, delivery(other))]
        until(lambda: rows.state(db, over) and rows.state(db, other))
        held.append(True)
        assert reached.wait(20)
        ending = background(consumer.keeper.done, arrived)
        held.clear()
        released.set()
        ending.result(timeout=20)
        at_the_end = rows.inbox_row(db, over).lease_until
        until(beats(db, other))
        assert rows.inbox_row(db, over).lease_until == at_the_end
        consumer.keeper.done(arrived)
        gate.release()
        assert [future.result() for future in running] == [ACK, ACK]


def test_ending_a_claim_waits_for_one_heartbeat_at_most(opened: Opened, db: Db, dsn: str, background: Background) -> None:
    """A database that hangs in the beat must not hang the handlers too."""

    def connect() -> Db:
        if threading.current_thread().name == "onceward-heartbeat":
            reached.set()
            released.wait(20)
        return psycopg.connect(dsn)

    arrived = delivery(order())
    reached, released = threading.Event(), threading.Event()
    with Gate("consumer.claimed") as gate:
        consumer = opened(effectful(lease_seconds=0.5), gate, database=connect)
        running = background(consumer.deliver, arrived)
        assert reached.wait(20)
        background(consumer.keeper.done, arrived).result(timeout=10)
        released.set()
        gate.release()
        running.result(timeout=20)


def test_the_callers_pool_may_give_dictionaries(opened: Opened, db: Db, dsn: str, background: Background) -> None:
    message = order()
    pool: Any = ConnectionPool(dsn, min_size=1, max_size=7, kwargs={"row_factory": dict_row}, open=True)
    with pool, Gate("consumer.claimed") as gate:
        consumer = opened(effectful(lease_seconds=0.4), gate, database=pool)
        running = background(consumer.deliver, delivery(message))
        gate.wait()
        until(beats(db, message))
        gate.release()
        assert running.result() == ACK
        consumer.close()
