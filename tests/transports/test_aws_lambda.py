"""A consumer as a Lambda function: events of SQS from a real queue, those of Kafka and RabbitMQ as AWS documents them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import order
from tests.support.lambda_events import (
    Context,
    Function,
    Mapping,
    ids,
    kafka_event,
    kafka_record,
    kill_at,
    rabbitmq_event,
)
from tests.support.shop import SHAPES, of_shape
from tests.support.sqs_queues import Client, fresh_queue, make_client, requests_of
from tests.support.waiting import until

from onceward.consumer import Consumer
from onceward.errors import Defer, TransportError, UsageError
from onceward.message import Message
from onceward.transports import sqs
from onceward.transports.aws_lambda import items_of, lambda_handler
from onceward.transports.sqs_wire import HIDDEN_SECONDS_MAX

Db = psycopg.Connection[Any]


@pytest.fixture
def client(sqs_endpoint: str) -> Client:
    return make_client(sqs_endpoint)


@pytest.fixture
def function(dsn: str) -> Callable[..., Function]:
    """Makes functions of a consumer of either shape; `refuse`: ids whose handler fails."""

    def make(*, shape: str = "transactional", refuse: Callable[[Message], object] = lambda _: None, **options: Any) -> Any:
        consumer: Consumer = of_shape(shape, refuse, lease_seconds=1.0)
        return lambda_handler(consumer, database=dsn, **{"partial_responses": True, **options})

    return make


def failing(*messages: Message, error: Exception | None = None) -> Callable[[Message], None]:
    """A handler that fails for these."""
    wrong = {message.id for message in messages}

    def refuse(message: Message) -> None:
        if message.id in wrong:
            raise error or ValueError("not this time")

    return refuse


def sent(client: Client, queue: str, many: int, *, subject: str | None = None) -> list[Message]:
    messages = [order({"n": n}, subject=subject) for n in range(many)]
    assert list(sqs.Sink(client, queue).publish(messages)) == [None] * many
    return messages


def effects(db: Db) -> int:
    return int(rows.scalar(db, "SELECT count(*) FROM effects"))


# ---- SQS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_done_is_not_named_and_what_is_not_is(
    client: Client, db: Db, function: Callable[..., Function], shape: str
) -> None:
    queue = fresh_queue(client)
    messages = sent(client, queue, 5)
    mapping = Mapping(client, queue)
    event = mapping.full_event(5)
    handler = function(shape=shape, refuse=failing(messages[1], messages[3]))
    failed = {record["messageId"] for record in event["Records"] if message_of(record) in (messages[1].id, messages[3].id)}
    assert {*mapping.settle(event, handler(event, Context()))} == failed
    assert effects(db) == 3


def test_a_batch_that_is_done_names_nothing(client: Client, function: Callable[..., Function]) -> None:
    queue = fresh_queue(client)
    sent(client, queue, 2)
    assert function()(Mapping(client, queue).full_event(2), Context()) == {"batchItemFailures": []}


def test_a_batch_that_comes_again_is_turned_away(client: Client, db: Db, function: Callable[..., Function]) -> None:
    queue = fresh_queue(client)
    sent(client, queue, 3)
    event, handler = Mapping(client, queue).full_event(3), function()
    for _ in range(2):
        assert handler(event, Context()) == {"batchItemFailures": []}
    assert effects(db) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_an_invocation_that_is_killed_loses_nothing_and_doubles_nothing(
    client: Client, dsn: str, db: Db, function: Callable[..., Function], shape: str
) -> None:
    """As Lambda ends one at its deadline: in the third of four messages, after its handler has begun."""
    queue = fresh_queue(client)
    sent(client, queue, 4)
    mapping = Mapping(client, queue, visibility_seconds=2)
    event = mapping.full_event(4)
    assert kill_at(message_of(event["Records"][2]), shape, dsn, event) == -9
    assert effects(db) == 2
    handler, again = function(shape=shape), [0]

    def all_done() -> bool:
        if (next_event := mapping.event()) is not None:
            again[0] += len(next_event["Records"])
            mapping.settle(next_event, handler(next_event, Context()))
        return listed(client, queue) == 0

    until(all_done, "the queue being empty", 60)
    assert again[0] >= 4, "the whole batch came again"
    assert rows.scalar(db, "SELECT count(DISTINCT message_id) FROM effects") == effects(db) == 4


def test_without_partial_responses_one_failure_fails_the_invocation(
    client: Client, db: Db, function: Callable[..., Function]
) -> None:
    """Where ReportBatchItemFailures is not on, Lambda would take any answer for a success, and delete everything."""
    queue = fresh_queue(client)
    messages = sent(client, queue, 3)
    event = Mapping(client, queue).full_event(3)
    with pytest.raises(TransportError, match="1 of 3 messages are not done, so all of them come again"):
        function(partial_responses=False, refuse=failing(messages[0]))(event, Context())
    assert effects(db) == 2
    assert function(partial_responses=False)(event, Context()) == {"batchItemFailures": []}
    assert effects(db) == 3


def test_behind_the_first_failure_of_a_fifo_batch_nothing_is_started(
    client: Client, db: Db, function: Callable[..., Function]
) -> None:
    queue = fresh_queue(client, fifo=True)
    messages = sent(client, queue, 4, subject="a")
    mapping = Mapping(client, queue)
    event = mapping.full_event(4)
    handler = function(refuse=failing(messages[1]))
    assert mapping.settle(event, handler(event, Context())) == ids(event)[1:]
    assert [rows.effects(db, message) for message in messages] == [1, 0, 0, 0]


def test_a_message_that_is_parked_is_done(client: Client, db: Db, function: Callable[..., Function]) -> None:
    """A FIFO group does not wait for what a person must look at."""
    queue = fresh_queue(client, fifo=True)
    client.send_message(
        QueueUrl=client.get_queue_url(QueueName=queue)["QueueUrl"], MessageBody="{}", MessageGroupId="a",
        MessageDeduplicationId="1",
    )  # fmt: skip
    sent(client, queue, 1, subject="a")
    event = Mapping(client, queue).full_event(2)
    assert function()(event, Context()) == {"batchItemFailures": []}
    assert [entry.reason for entry in rows.parked(db)] == ["malformed"]
    assert effects(db) == 1


def test_what_a_stranger_wrote_is_read_as_by_the_source(client: Client) -> None:
    queue = fresh_queue(client)
    attributes: dict[str, Any] = {
        "text": {"DataType": "String", "StringValue": "\u00fc"},
        "number": {"DataType": "Number", "StringValue": "7"},
        "binary": {"DataType": "Binary", "BinaryValue": b"a\xff"},
    }
    url = client.get_queue_url(QueueName=queue)["QueueUrl"]
    client.send_message(QueueUrl=url, MessageBody="text", MessageAttributes=attributes)
    [item] = items_of(Mapping(client, queue, visibility_seconds=0).full_event(1))
    [delivery] = sqs.Source(client, queue).receive(1, 2).deliveries
    assert (item.delivery.id, item.delivery.source) == (delivery.id, delivery.source)
    assert (item.delivery.headers, item.delivery.body) == (delivery.headers, delivery.body)


# ---- the deadline --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_before_the_deadline_is_not_started(
    client: Client, db: Db, function: Callable[..., Function]
) -> None:
    queue = fresh_queue(client)
    sent(client, queue, 4)
    event = Mapping(client, queue).full_event(4)
    answer = function(margin_seconds=5.0)(event, Context(60_000, 4_900))
    assert [failure["itemIdentifier"] for failure in answer["batchItemFailures"]] == ids(event)[2:]
    assert effects(db) == 2


def test_the_longest_that_a_message_took_must_fit(client: Client, function: Callable[..., Function]) -> None:
    queue = fresh_queue(client)
    sent(client, queue, 2)
    event, handler = Mapping(client, queue).full_event(2), function(margin_seconds=1.0)
    handler._took_seconds.append(30.0)  # type: ignore[attr-defined]
    assert len(handler(event, Context(30_900))["batchItemFailures"]) == 1
    assert handler(event, Context(31_100)) == {"batchItemFailures": []}


def test_the_first_message_is_started_however_late_it_is(client: Client, db: Db, function: Callable[..., Function]) -> None:
    """Else a function whose time-out is shorter than its slowest message would never do anything again."""
    queue = fresh_queue(client)
    sent(client, queue, 2)
    event = Mapping(client, queue).full_event(2)
    assert len(function()(event, Context(0))["batchItemFailures"]) == 1
    assert effects(db) == 1


# ---- delays --------------------------------------------------------------------------------------------------------------


def test_with_a_client_what_is_not_done_comes_again_after_its_own_delay(
    client: Client, function: Callable[..., Function]
) -> None:
    queue = fresh_queue(client)
    messages = sent(client, queue, 3)
    event = Mapping(client, queue).full_event(3)
    changes = requests_of(client, "ChangeMessageVisibilityBatch")
    deferred = {message.id: seconds for message, seconds in zip(messages, (90.5, 1e6, 0), strict=True)}

    def defer(message: Message) -> None:
        raise Defer(deferred[message.id])

    function(client=client, refuse=defer)(event, Context())
    [request] = changes
    asked = {entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in request["Entries"]}
    wanted = {messages[0].id: 91, messages[1].id: HIDDEN_SECONDS_MAX, messages[2].id: 0}
    assert asked == {record["receiptHandle"]: wanted[message_of(record)] for record in event["Records"]}


def test_with_a_client_what_was_not_started_comes_again_at_once(client: Client, function: Callable[..., Function]) -> None:
    queue = fresh_queue(client)
    sent(client, queue, 3)
    mapping = Mapping(client, queue)
    event = mapping.full_event(3)
    mapping.settle(event, function(client=client)(event, Context(0)))
    assert {*ids(mapping.full_event(2))} == {*ids(event)[1:]}


def test_a_delay_that_cannot_be_set_leaves_it_to_the_queue(
    client: Client, function: Callable[..., Function], caplog: pytest.LogCaptureFixture
) -> None:
    queue = fresh_queue(client)
    messages = sent(client, queue, 1)
    event = Mapping(client, queue).full_event(1)
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=queue)["QueueUrl"])
    answer = function(client=client, refuse=failing(*messages))(event, Context())
    assert [failure["itemIdentifier"] for failure in answer["batchItemFailures"]] == ids(event)
    assert any("to change it failed" in record.getMessage() for record in caplog.records)


# ---- Kafka ---------------------------------------------------------------------------------------------------------------


def test_behind_the_first_failed_offset_of_a_partition_all_is_named(db: Db, function: Callable[..., Function]) -> None:
    first = [order({"n": n}) for n in range(4)]
    second = [order({"n": n}) for n in range(2)]
    event = kafka_event(
        # Out of order, as nothing says that it is not.
        orders_0=[kafka_record("orders-0", 10 + n, first[n]) for n in (1, 0, 2, 3)],
        orders_1=[kafka_record("orders-1", 7 + n, second[n]) for n in range(2)],
    )
    answer = function(refuse=failing(first[1]))(event, Context())
    assert answer == {
        "batchItemFailures": [{"itemIdentifier": {"partition": "orders-0", "offset": offset}} for offset in (11, 12, 13)]
    }
    assert [rows.effects(db, message) for message in [*first, *second]] == [1, 0, 0, 0, 1, 1]


def signed(value: Sequence[int]) -> list[int]:
    return [byte - 256 if byte > 127 else byte for byte in value]


def test_a_kafka_record_is_a_message() -> None:
    message = order(subject="\u00fc\u2603", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    record = kafka_record("orders-0", 5, message)
    # As Lambda sends them: Java's bytes, from -128 to 127, and null where there is no value.
    record["headers"] = [{name: signed(value)} for header in record["headers"] for name, value in header.items()]
    record["headers"] += [{"raw": [97, -1]}, {"nothing": None}]
    [item] = items_of(kafka_event(orders_0=[record]))
    assert Message.from_wire(item.delivery.headers, item.delivery.body) == message
    assert (item.delivery.headers["raw"], item.delivery.headers["nothing"]) == ("a\\xff", "")
    assert (item.delivery.id, item.delivery.source) == ("orders-0:5", "kafka:orders")


def test_a_kafka_record_without_headers_or_value_is_parked(db: Db, function: Callable[..., Function]) -> None:
    record = kafka_record("orders-0", 5, order()) | {"headers": [], "value": None}
    assert function()(kafka_event(orders_0=[record]), Context()) == {"batchItemFailures": []}
    assert [entry.reason for entry in rows.parked(db)] == ["malformed"]


# ---- RabbitMQ ------------------------------------------------------------------------------------------------------------


def test_a_rabbitmq_batch_with_a_failure_fails_as_a_whole(db: Db, function: Callable[..., Function]) -> None:
    """Its event source mapping knows no partial response; what is done is turned away when the batch comes again."""
    messages = [order({"n": n}) for n in range(3)]
    event = rabbitmq_event(*messages)
    with pytest.raises(TransportError, match="1 of 3"):
        function(refuse=failing(messages[0]))(event, Context())
    assert effects(db) == 2
    assert function()(event, Context()) == {"batchItemFailures": []}
    assert effects(db) == 3


def test_a_rabbitmq_message_is_a_message() -> None:
    message = order(subject="\u00fc\u2603")
    [item] = items_of(rabbitmq_event(message))
    assert Message.from_wire(item.delivery.headers, item.delivery.body) == message
    assert (item.delivery.source, item.delivery.count) == ("rabbitmq:orders", 3)


# ---- the execution environment -------------------------------------------------------------------------------------------


def test_an_environment_whose_connections_died_while_it_was_frozen_works_on(
    client: Client, db: Db, function: Callable[..., Function]
) -> None:
    queue = fresh_queue(client)
    handler = function()
    for _ in range(4):
        sent(client, queue, 1)
        assert handler(Mapping(client, queue).full_event(1), Context()) == {"batchItemFailures": []}
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'onceward %'")
    assert effects(db) == 4


def test_nothing_connects_before_the_first_invocation() -> None:
    handler = lambda_handler(of_shape("transactional"), database="postgresql://127.0.0.1:1/nowhere?connect_timeout=1")
    with pytest.raises(psycopg.OperationalError):
        handler(rabbitmq_event(order()), Context())


@pytest.mark.parametrize(
    "event", [{}, {"Records": []}, {"Records": [{"eventSource": "aws:sns"}]}, {"eventSource": "aws:mq"}]
)
def test_an_event_of_another_service_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="an event of SQS, Kafka or RabbitMQ"):
        items_of(event)


def message_of(record: dict[str, Any]) -> str:
    return str(record["messageAttributes"]["id"]["stringValue"])


def listed(client: Client, queue: str) -> int:
    [each] = [each for each in sqs.list_queues(client) if each.name == queue]
    return each.messages
