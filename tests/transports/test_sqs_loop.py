"""SQS under the real loop: what is kept alive, what is told in which order, what a dead-letter queue gives back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import order
from tests.support.shop import transactional
from tests.support.sqs_queues import Client, fresh_queue, make_client
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.consumer_loop import Entry, Loop, Settler, run
from onceward.events import Event
from onceward.message import Message
from onceward.testing.transport import receive_one
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, Source, release
from onceward.transports import sqs

Db = psycopg.Connection[Any]


@pytest.fixture
def client(sqs_endpoint: str) -> Client:
    return make_client(sqs_endpoint)


@contextmanager
def running(background: Background, consumer: Any, dsn: str, source: Source, **options: Any) -> Iterator[None]:
    stop = threading.Event()
    done = background(run, consumer, source=source, database=dsn, stop=stop, **options)
    try:
        yield
    finally:
        stop.set()
        done.result(timeout=20)


# ---- stop before delete ------------------------------------------------------------------------------------------------


class Wire:
    """Holds the first ChangeMessageVisibility back until its message is handled, and sees what is deleted meanwhile."""

    def __init__(self, client: Client) -> None:
        self.extending = threading.Event()  # one is about to be sent
        self.handled = threading.Event()  # the handler's transaction is committed
        self.deleted = threading.Event()
        self.raced: set[str] = set()  # receipt handles that were deleted while a change of them was in flight
        self._in_flight: set[str] = set()
        events = client.meta.events
        events.register("before-call.sqs.ChangeMessageVisibilityBatch", self._change_begins)
        events.register("after-call.sqs.ChangeMessageVisibilityBatch", self._change_ends)
        events.register("before-call.sqs.DeleteMessageBatch", self._delete_begins)

    def _change_begins(self, params: dict[str, Any], **_: Any) -> None:
        self._in_flight |= handles(params)
        self.extending.set()
        assert self.handled.wait(20)
        # As slow as it must be for a delete that does not wait for it to come first.
        self.deleted.wait(1.0)

    def _change_ends(self, **_: Any) -> None:
        self._in_flight.clear()

    def _delete_begins(self, params: dict[str, Any], **_: Any) -> None:
        self.raced |= self._in_flight & handles(params)
        self.deleted.set()

    def listener(self, event: Event) -> None:
        if event.point == "consumer.committed":
            self.handled.set()


def handles(params: dict[str, Any]) -> set[str]:
    return {entry["ReceiptHandle"] for entry in json.loads(params["body"])["Entries"]}


class SettlesFirst(Settler):
    """Sabotage: tells the queue first, and stops the heartbeat after it."""

    def _settle(self, entries: Sequence[Entry]) -> None:
        self._source.settle(list(entries))
        self._opened.keeper.drop([delivery for delivery, _ in entries])


class DoesNotWait(Settler):
    """Sabotage: stops the heartbeat, but not the extension that is under way."""

    def _settle(self, entries: Sequence[Entry]) -> None:
        for delivery, _ in entries:
            self._opened.keeper._held.pop(id(delivery), None)
        super()._settle(entries)


def deleted_amid_an_extension(
    client: Client, background: Background, opened: Callable[..., OpenConsumer], settler: type[Settler]
) -> set[str]:
    """The receipt handles whose delete was sent while a change of their visibility was in flight."""
    queue, wire = fresh_queue(client), Wire(client)

    def handle(message: Message, tx: Any) -> None:
        assert wire.extending.wait(20)
        rows.write_effect(tx, message)

    sqs.Sink(client, queue).publish([order()])
    source = sqs.Source(client, queue, visibility_seconds=2)
    consumer = opened(transactional(handle), wire.listener, source=source)
    loop = Loop(consumer, source, threads=1, prefetch=0, drain_seconds=20)
    loop._workers._settler = settler(consumer, source)
    done = background(loop.run)
    try:
        until(wire.deleted.is_set, "the delete")
    finally:
        loop.stop()
        done.result(timeout=20)
    return wire.raced


def test_no_extension_is_in_flight_when_a_message_is_deleted(
    client: Client, background: Background, opened: Callable[..., OpenConsumer]
) -> None:
    """One that is carried out after the delete asks for a message that is gone; after a release, it would hide one."""
    assert deleted_amid_an_extension(client, background, opened, Settler) == set()


@pytest.mark.parametrize("settler", [SettlesFirst, DoesNotWait])
def test_a_settler_that_deletes_amid_an_extension_is_caught(
    client: Client, background: Background, opened: Callable[..., OpenConsumer], settler: type[Settler]
) -> None:
    assert len(deleted_amid_an_extension(client, background, opened, settler)) == 1


# ---- scenario 6: what waits in this process is kept alive --------------------------------------------------------------


class Watched(sqs.Source):
    """Notes what came, and how often the heartbeat came by."""

    def __init__(self, client: Client, queue: str) -> None:
        super().__init__(client, queue, visibility_seconds=2)
        self.came: list[str] = []
        self.beats = 0
        self.beaten = threading.Condition()

    def receive(self, limit: int, wait_seconds: float) -> Received:
        received = super().receive(limit, wait_seconds)
        self.came += [delivery.id for delivery in received.deliveries]
        return received

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        outcomes = self._extend(deliveries, seconds)
        with self.beaten:
            self.beats += 1
            self.beaten.notify_all()
        return outcomes

    def _extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        return super().extend(deliveries, seconds)

    def wait_for_beats(self, many: int) -> None:
        with self.beaten:
            wanted = self.beats + many
            assert self.beaten.wait_for(lambda: self.beats >= wanted, timeout=20)


class NeverExtends(Watched):
    """Sabotage: says that it did."""

    def _extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:  # noqa: ARG002
        return [Outcome.SETTLED] * len(deliveries)


def consume_slowly(source: Watched, queue: str, client: Client, dsn: str, background: Background) -> None:
    """Ten prefetched messages and one thread: together they take some three times the visibility timeout."""
    acked: list[str] = []

    def handle(message: Message, tx: Any) -> None:
        source.wait_for_beats(1)
        rows.write_effect(tx, message)

    def listener(event: Event) -> None:
        if event.point == "consumer.settled":
            acked.append(event.message_id)

    sent = [order() for _ in range(10)]
    sqs.Sink(client, queue).publish(sent)
    with running(background, transactional(handle), dsn, source, threads=1, prefetch=9, listeners=[listener]):
        until(lambda: {message.id for message in sent} <= {*acked}, "ten acks", 60)


def test_prefetched_deliveries_are_kept_alive_while_they_wait(client: Client, dsn: str, background: Background) -> None:
    queue = fresh_queue(client)
    source = Watched(client, queue)
    consume_slowly(source, queue, client, dsn, background)
    assert len(source.came) == len({*source.came}) == 10


def test_without_extensions_prefetched_deliveries_come_again(
    client: Client, dsn: str, db: Db, background: Background
) -> None:
    """And nothing is done twice, for the inbox turns them away."""
    queue = fresh_queue(client)
    source = NeverExtends(client, queue)
    consume_slowly(source, queue, client, dsn, background)
    assert len(source.came) > 10
    assert rows.scalar(db, "SELECT count(*) FROM effects") == 10


# ---- scenario 19b: SQS's own redrive -------------------------------------------------------------------------------------


def test_a_handled_message_that_sqs_redrives_from_its_dead_letter_queue_is_turned_away(
    client: Client, dsn: str, db: Db, opened: Callable[..., OpenConsumer]
) -> None:
    """AWS gives what it moves back a new MessageId. ElasticMQ keeps it, so a copy with another one is sent as well."""
    dead = fresh_queue(client)
    queue = fresh_queue(client, dead_letter=dead, max_receive_count=1)
    source, dead_letters = sqs.Source(client, queue, visibility_seconds=1), sqs.Source(client, dead)
    sink, message = sqs.Sink(client, queue), order()
    consumer = opened(transactional(), source=source)
    sink.publish([message])
    first = receive_one(source)
    assert consumer.deliver(first) == ACK
    # The ack is lost: when its visibility is over, SQS finds that it was delivered often enough.
    source.settle([(first, release(0))])
    until(lambda: source.receive(10, 1).deliveries or is_there(dead_letters, message), "the move to the dead letters")
    arn = client.get_queue_attributes(QueueUrl=url(client, dead), AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    client.start_message_move_task(SourceArn=arn)
    sink.publish([message])
    again = [receive_and_ack(source, consumer) for _ in range(2)]
    assert [delivery.headers["id"] for delivery in again] == [message.id] * 2
    assert {delivery.id for delivery in again} != {first.id}
    assert rows.effects(db, message) == 1


def is_there(source: sqs.Source, message: Message) -> bool:
    """The message is in this queue, where it stays."""
    got = source.receive(10, 0).deliveries
    source.settle([(delivery, release(0)) for delivery in got])
    return message.id in {delivery.headers["id"] for delivery in got}


def receive_and_ack(source: sqs.Source, consumer: OpenConsumer) -> Delivery:
    delivery = receive_one(source)
    settlement: Settlement = consumer.deliver(delivery)
    assert settlement == ACK
    source.settle([(delivery, settlement)])
    return delivery


def url(client: Client, queue: str) -> str:
    return str(client.get_queue_url(QueueName=queue)["QueueUrl"])
