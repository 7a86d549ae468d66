"""RabbitMQ struck: killed, out of memory, impatient. What was confirmed is never lost, and the source goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pika
import psycopg
import pytest
from tests.support import rows
from tests.support.brokers import installed
from tests.support.deliveries import order
from tests.support.points import Recorder
from tests.support.queues import consuming
from tests.support.rabbitmq import Broker
from tests.support.shop import transactional
from tests.support.waiting import Background, until

from onceward.consumer_loop import run
from onceward.errors import TransportError
from onceward.message import Message
from onceward.testing.servers import RabbitMQ
from onceward.testing.transport import receive_all, receive_one
from onceward.transport import ACK, Delivery, Outcome, release
from onceward.transports import rabbitmq

pytestmark = pytest.mark.rabbitmq
Db = psycopg.Connection[Any]
CONSUMER_TIMEOUT_SECONDS = 2.0
MESSAGE_BYTES_MAX = 1024 * 1024


@pytest.fixture(scope="module")
def own_server() -> Iterator[RabbitMQ]:
    """A server that a test may kill."""
    with cast(type[RabbitMQ], installed("rabbitmq")).start() as running:
        yield running


@pytest.fixture
def own_broker(own_server: RabbitMQ) -> Iterator[Broker]:
    made = Broker(pika.URLParameters(own_server.url))
    # Its queues go with the server: one that is deleted right after a restart can end the node's dead-lettering (3.10.8).
    yield made
    made.close()


@pytest.fixture(scope="module")
def impatient_server() -> Iterator[RabbitMQ]:
    """A server that waits for an ack for two seconds only, and takes no large messages."""
    server = cast(type[RabbitMQ], installed("rabbitmq"))
    settings = {"max_message_size": str(MESSAGE_BYTES_MAX)}
    with server.start(consumer_timeout_seconds=CONSUMER_TIMEOUT_SECONDS, settings=settings) as running:
        yield running


@pytest.fixture
def impatient_broker(impatient_server: RabbitMQ) -> Iterator[Broker]:
    made = Broker(pika.URLParameters(impatient_server.url))
    yield made
    made.close()


def test_a_handler_that_outlives_the_consumer_timeout_has_one_effect_and_ends_no_worker(
    impatient_broker: Broker, background: Background, dsn: str, db: Db, closing: Callable[[Any], Any]
) -> None:
    queue, recorder, released = impatient_broker.queue(), Recorder(), threading.Event()
    runs: list[str] = []

    def place(message: Message, tx: Db) -> None:
        runs.append(message.id)
        rows.write_effect(tx, message)
        if len(runs) == 1:
            released.wait(20)

    source = closing(rabbitmq.Source(impatient_broker.parameters, queue))
    sink = closing(rabbitmq.Sink(impatient_broker.parameters, queue))
    slow, following = order(), order()
    with consuming(background, run, consumer=transactional(place), source=source, database=dsn, listeners=[recorder]):
        sink.publish([slow])
        # The server takes the delivery away, and gives it again, while its handler still runs.
        recorder.wait_for("consumer.received", 2)
        released.set()
        sink.publish([following])
        until(lambda: rows.scalar(db, "SELECT count(DISTINCT message_id) FROM effects") == 2, "both effects")
        until(lambda: impatient_broker.many(queue) == 0, "an empty queue")
    assert sorted(row[0] for row in db.execute("SELECT message_id FROM effects")) == sorted([slow.id, following.id])


def test_a_late_ack_after_the_consumer_timeout_is_lost_and_the_source_goes_on(
    impatient_broker: Broker, closing: Callable[[Any], Any]
) -> None:
    queue = impatient_broker.queue()
    source = closing(rabbitmq.Source(impatient_broker.parameters, queue))
    sink = closing(rabbitmq.Sink(impatient_broker.parameters, queue))
    sink.publish([order()])
    held = receive_one(source)
    lost: list[Delivery] = []

    def is_lost() -> bool:
        lost.extend(source.receive(1, 0.5).lost)
        return bool(lost)

    until(is_lost, "the loss")
    assert lost == [held]
    assert list(source.settle([(held, ACK)])) == [Outcome.LOST]
    with pytest.raises(TransportError, match="PRECONDITION_FAILED"):
        source.receive(1, 0)
    again = receive_one(source)
    assert (again.headers["id"], again.count) == (held.headers["id"], 2)


def test_a_server_that_is_killed_and_restarted_loses_nothing_that_it_confirmed(
    own_server: RabbitMQ, own_broker: Broker, background: Background, dsn: str, db: Db, closing: Callable[[Any], Any]
) -> None:
    queue = own_broker.queue()
    own_server.sync()
    source = closing(rabbitmq.Source(own_broker.parameters, queue))
    sink = closing(rabbitmq.Sink(own_broker.parameters, queue))
    confirmed: set[str] = set()

    def publish(many: int) -> None:
        batch = [order() for _ in range(many)]
        try:
            errors = sink.publish(batch)
        except TransportError:
            return
        confirmed.update(message.id for message, error in zip(batch, errors, strict=True) if error is None)

    with consuming(background, run, consumer=transactional(), source=source, database=dsn):
        for _ in range(5):
            publish(20)
        killed = background(own_server.kill)
        while not killed.done():
            publish(20)
        own_server.restart()
        while len(confirmed) < 120:
            publish(20)
        until(lambda: confirmed <= done(db), "every confirmed message", seconds=60)
    assert rows.scalar(db, "SELECT count(*) - count(DISTINCT message_id) FROM effects") == 0


def done(db: Db) -> set[str]:
    return {row[0] for row in db.execute("SELECT message_id FROM effects")}


def test_a_delayed_release_survives_the_kill_of_its_server(
    own_server: RabbitMQ, own_broker: Broker, closing: Callable[[Any], Any]
) -> None:
    queue = own_broker.queue()
    own_server.sync()
    source = closing(rabbitmq.Source(own_broker.parameters, queue))
    sent = [order() for _ in range(20)]
    closing(rabbitmq.Sink(own_broker.parameters, queue)).publish(sent)
    source.settle([(delivery, release(1)) for delivery in receive_all(source, 20)])
    own_server.kill()
    own_server.restart()
    seen: set[str] = set()

    def all_came() -> bool:
        try:
            deliveries = source.receive(20, 0.5).deliveries
        except TransportError:
            return False
        seen.update(delivery.headers["id"] for delivery in deliveries)
        return len(seen) == 20

    until(all_came, "all that was delayed", seconds=60)


def test_a_broker_short_of_memory_is_an_error_of_publish_and_settling_goes_on(
    own_server: RabbitMQ, own_broker: Broker, closing: Callable[[Any], Any]
) -> None:
    queue = own_broker.queue()
    source = closing(rabbitmq.Source(own_broker.parameters, queue))
    sink = closing(rabbitmq.Sink(own_broker.parameters, queue))
    sink.publish([order(), order()])
    first, second = receive_all(source, 2)
    own_server.control("set_vm_memory_high_watermark", "0.0000001")
    try:
        with pytest.raises(TransportError, match="alarm"):
            sink.publish([order()])
        assert list(source.settle([(first, ACK), (second, release(0.1))])) == [Outcome.SETTLED] * 2
    finally:
        own_server.control("set_vm_memory_high_watermark", "absolute", "512MB")


def test_a_message_over_the_servers_limit_does_not_hold_up_the_others(
    impatient_broker: Broker, closing: Callable[[Any], Any]
) -> None:
    """The server closes the channel over it, and with it everything that is not confirmed yet."""
    sink = closing(rabbitmq.Sink(impatient_broker.parameters, impatient_broker.queue()))
    errors = sink.publish([order(), Message(type="order.placed", body=b"x" * (MESSAGE_BYTES_MAX + 1)), order()])
    assert [error is None for error in errors] == [True, False, True]
