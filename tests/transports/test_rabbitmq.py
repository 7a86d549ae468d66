"""RabbitMQ: the conformance suite, and what is peculiar to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pika
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.support.brokers import fresh
from tests.support.deliveries import order
from tests.support.rabbitmq import Broker
from tests.support.waiting import until

from onceward.errors import TransportError, UsageError
from onceward.message import MalformedMessage, Message
from onceward.testing.proxy import Proxy
from onceward.testing.transport import OpenRig, Rig, TransportSuite, receive_all, receive_one
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, release
from onceward.transports import rabbitmq
from onceward.transports.rabbitmq.publisher import Letter, Publisher
from onceward.transports.rabbitmq.queues import delay_queue

Db = psycopg.Connection[Any]


@pytest.fixture
def broker(rabbitmq_url: str) -> Iterator[Broker]:
    made = Broker(pika.URLParameters(rabbitmq_url))
    yield made
    made.delete_queues()
    made.close()


@pytest.fixture
def queue(broker: Broker) -> str:
    return broker.queue()


@pytest.fixture
def source(broker: Broker, queue: str, closing: Callable[[Any], Any]) -> rabbitmq.Source:
    return closing(rabbitmq.Source(broker.parameters, queue))  # type: ignore[no-any-return]


@pytest.fixture
def sink(broker: Broker, queue: str, closing: Callable[[Any], Any]) -> rabbitmq.Sink:
    return closing(rabbitmq.Sink(broker.parameters, queue))  # type: ignore[no-any-return]


class TestRabbitMQ(TransportSuite):
    """The contract, through a proxy that can cut the connections."""

    broker: Broker
    proxy: Proxy
    through: pika.ConnectionParameters
    queue: str

    @pytest.fixture(autouse=True)
    def servers(self, broker: Broker) -> Iterator[None]:
        self.broker = broker
        with Proxy(f"host={broker.parameters.host} port={broker.parameters.port}") as self.proxy:
            yield

    def make(self) -> Rig:
        self.queue = self.broker.queue()
        self.through = pika.ConnectionParameters(
            host="127.0.0.1",
            port=int(str(conninfo_to_dict(self.proxy.dsn)["port"])),
            virtual_host=self.broker.parameters.virtual_host,
            credentials=self.broker.parameters.credentials,
        )
        return Rig(
            source=lambda: rabbitmq.Source(self.through, self.queue, prefetch=200),
            sink=lambda: rabbitmq.Sink(self.through, self.queue),
            cut=self.cut,
        )

    def cut(self) -> None:
        self.proxy.cut()
        self.proxy.heal()


# ---- sending -------------------------------------------------------------------------------------------------------------


def test_a_message_that_no_queue_takes_is_an_error_of_its_own(broker: Broker, closing: Callable[[Any], Any]) -> None:
    queue = broker.queue()
    sink = closing(rabbitmq.Sink(broker.parameters, {"order.placed": queue, "order.lost": fresh("nobody")}))
    fine, lost = order(), Message(type="order.lost")
    errors = sink.publish([fine, lost, order()])
    assert [error is None for error in errors] == [True, False, True]
    assert "no queue takes it" in str(errors[1])


class NotMandatory(Publisher):
    """Sabotage: the broker may throw away what no queue takes."""

    def _send(self, confirms: Any, channel: Any, answer: Any) -> None:
        publish = channel.basic_publish
        channel.basic_publish = lambda *letter, mandatory: publish(*letter, mandatory=not mandatory)
        super()._send(confirms, channel, answer)


def test_what_is_not_mandatory_is_confirmed_although_no_queue_takes_it(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    publisher = closing(NotMandatory(broker.parameters, "sabotage"))
    letter = Letter("", fresh("nobody"), pika.BasicProperties(), b"{}")
    assert publisher.publish([letter]) == [None]
    whole = closing(Publisher(broker.parameters, "whole"))
    assert "no queue takes it" in str(whole.publish([letter]))


def test_a_queue_that_is_full_refuses_and_what_it_refused_is_not_confirmed(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    full = broker.declare(fresh("full"), x_queue_type="quorum", x_max_length=2, x_overflow="reject-publish")
    sink = closing(rabbitmq.Sink(broker.parameters, full))
    errors = [error for _ in range(10) for error in sink.publish([order()])]
    refused = [error for error in errors if error is not None]
    assert refused
    assert "basic.nack" in str(refused[0])
    until(lambda: broker.many(full) == len(errors) - len(refused), "as many as were confirmed")


def test_behind_a_message_that_is_refused_its_subject_waits_in_the_same_call(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    queue = broker.queue()
    sink = closing(rabbitmq.Sink(broker.parameters, {"order.placed": queue, "order.lost": fresh("nobody")}))
    batch = [order(subject="a"), Message(type="order.lost", subject="a"), order(subject="a"), order(subject="b")]
    assert [error is None for error in sink.publish(batch)] == [True, False, False, True]
    assert broker.many(queue) == 2


def test_one_type_may_go_to_several_queues(broker: Broker, closing: Callable[[Any], Any]) -> None:
    queues = [broker.queue(), broker.queue()]
    sink = closing(rabbitmq.Sink(broker.parameters, {"order.placed": queues}))
    message = order()
    errors = sink.publish([message, Message(type="order.unheard")])
    assert [error is None for error in errors] == [True, False]
    for queue in queues:
        source = closing(rabbitmq.Source(broker.parameters, queue))
        assert receive_one(source).headers["id"] == message.id


def test_an_exchange_gets_the_type_as_the_routing_key(broker: Broker, closing: Callable[[Any], Any]) -> None:
    exchange, queue = fresh("exchange"), broker.queue()
    broker.channel.exchange_declare(exchange, "topic", auto_delete=True)
    broker.channel.queue_bind(queue, exchange, "order.*")
    sink = closing(rabbitmq.Sink(broker.parameters, exchange=exchange))
    errors = sink.publish([order(), Message(type="payment.made")])
    assert [error is None for error in errors] == [True, False]
    source = closing(rabbitmq.Source(broker.parameters, queue))
    assert receive_one(source).headers["amqp_routing_key"] == "order.placed"


def test_an_exchange_that_is_missing_is_an_error_of_each_message(broker: Broker, closing: Callable[[Any], Any]) -> None:
    sink = closing(rabbitmq.Sink(broker.parameters, exchange=fresh("missing")))
    errors = sink.publish([order(), order()])
    assert ["NOT_FOUND" in str(error) for error in errors] == [True, True]


def test_a_broker_that_is_away_is_raised_and_not_an_error_of_each_message(closing: Callable[[Any], Any]) -> None:
    sink = closing(rabbitmq.Sink(pika.ConnectionParameters("127.0.0.1", 1), "orders"))
    with pytest.raises(TransportError, match="refused"):
        sink.publish([order(), order()])


@pytest.mark.parametrize("options", [{}, {"queues": "a", "exchange": "b"}, {"queues": {}}, {"queues": 7}, {"exchange": ""}])
def test_a_sink_that_names_no_target_is_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        rabbitmq.Sink(pika.ConnectionParameters(), **options)


def test_an_id_that_no_property_can_hold_travels_in_its_header(sink: rabbitmq.Sink, source: rabbitmq.Source) -> None:
    message = order(id="x" * 1000)
    assert list(sink.publish([message])) == [None]
    assert receive_one(source).headers["id"] == message.id


def test_a_type_that_is_too_long_for_a_routing_key_is_an_error_of_that_message(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    sink = closing(rabbitmq.Sink(broker.parameters, exchange="amq.topic"))
    (error,) = sink.publish([Message(type="t" * 256)])
    assert isinstance(error, UsageError)


# ---- what others write ---------------------------------------------------------------------------------------------------


def test_headers_of_every_type_become_text(broker: Broker, queue: str, source: rabbitmq.Source) -> None:
    at = datetime(2024, 2, 29, 12, 30, 59, tzinfo=UTC)
    headers = {
        "text": "\u00fc", "bytes": b"\xff\x00a", "yes": True, "number": 7, "decimal": Decimal("1.25"), "at": at,
        "table": {"a": [1, b"\xff", {"b": at}]}, "none": None,
    }  # fmt: skip
    broker.put(queue, headers=headers, message_id="m-1", content_type="text/plain")
    got = dict(receive_one(source).headers)
    assert got == {
        "text": "\u00fc", "bytes": "\\xff\x00a", "yes": "true", "number": "7", "decimal": "1.25", "at": at.isoformat(),
        "table": f'{{"a": [1, "\\\\xff", {{"b": "{at.isoformat()}"}}]}}',
        "amqp_message_id": "m-1", "amqp_content_type": "text/plain", "amqp_routing_key": queue,
    }  # fmt: skip


def test_the_brokers_own_message_id_is_never_the_envelopes(broker: Broker, queue: str, source: rabbitmq.Source) -> None:
    broker.put(queue, b"\xff\x00", message_id="m-1", type="order.placed")
    delivery = receive_one(source)
    with pytest.raises(MalformedMessage, match="without id and type"):
        Message.from_wire(delivery.headers, delivery.body)


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:"])
def test_an_envelope_of_another_producer_is_read(prefix: str, broker: Broker, queue: str, source: rabbitmq.Source) -> None:
    sent = order(subject="s")
    headers = {f"{prefix}{name}": value for name, value in sent.to_wire()[0].items()}
    broker.put(queue, sent.body, headers=headers | {"id": "not the envelope's"})
    got = receive_one(source)
    assert Message.from_wire(got.headers, got.body) == sent


class FarDate(datetime):
    """Milliseconds where AMQP means seconds, as some clients send them: the year 55,000."""

    def utctimetuple(self) -> Any:
        return 1970, 1, 1, 0, 0, 1_700_000_000_000


def test_a_header_that_python_cannot_hold_does_not_stop_the_queue(
    broker: Broker, queue: str, source: rabbitmq.Source
) -> None:
    broker.put(queue, b"far", headers={"id": "x", "at": FarDate(2024, 1, 1, tzinfo=UTC)})
    broker.put(queue, b"next", headers={"id": "y"})
    got = {delivery.body: delivery.headers.get("id") for delivery in receive_all(source, 2)}
    assert got == {b"far": None, b"next": "y"}


# ---- settling ------------------------------------------------------------------------------------------------------------


def test_an_ack_of_another_connection_is_lost_and_settles_nothing(
    broker: Broker, queue: str, sink: rabbitmq.Sink, source: rabbitmq.Source, closing: Callable[[Any], Any]
) -> None:
    """Tags begin at 1 on each channel: an ack on the wrong one would settle another message."""
    sink.publish([order()])
    old = receive_one(source)
    source.close()
    other = closing(rabbitmq.Source(broker.parameters, queue))
    new = receive_one(other)
    assert new.handle.tag == old.handle.tag
    assert list(other.settle([(old, ACK)])) == [Outcome.LOST]
    assert list(other.settle([(new, release(0))])) == [Outcome.SETTLED]
    assert receive_one(other).headers["id"] == new.headers["id"]


def test_a_delayed_release_keeps_the_envelope_and_the_count(
    broker: Broker, queue: str, sink: rabbitmq.Sink, closing: Callable[[Any], Any]
) -> None:
    source = closing(rabbitmq.Source(broker.parameters, queue, prefetch=1))
    delayed = order(subject="a", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    sink.publish([delayed])
    first = receive_one(source)
    assert list(source.settle([(first, release(1))])) == [Outcome.SETTLED]
    again = receive_one(source)
    assert Message.from_wire(again.headers, again.body) == delayed
    source.settle([(again, release(0.2))])
    third = receive_one(source)
    source.settle([(third, release(0))])
    assert [delivery.count for delivery in (first, again, third, receive_one(source))] == [1, 2, 3, 4]


def test_a_delayed_release_does_not_hold_up_the_queue(
    broker: Broker, queue: str, sink: rabbitmq.Sink, closing: Callable[[Any], Any]
) -> None:
    source = closing(rabbitmq.Source(broker.parameters, queue, prefetch=1))
    sink.publish([order()])
    assert list(source.settle([(receive_one(source), release(3600))])) == [Outcome.SETTLED]
    following = order()
    sink.publish([following])
    # With a prefetch of 1, a delivery that waited in this process would be the only one for a minute.
    assert receive_one(source).headers["id"] == following.id


def test_a_message_that_is_delayed_many_times_is_not_dropped_as_a_cycle(
    sink: rabbitmq.Sink, source: rabbitmq.Source
) -> None:
    sent = order()
    sink.publish([sent])
    for count in range(1, 6):
        delivery = receive_one(source)
        assert (delivery.headers["id"], delivery.count) == (sent.id, count)
        source.settle([(delivery, release(0.05))])


def test_a_short_delay_behind_a_long_one_waits_for_the_queue_of_its_own_length_only(
    sink: rabbitmq.Sink, source: rabbitmq.Source
) -> None:
    sink.publish([Message(type="order.placed", body=b"long"), Message(type="order.placed", body=b"short")])
    got = {delivery.body: delivery for delivery in receive_all(source, 2)}
    source.settle([(got[b"long"], release(3600)), (got[b"short"], release(0.1))])
    assert receive_one(source).body == b"short"


def test_the_delay_queues_of_a_foreign_queue_are_made_and_what_is_released_meanwhile_waits_here(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    queue = broker.declare(fresh("foreign"), x_queue_type="quorum")
    source = closing(rabbitmq.Source(broker.parameters, queue))
    sink = closing(rabbitmq.Sink(broker.parameters, queue))
    sent = order()
    sink.publish([sent])
    assert list(source.settle([(receive_one(source), release(3600))])) == [Outcome.SETTLED]
    # What waits here comes back with its connection; in a delay queue, it would stay for an hour.
    source.close()
    again = receive_one(closing(rabbitmq.Source(broker.parameters, queue)))
    assert (again.headers["id"], again.count) == (sent.id, 2)
    broker.many(delay_queue(queue, 1))


def test_at_the_delivery_limit_a_message_goes_to_the_dead_letter_queue_with_its_envelope(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    dead = fresh("dead")
    queue = broker.queue(dead_letter=dead, delivery_limit=2)
    broker.declare(dead, x_queue_type="quorum")  # as it is; to be deleted with the others
    source = closing(rabbitmq.Source(broker.parameters, queue))
    sent = order(subject="s")
    closing(rabbitmq.Sink(broker.parameters, queue)).publish([sent])
    counts = []
    for _ in range(3):
        delivery = receive_one(source)
        counts.append(delivery.count)
        source.settle([(delivery, release(0))])
    assert counts == [1, 2, 3]
    got = receive_one(closing(rabbitmq.Source(broker.parameters, dead)))
    assert Message.from_wire(got.headers, got.body) == sent
    assert "delivery_limit" in got.headers["x-death"]


def test_a_classic_queue_is_consumed_and_what_it_does_not_count_is_not_counted(
    broker: Broker, closing: Callable[[Any], Any]
) -> None:
    queue = broker.declare(fresh("classic"))
    source = closing(rabbitmq.Source(broker.parameters, queue))
    broker.put(queue)
    first = receive_one(source)
    source.settle([(first, release(0))])
    assert [first.count, receive_one(source).count] == [1, 0]


# ---- queues that are wrong, or gone --------------------------------------------------------------------------------------


def test_a_queue_that_was_never_there_is_a_usage_error(broker: Broker, closing: Callable[[Any], Any]) -> None:
    name = fresh("missing")
    with pytest.raises(UsageError, match="create_queue"):
        rabbitmq.check_queue(broker.parameters, name)
    with pytest.raises(UsageError, match="NOT_FOUND"):
        closing(rabbitmq.Source(broker.parameters, name)).receive(1, 0)


def test_a_broker_that_is_away_at_the_start_is_waited_for(closing: Callable[[Any], Any]) -> None:
    source = closing(rabbitmq.Source(pika.ConnectionParameters("127.0.0.1", 1), "orders"))
    for _ in range(2):
        with pytest.raises(TransportError, match="refused"):
            source.receive(1, 0)


def test_wrong_credentials_are_a_usage_error(broker: Broker, closing: Callable[[Any], Any]) -> None:
    wrong = pika.ConnectionParameters(
        broker.parameters.host, broker.parameters.port, credentials=pika.PlainCredentials("guest", "wrong")
    )
    with pytest.raises(UsageError, match="ACCESS_REFUSED"):
        closing(rabbitmq.Source(wrong, "orders")).receive(1, 0)


def test_a_queue_of_other_arguments_is_a_usage_error(broker: Broker) -> None:
    classic = broker.declare(fresh("classic"))
    with pytest.raises(UsageError, match="x-queue-type"):
        rabbitmq.create_queue(broker.parameters, classic)


def test_making_a_queue_twice_changes_nothing(broker: Broker) -> None:
    queue = broker.queue(dead_letter=(dead := fresh("dead")), delivery_limit=3)
    broker.declare(dead, x_queue_type="quorum")
    rabbitmq.create_queue(broker.parameters, queue, dead_letter=dead, delivery_limit=3)
    rabbitmq.check_queue(broker.parameters, queue)


def test_a_limit_without_a_dead_letter_queue_is_refused() -> None:
    with pytest.raises(UsageError, match="throws away"):
        rabbitmq.create_queue(pika.ConnectionParameters(), "orders", delivery_limit=3)


@pytest.mark.parametrize("prefetch", [0, -1, 65_536, True, 1.5])
def test_prefetch_is_a_limit(prefetch: Any) -> None:
    with pytest.raises(UsageError, match="prefetch"):
        rabbitmq.Source(pika.ConnectionParameters(), "orders", prefetch=prefetch)


def test_what_gives_no_parameters_is_a_usage_error(closing: Callable[[Any], Any]) -> None:
    with pytest.raises(UsageError, match="URLParameters"):
        closing(rabbitmq.Source(cast(Any, "amqp://localhost"), "orders")).receive(1, 0)


def test_a_function_is_asked_for_the_parameters_at_every_connection(
    broker: Broker, queue: str, closing: Callable[[Any], Any]
) -> None:
    asked: list[None] = []

    def parameters() -> pika.ConnectionParameters:
        asked.append(None)
        return broker.parameters

    source = closing(rabbitmq.Source(parameters, queue))
    for _ in range(2):
        source.receive(1, 0)
        source.close()
    assert len(asked) == 2


def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(
    broker: Broker, queue: str, sink: rabbitmq.Sink, source: rabbitmq.Source
) -> None:
    sink.publish([order()])
    held = receive_one(source)
    broker.channel.queue_delete(queue)
    lost: list[Delivery] = []
    errors: list[str] = []

    def is_refused() -> bool:
        try:
            lost.extend(source.receive(1, 0.1).lost)
        except TransportError as error:
            errors.append(str(error))
        return "NOT_FOUND" in "".join(errors)

    until(is_refused, "an error that names the missing queue")
    assert lost == [held]
    rabbitmq.create_queue(broker.parameters, queue)
    sent = order()
    sink.publish([sent])
    assert receive_one(source).headers["id"] == sent.id


# ---- sabotage ------------------------------------------------------------------------------------------------------------


class SettlesByTagAlone(rabbitmq.Source):
    """Sends each ack on the channel that is open now."""

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        feed = self._feed
        return super().settle([(replace(d, handle=d.handle._replace(feed=feed)), how) for d, how in entries])


def test_a_source_that_settles_by_the_tag_alone_takes_another_delivery_for_the_old_one(
    broker: Broker, queue: str, sink: rabbitmq.Sink, source: rabbitmq.Source, closing: Callable[[Any], Any]
) -> None:
    sink.publish([order()])
    old = receive_one(source)
    source.close()
    other = closing(SettlesByTagAlone(broker.parameters, queue))
    new = receive_one(other)
    assert list(other.settle([(old, ACK)])) == [Outcome.SETTLED]
    assert list(other.settle([(new, release(0))])) == [Outcome.LOST]


class BelievesWhatItWrote(rabbitmq.Source):
    """Takes an ack that was only written for one that the broker has taken."""

    def receive(self, limit: int, wait_seconds: float) -> Received:
        try:
            return super().receive(limit, wait_seconds)
        except TransportError:
            return Received(())

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        with suppress(TransportError):
            super().settle(entries)
        return [Outcome.SETTLED] * len(entries)


def test_a_source_that_believes_what_it_wrote_is_caught(broker: Broker) -> None:
    class Suite(TestRabbitMQ):
        def make(self) -> Rig:
            return replace(super().make(), source=lambda: BelievesWhatItWrote(self.through, self.queue))

    suite = Suite()
    suite.broker = broker
    with Proxy(f"host={broker.parameters.host} port={broker.parameters.port}") as suite.proxy, ExitStack() as stack:
        rig = OpenRig(suite.make(), stack)
        with pytest.raises(AssertionError, match="came again"):
            suite.test_a_settle_after_a_lost_connection_does_not_raise_what_is_not_an_error_of_the_queue(rig)
