"""One form for every queue, and what is said of what cannot be read."""

from __future__ import annotations

import pytest

from onceward.errors import UsageError
from onceward.queue_urls import (
    KafkaTopic,
    PgmqQueue,
    QueueUrl,
    RabbitmqQueue,
    SqsQueue,
    parse,
    sink_at,
    split,
    without_secrets,
)

DATABASE = "dbname=shop"
SQS_URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders.fifo"


def parsed(text: str) -> QueueUrl:
    return parse(text, database=DATABASE)


@pytest.mark.parametrize(
    ("text", "queue"),
    [
        ("orders", PgmqQueue("orders", DATABASE)),
        ("pgmq:orders", PgmqQueue("orders", DATABASE)),
        ("pgmq://orders", PgmqQueue("orders", DATABASE)),
        ("sqs://orders.fifo", SqsQueue("orders.fifo")),
        (f"sqs:{SQS_URL}", SqsQueue(SQS_URL)),
        ("amqp://u:p%40ss@host:5671/%2F?queue=orders", RabbitmqQueue("orders", "amqp://u:p%40ss@host:5671/%2F")),
        (
            "amqps://host/shop?heartbeat=5&queue=orders%20new",
            RabbitmqQueue("orders new", "amqps://host/shop?heartbeat=5"),
        ),
        ("kafka://a:9092,b:9092/orders", KafkaTopic("orders", "a:9092,b:9092", {})),
        (
            "kafka://a:9092/orders?group=g&session.timeout.ms=6000",
            KafkaTopic("orders", "a:9092", {"group": "g", "session.timeout.ms": "6000"}),
        ),
    ],
)
def test_a_url_names_a_queue_at_its_server(text: str, queue: QueueUrl) -> None:
    assert parsed(text) == queue


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pgmq:",
        "sqs://",
        "amqp://host/vhost",
        "amqp://host/?queue=",
        "kafka://host:9092",
        "kafka:///orders",
        "redis://x",
    ],
)
def test_what_names_no_queue_is_answered_with_the_right_form(text: str) -> None:
    with pytest.raises(UsageError, match=r"sqs://NAME|kafka://HOST"):
        parsed(text)


def test_a_password_is_in_no_message_and_no_repr() -> None:
    with pytest.raises(UsageError) as refused:
        parsed("amqp://user:secret@host/vhost")
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(parsed("amqp://user:secret@host/vhost?queue=orders"))
    assert "secret" not in repr(parsed("kafka://host:9092/orders?sasl.password=secret"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://user:secret@host:5672/%2F?queue=orders&heartbeat=5", "amqp://host:5672/%2F?queue=orders"),
        ("kafka://a:1,b:2/orders?group=g&sasl.password=secret", "kafka://a:1,b:2/orders"),
        ("sqs://orders", "sqs://orders"),
        ("orders", "orders"),
        ("shop.queues:orders", "shop.queues:orders"),
    ],
)
def test_what_is_logged_of_a_queue_has_no_secret(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_form_of_a_topic_is_shown_without_its_settings() -> None:
    with pytest.raises(UsageError) as refused:
        parsed("kafka:///orders?sasl.password=secret")
    assert "secret" not in str(refused.value)


def test_two_urls_with_other_settings_are_not_one_server() -> None:
    with pytest.raises(UsageError, match="one server"):
        sink_at({"a": ["kafka://h:1/x?acks=all"], "b": ["kafka://h:1/y?security.protocol=SSL"]}, database=DATABASE)


@pytest.mark.parametrize(
    ("text", "queues"),
    [
        ("orders", ["orders"]),
        ("orders, emails", ["orders", "emails"]),
        ("sqs://orders,sqs://emails", ["sqs://orders", "sqs://emails"]),
        ("kafka://a:9092,b:9092/orders,kafka://a:9092,b:9092/emails",
         ["kafka://a:9092,b:9092/orders", "kafka://a:9092,b:9092/emails"]),
    ],
)  # fmt: skip
def test_a_comma_parts_queues_and_not_brokers(text: str, queues: list[str]) -> None:
    assert split(text) == queues


def test_a_relay_sends_to_one_server() -> None:
    with pytest.raises(UsageError, match="one server"):
        sink_at({"order.placed": ["sqs://orders"], "order.paid": ["pgmq:orders"]}, database=DATABASE)
    with pytest.raises(UsageError, match="one server"):
        sink_at({"a": ["kafka://a:1/x"], "b": ["kafka://b:1/x"]}, database=DATABASE)
    assert callable(sink_at({"a": ["sqs://x"], "b": ["sqs://x", "sqs://y"]}, database=DATABASE))
