"""Lambda's part, played: what an event source mapping of SQS gives a function, and what it does with the answer."""

from __future__ import annotations

import base64
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

from tests.support.shop import of_shape
from tests.support.sqs_queues import Client

from onceward.message import Message
from onceward.transports.aws_lambda import lambda_handler

Event = dict[str, Any]
Function = Callable[[Event, Any], dict[str, Any]]
_context = multiprocessing.get_context("forkserver")


class Context:
    """Lambda's context, with as many milliseconds left as the test says; the last number goes on."""

    def __init__(self, *milliseconds: int) -> None:
        self._milliseconds = [*milliseconds] or [60_000]

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds.pop(0) if len(self._milliseconds) > 1 else self._milliseconds[0]


class Mapping:
    """An event source mapping of one SQS queue, which reports batch item failures."""

    def __init__(self, client: Client, queue: str, *, visibility_seconds: int = 30) -> None:
        self._client = client
        self._url = client.get_queue_url(QueueName=queue)["QueueUrl"]
        self._arn = f"arn:aws:sqs:us-east-1:000000000000:{queue}"
        self._visibility_seconds = visibility_seconds

    def event(self) -> Event | None:
        """What the queue gives, at most ten messages; None: nothing."""
        answer = self._client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=1,
            VisibilityTimeout=self._visibility_seconds,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        messages = answer.get("Messages", ())
        return {"Records": [self._record(message) for message in messages]} if messages else None

    def full_event(self, many: int) -> Event:
        """An event of exactly so many messages."""
        records: list[dict[str, Any]] = []
        while len(records) < many:
            records += (self.event() or {"Records": []})["Records"]
        assert len(records) == many
        return {"Records": records}

    def settle(self, event: Event, answer: dict[str, Any]) -> list[str]:
        """What the answer does not name is deleted, as Lambda does it; returns the message ids that are not done."""
        undone = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
        for record in event["Records"]:
            if record["messageId"] not in undone:
                self._client.delete_message(QueueUrl=self._url, ReceiptHandle=record["receiptHandle"])
        return undone

    def _record(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": {n: _attribute(value) for n, value in message.get("MessageAttributes", {}).items()},
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self._arn,
            "awsRegion": "us-east-1",
        }


def _attribute(value: dict[str, Any]) -> dict[str, Any]:
    content = (
        {"binaryValue": base64.b64encode(value["BinaryValue"]).decode()}
        if "BinaryValue" in value
        else {"stringValue": value["StringValue"]}
    )
    return content | {"stringListValues": [], "binaryListValues": [], "dataType": value["DataType"]}


def ids(event: Event) -> list[str]:
    return [record["messageId"] for record in event["Records"]]


def kill_at(message_id: str, shape: str, dsn: str, event: Event) -> int | None:
    """The event is handled in a process of its own, which is killed in the handler of this message, after its write.

    Returns the exit code.
    """
    here, there = _context.Pipe()
    process = _context.Process(target=_invoke_and_hang, args=(message_id, shape, dsn, event, there))
    process.start()
    assert here.poll(60)
    assert here.recv() == message_id
    process.kill()
    process.join()
    return process.exitcode


def _invoke_and_hang(message_id: str, shape: str, dsn: str, event: Event, pipe: Pipe) -> None:
    def hang(message: Message) -> None:
        if message.id == message_id:
            pipe.send(message.id)
            pipe.recv()

    lambda_handler(of_shape(shape, hang), database=dsn, partial_responses=True)(event, Context())


def kafka_record(partition: str, offset: int, message: Message) -> dict[str, Any]:
    headers, body = message.to_wire()
    topic, _, number = partition.rpartition("-")
    return {
        "topic": topic,
        "partition": int(number),
        "offset": offset,
        "timestamp": 1545084650987,
        "timestampType": "CREATE_TIME",
        "key": base64.b64encode(b"customer").decode(),
        "value": base64.b64encode(body).decode(),
        "headers": [
            {name if name == "traceparent" else f"ce_{name}": list(value.encode())} for name, value in headers.items()
        ],
    }


def kafka_event(**partitions: Sequence[dict[str, Any]]) -> Event:
    return {
        "eventSource": "aws:kafka",
        "eventSourceArn": "arn:aws:kafka:us-east-1:123456789012:cluster/orders/vpc-2priv-2pub/751d2973-a626-431c",
        "bootstrapServers": "b-1.demo-cluster-1.example.com:9092",
        "records": {name.replace("_", "-"): list(records) for name, records in partitions.items()},
    }


def rabbitmq_event(*messages: Message) -> Event:
    return {
        "eventSource": "aws:rmq",
        "eventSourceArn": "arn:aws:mq:us-east-1:111122223333:broker:orders:b-9bcfa592-423a-4942-879d-eb284b418fc8",
        "rmqMessagesByQueue": {"orders::/": [_rabbitmq_message(message) for message in messages]},
    }


def _rabbitmq_message(message: Message) -> dict[str, Any]:
    headers, body = message.to_wire()
    # As Java writes bytes: from -128 to 127.
    named: dict[str, Any] = {
        name if name == "traceparent" else f"cloudEvents_{name}": {
            "bytes": [byte if byte < 128 else byte - 256 for byte in value.encode()]
        }
        for name, value in headers.items()
    }
    return {
        "basicProperties": {
            "contentType": None,
            "headers": named | {"x-delivery-count": 2},
            "deliveryMode": 2,
            "messageId": message.id,
            "type": None,
            "bodySize": len(body),
        },
        "redelivered": True,
        "data": base64.b64encode(body).decode(),
    }
