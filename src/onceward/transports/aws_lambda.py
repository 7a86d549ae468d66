"""AWS Lambda: a consumer as the function behind an event source mapping of SQS, Kafka or RabbitMQ.

    from onceward.transports.aws_lambda import lambda_handler

    handler = lambda_handler(consumer, database=os.environ["DATABASE_URL"], partial_responses=True)

There is no loop and no Source here: Lambda receives and acknowledges, and the function answers which messages are not done.
Whatever ends an invocation, a timeout or a crash, its whole batch comes again, and the inbox turns away what was finished.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

from onceward.errors import TransportError, UsageError
from onceward.transport import ACK, LEAVE, Delivery, Settlement, release
from onceward.transports.sqs_wire import BATCH_MAX, HIDDEN_SECONDS_MAX, as_text, decoded

__all__ = ["lambda_handler"]

logger = logging.getLogger("onceward")
MARGIN_SECONDS_DEFAULT: Final = 2.0
# The longest of so many counts. Of all, one slow message would make every later invocation give its batch back.
TIMED_MAX: Final = 100
_NOT_STARTED: Final = release(0)
Event = Mapping[str, Any]
Identifier = str | dict[str, Any]  # what a partial response calls an item: SQS's message id, Kafka's partition and offset
Response = dict[str, list[dict[str, Identifier]]]


class Context(Protocol):
    """What of Lambda's context is used."""

    def get_remaining_time_in_millis(self) -> int:
        """Until Lambda ends the invocation."""
        ...


class Opened(Protocol):
    """A consumer with its database, as `Consumer.open` gives it."""

    def deliver(self, delivery: Delivery) -> Settlement:
        """What is to become of this delivery."""
        ...

    def excuse(self, delivery: Delivery, why: str) -> None:
        """It is given back before its handler began."""
        ...


class Opens(Protocol):
    """A consumer."""

    name: str

    def open(self, database: Any, *, listeners: Sequence[Any] = (), upkeep: bool = True) -> Opened:
        """Connect."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One message of an event."""

    delivery: Delivery
    identifier: Identifier | None  # None: this event source takes no partial response
    line: str | None = None  # behind a message that is not done, nothing of its line is started
    receipt: str | None = None  # SQS's receipt handle
    queue_arn: str = ""


def lambda_handler(
    consumer: Opens,
    *,
    database: Any,
    partial_responses: bool = False,
    client: Any = None,
    margin_seconds: float = MARGIN_SECONDS_DEFAULT,
    listeners: Sequence[Any] = (),
    upkeep: bool = True,
) -> Callable[[Event, Context], Response]:
    """The function for Lambda to call. It connects at its first invocation, once in each execution environment.

    `database`, `listeners` and `upkeep` are those of `Consumer.open`.

    `partial_responses=True` answers with `batchItemFailures`, exactly what is not done. Only with ReportBatchItemFailures
    among the FunctionResponseTypes of the event source mapping: without it Lambda takes every answer for a success, and
    what was to be retried is LOST. With False, which works with every mapping, an invocation that leaves anything undone
    raises `TransportError`, and its whole batch comes again.

    A message is not started when the time that is left is less than `margin_seconds` and the longest that a message has
    taken; it counts as not done. The first of an invocation is always started.

    With a `client` of SQS (boto3), what is not done comes again after its own delay, and what was not started at once;
    without one, both come when the queue's visibility timeout is over.

    Crash anywhere, also by Lambda's timeout: the whole batch comes again, and what was finished is turned away.
    """
    if margin_seconds < 0:
        raise UsageError("margin_seconds is at least 0")
    return LambdaHandler(
        lambda: consumer.open(database, listeners=listeners, upkeep=upkeep),
        name=consumer.name,
        partial_responses=partial_responses,
        visibility=None if client is None else Visibility(client),
        margin_seconds=margin_seconds,
    )


class LambdaHandler:
    """One function in one execution environment, which Lambda gives one event at a time."""

    def __init__(
        self,
        opens: Callable[[], Opened],
        *,
        name: str,
        partial_responses: bool,
        visibility: Visibility | None,
        margin_seconds: float,
    ) -> None:
        self._opens = opens
        self._name = name
        self._partial_responses = partial_responses
        self._visibility = visibility
        self._margin_seconds = margin_seconds
        self._opened: Opened | None = None
        self._took_seconds: deque[float] = deque(maxlen=TIMED_MAX)
        # Lambda calls one at a time; a test, or a server that imitates it, may not.
        self._lock = threading.Lock()

    def __call__(self, event: Event, context: Context) -> Response:
        """Deliver what the event holds; the answer says what of it is not done."""
        items = items_of(event)
        with self._lock:
            undone = self._undone(self._connected(), items, context)
        if self._visibility is not None:
            self._visibility.change(undone)
        return self._answer(undone, len(items))

    def _connected(self) -> Opened:
        if self._opened is None:
            self._opened = self._opens()
        return self._opened

    def _undone(self, opened: Opened, items: Sequence[Item], context: Context) -> list[tuple[Item, Settlement]]:
        undone: list[tuple[Item, Settlement]] = []
        closed: set[str | None] = set()
        started = 0
        for item in items:
            if item.line in closed:
                # Of a FIFO queue: ten at most, so that telling of them takes no time that is not there.
                opened.excuse(item.delivery, "given back behind another message of its queue")
                settlement = _NOT_STARTED
            elif started and not self._has_time(context):
                settlement = _NOT_STARTED
            else:
                settlement = self._deliver(opened, item.delivery)
                started += 1
            if settlement != ACK:
                undone.append((item, settlement))
                closed |= {item.line} - {None}
        if not_started := len(items) - started:
            logger.info("%s: %d of %d messages were not started, and come again", self._name, not_started, len(items))
        return undone

    def _has_time(self, context: Context) -> bool:
        longest_seconds = max(self._took_seconds, default=0.0)
        return context.get_remaining_time_in_millis() / 1000 >= self._margin_seconds + longest_seconds

    def _deliver(self, opened: Opened, delivery: Delivery) -> Settlement:
        began = time.monotonic()
        try:
            return opened.deliver(delivery)
        except Exception:
            logger.exception("%s: handling delivery %s failed; it comes again", self._name, delivery.id)
            return LEAVE
        finally:
            self._took_seconds.append(time.monotonic() - began)

    def _answer(self, undone: Sequence[tuple[Item, Settlement]], many: int) -> Response:
        identifiers = [item.identifier for item, _ in undone if item.identifier is not None]
        if len(identifiers) < len(undone) or (undone and not self._partial_responses):
            # For Lambda, an invocation that raised has done nothing: every message of it comes again.
            raise TransportError(
                f"{self._name}: {len(undone)} of {many} messages are not done, so all of them come again; the inbox turns "
                "away those that are"
            )
        return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in identifiers]}


class Visibility:
    """Tells SQS when messages that are not done are to come again."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._urls: dict[str, str] = {}

    def change(self, undone: Sequence[tuple[Item, Settlement]]) -> None:
        """What is to be released comes again after its delay; a failure is logged, and leaves it to the queue's timeout."""
        by_queue: dict[str, list[tuple[str, int]]] = {}
        for item, settlement in undone:
            if item.receipt is not None and settlement.action == "release":
                seconds = min(math.ceil(settlement.delay_seconds), HIDDEN_SECONDS_MAX)
                by_queue.setdefault(item.queue_arn, []).append((item.receipt, seconds))
        for arn, changes in by_queue.items():
            for begin in range(0, len(changes), BATCH_MAX):
                self._change(arn, changes[begin : begin + BATCH_MAX])

    def _change(self, arn: str, changes: Sequence[tuple[str, int]]) -> None:
        entries = [
            {"Id": str(index), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
            for index, (receipt, seconds) in enumerate(changes)
        ]
        try:
            failed = self._client.change_message_visibility_batch(QueueUrl=self._url(arn), Entries=entries).get(
                "Failed", ()
            )
        except Exception as error:  # noqa: BLE001 - of whatever class the client raises; the queue's own timeout decides
            failed, why = entries, str(error)
        else:
            why = str(failed[0].get("Code")) if failed else ""
        if failed:
            logger.warning(
                "%d messages come again when the visibility timeout of %s is over; to change it failed: %s",
                len(failed), arn, why,
            )  # fmt: skip

    def _url(self, arn: str) -> str:
        if arn not in self._urls:
            account, name = arn.split(":")[-2:]
            answer = self._client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
            self._urls[arn] = answer["QueueUrl"]
        return self._urls[arn]


# ---- what the events of each source look like ----------------------------------------------------------------------------


def items_of(event: Event) -> list[Item]:
    """The messages of an event, in order. Raises `UsageError` for an event of any other service."""
    match event:
        case {"eventSource": "aws:kafka" | "SelfManagedKafka", "records": by_partition}:
            return [_kafka_item(name, record) for name, records in by_partition.items() for record in _by_offset(records)]
        case {"eventSource": "aws:rmq", "rmqMessagesByQueue": by_queue}:
            return [_rabbitmq_item(name, message) for name, messages in by_queue.items() for message in messages]
        case {"Records": [{"eventSource": "aws:sqs"}, *_] as records}:
            return [_sqs_item(record) for record in records]
        case _:
            raise UsageError(
                f"an event of SQS, Kafka or RabbitMQ is expected, as an event source mapping gives it; this one has the "
                f"keys {sorted(event)}"
            )


def _sqs_item(record: Mapping[str, Any]) -> Item:
    arn = record["eventSourceARN"]
    attributes = {name: _sqs_header(value) for name, value in record.get("messageAttributes", {}).items()}
    headers, body = decoded(attributes, record["body"])
    # Of all groups together, because AWS asks for it: behind the first failure of a FIFO batch nothing more is handled.
    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
    line = arn if arn.endswith(".fifo") else None
    delivery = Delivery(
        id=record["messageId"],
        source=f"sqs:{arn.rpartition(':')[2]}",
        headers=headers,
        body=body,
        count=int(record["attributes"]["ApproximateReceiveCount"]),
    )
    return Item(delivery, record["messageId"], line, record["receiptHandle"], arn)


def _sqs_header(attribute: Mapping[str, Any]) -> str:
    if attribute["dataType"].startswith("Binary"):
        return as_text(base64.b64decode(attribute["binaryValue"]))
    return str(attribute["stringValue"])


def _by_offset(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(records, key=lambda record: record["offset"])


def _kafka_item(partition: str, record: Mapping[str, Any]) -> Item:
    # A header that is repeated is in it twice; the last one counts. Its bytes are Java's, from -128 to 127.
    headers = {
        name: as_text(bytes(byte % 256 for byte in value or ()))
        for header in record.get("headers") or ()
        for name, value in header.items()
    }
    delivery = Delivery(
        id=f"{partition}:{record['offset']}",
        source=f"kafka:{record['topic']}",
        headers=_unprefixed(headers, "ce_"),
        body=base64.b64decode(record.get("value") or ""),
    )
    # https://docs.aws.amazon.com/lambda/latest/dg/kafka-retry-configurations.html
    return Item(delivery, {"partition": partition, "offset": record["offset"]}, line=partition)


def _rabbitmq_item(queue: str, message: Mapping[str, Any]) -> Item:
    properties = message["basicProperties"]
    headers = {name: _rabbitmq_header(value) for name, value in (properties.get("headers") or {}).items()}
    body = base64.b64decode(message["data"])
    failed = headers.get("x-delivery-count", "")
    delivery = Delivery(
        # Lambda names no delivery tag. What cannot be read is parked under this id, and comes again under the same one.
        id=properties.get("messageId") or sha256(body).hexdigest(),
        source=f"rabbitmq:{queue.partition('::')[0]}",
        headers=_unprefixed(headers, "cloudEvents_", "cloudEvents:"),
        body=body,
        count=int(failed) + 1 if failed.isdecimal() else 0,
    )
    return Item(delivery, identifier=None)


def _rabbitmq_header(value: Any) -> str:
    match value:
        case str():
            return value
        case {"bytes": list(content)}:
            return as_text(bytes(byte % 256 for byte in content))  # Java's bytes have a sign
        case _:
            return json.dumps(value)


def _unprefixed(headers: Mapping[str, str], *prefixes: str) -> dict[str, str]:
    """The envelope without its prefix, before what other headers say under the same names."""
    others = {name: value for name, value in headers.items() if not name.startswith(prefixes)}
    return others | dict(_envelope(headers, prefixes))


def _envelope(headers: Mapping[str, str], prefixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), value
