"""Amazon SQS, standard and FIFO queues, by a boto3 client of the caller's (`pip install 'onceward[sqs]'`).

The caller builds the client, with whatever region, credentials, timeouts and retries, and closes it. One client serves any
number of threads but not a forked process: give `run` a function that makes the client and the Source.

What SQS counts, `ApproximateReceiveCount`, is deliveries and not failed attempts: a crash counts and so does a release.
Attempts are counted by the inbox.
A message that SNS has wrapped in JSON is not unwrapped: turn on raw message delivery for the subscription.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, assert_never

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from onceward.errors import TransportError, UsageError
from onceward.message import Message
from onceward.transport import Delivery, Outcome, Received, Settlement, Traits
from onceward.transports.sqs_wire import (
    BATCH_MAX,
    ENVELOPE_BYTES_MAX,
    HIDDEN_SECONDS_MAX,
    Entry,
    as_text,
    decoded,
    requests,
    send_entry,
)

__all__ = ["Queue", "Sink", "Source", "check_queue", "create_queue", "list_queues", "retention_seconds"]

logger = logging.getLogger("onceward")
WAIT_SECONDS_MAX: Final = 20
MESSAGE_BYTES_MAX: Final = 1024 * 1024
# One request may hold at least this much, also where a queue takes smaller messages.
REQUEST_BYTES_MIN: Final = 256 * 1024
RETENTION_SECONDS_MAX: Final = 14 * 86_400
# Above a consumer's `deliveries_max`: what it would park with a reason is parked before the queue puts it aside with none.
RECEIVE_COUNT_DEFAULT: Final = 100
_HELD: Final = TransportError("held back: an earlier message of its subject was not sent")
_NOT_SENT: Final = TransportError("not sent: SQS did not answer a request before it")
# What SQS says of a receipt handle that is not the message's any more. FIFO queues say InvalidParameterValue, which may
# also mean that the delivery was hidden for 12 hours: either way it is not ours to extend, and comes again.
_LOST_CODES: Final = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"})
_ABSENT_CODES: Final = frozenset({"QueueDoesNotExist", "NonExistentQueue"})
_FORBIDDEN_CODES: Final = frozenset({"AccessDenied", "AccessDeniedException", "KmsAccessDenied", "OptInRequired"})
_STRANGER_CODES: Final = frozenset(
    {"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "MissingAuthenticationToken"}
)
# What passes by itself, or when whoever renews the client's token has done so.
_PASSING_CODES: Final = frozenset(
    {"Throttling", "ThrottlingException", "RequestThrottled", "KmsThrottled", "OverLimit", "ExpiredToken"}
    | {"ExpiredTokenException", "RequestExpired"}
)


class Queue(NamedTuple):
    """One queue, as `list_queues` finds it. Counts are SQS's own estimates."""

    name: str
    messages: int  # visible or not
    in_flight: int  # of these: delivered, and neither deleted nor visible again
    fifo: bool


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What the queue's own attributes say."""

    url: str
    name: str
    fifo: bool
    message_bytes_max: int
    dead_letters_after: int | None
    retention_seconds: float | None

    @property
    def body_bytes_max(self) -> int:
        """What always fits, with the largest envelope and as base64, which makes four bytes of three."""
        return (self.message_bytes_max - ENVELOPE_BYTES_MAX) * 3 // 4

    @property
    def request_bytes_max(self) -> int:
        """What all messages of one request may have together."""
        return max(self.message_bytes_max, REQUEST_BYTES_MIN)

    def traits(self, visibility_seconds: int) -> Traits:
        """Those of a source of this queue, or of a sink to it alone."""
        return Traits(
            lease_seconds=float(visibility_seconds),
            # A FIFO queue refuses an expired receipt handle. A standard queue answers with success, and may delete nothing.
            settle_fenced=self.fifo,
            counts_deliveries=True,
            ordered=self.fifo,
            delay_step_seconds=1.0,
            delay_seconds_max=float(HIDDEN_SECONDS_MAX),
            dead_letters_after=self.dead_letters_after,
            # One request a call: deliveries of a first request would not be kept alive while a second one hangs.
            receive_max=BATCH_MAX,
            body_bytes_max=self.body_bytes_max,
            retention_seconds=self.retention_seconds,
        )


def create_queue(
    client: Any, name: str, *, dead_letter: str | None = None, max_receive_count: int = RECEIVE_COUNT_DEFAULT
) -> bool:
    """The queue `name` exists (FIFO when it ends in `.fifo`); True when this call made it.

    With `dead_letter`, a queue of that name exists too, keeps messages for 14 days (the longest that SQS offers), and
    receives what was delivered `max_receive_count` times. A queue that is there already is left as it is.
    """
    with _explained(name):
        if _url(client, name) is not None:
            return False
        attributes = {"FifoQueue": "true"} if _is_fifo(name) else {}
        if dead_letter is not None:
            target = {"deadLetterTargetArn": _dead_letter_arn(client, dead_letter), "maxReceiveCount": max_receive_count}
            attributes |= {"RedrivePolicy": json.dumps(target)}
        client.create_queue(QueueName=name, Attributes=attributes)
    return True


def list_queues(client: Any) -> list[Queue]:
    """All queues that the client's account has in its region, by name."""
    with _explained("(any)"):
        pages = client.get_paginator("list_queues").paginate()
        urls = [url for page in pages for url in page.get("QueueUrls", ())]
        return sorted(_listed(client, url) for url in urls)


def check_queue(client: Any, queue: str) -> None:
    """Raises `UsageError` when there is no such queue, or when it is not this client's: every receive would fail."""
    _settings(client, queue)


def retention_seconds(own: int, dead_letter: int | None, *, fifo: bool) -> int:
    """How long a message may exist in a queue and then in its dead-letter queue, each with its own retention.

    A standard queue's message keeps its time of sending when it is moved, a FIFO queue's gets a new one. (A redrive by
    StartMessageMoveTask gives any message a new one: what comes back by it may be older.)
    """
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/setting-up-dead-letter-queue-retention.html
    if dead_letter is None:
        return own
    return own + dead_letter if fifo else max(own, dead_letter)


class Source:
    """One SQS queue as a source. `visibility_seconds`: whole seconds that a delivery stays hidden unless extended."""

    def __init__(self, client: Any, queue: str, *, visibility_seconds: int = 30) -> None:
        """`queue` is a name or a URL. Its attributes are read now, and those of its dead-letter queue.

        Raises `UsageError` for a queue or credentials that cannot work, `TransportError` when SQS does not answer.
        """
        if visibility_seconds != int(visibility_seconds) or not 1 <= visibility_seconds <= HIDDEN_SECONDS_MAX:
            raise UsageError(f"SQS counts visibility in whole seconds, from 1 to {HIDDEN_SECONDS_MAX}")
        self._client = client
        self._queue = _settings(client, queue)
        self._visibility_seconds = int(visibility_seconds)
        self.name = f"sqs:{self._queue.name}"
        self.traits = self._queue.traits(self._visibility_seconds)

    def receive(self, limit: int, wait_seconds: float) -> Received:
        if limit < 1:
            return Received(())
        asked_at = time.monotonic()
        with self._asking():
            answer = self._client.receive_message(
                QueueUrl=self._queue.url,
                MaxNumberOfMessages=min(limit, BATCH_MAX),
                VisibilityTimeout=self._visibility_seconds,
                # 0 looks at a few of SQS's servers only, so it may give nothing although there is something.
                WaitTimeSeconds=0 if wait_seconds <= 0 else min(WAIT_SECONDS_MAX, max(1, round(wait_seconds))),
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["ApproximateReceiveCount", "MessageGroupId"],
            )
        return Received([self._delivery(message, asked_at) for message in answer.get("Messages", ())])

    def _delivery(self, message: Mapping[str, Any], asked_at: float) -> Delivery:
        attributes = {name: _header(value) for name, value in message.get("MessageAttributes", {}).items()}
        headers, body = decoded(attributes, message["Body"])
        told = message.get("Attributes", {})
        return Delivery(
            # Not the receipt handle: what cannot be read is parked under this id, each time that it comes in the same row.
            id=message["MessageId"],
            source=self.name,
            headers=headers,
            body=body,
            count=int(told.get("ApproximateReceiveCount", 0)),
            # A standard queue may have message groups too (for fairness): they say nothing of an order.
            order_key=told.get("MessageGroupId") if self._queue.fifo else None,
            handle=_Receipt(message["ReceiptHandle"], asked_at),
        )

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        deletions: list[Entry] = []
        changes: list[Entry] = []
        for index, (delivery, settlement) in enumerate(entries):
            match settlement.action:
                case "ack":
                    deletions.append(_entry(index, delivery))
                case "release":
                    seconds = max(0, _hidden_seconds(delivery, settlement.delay_seconds))
                    changes.append(_entry(index, delivery) | {"VisibilityTimeout": seconds})
                case "leave":
                    pass
                case _:
                    assert_never(settlement.action)
        failed = self._failed(self._client.delete_message_batch, deletions)
        failed |= self._failed(self._client.change_message_visibility_batch, changes)
        return self._outcomes(len(entries), failed)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        changes: list[Entry] = []
        over: set[int] = set()
        for index, delivery in enumerate(deliveries):
            visibility_seconds = _hidden_seconds(delivery, seconds)
            if visibility_seconds > 0:
                changes.append(_entry(index, delivery) | {"VisibilityTimeout": visibility_seconds})
            else:
                over.add(index)
                self._say_over(delivery)
        outcomes = self._outcomes(len(deliveries), self._failed(self._client.change_message_visibility_batch, changes))
        return [Outcome.LOST if index in over else outcome for index, outcome in enumerate(outcomes)]

    def _say_over(self, delivery: Delivery) -> None:
        receipt: _Receipt = delivery.handle
        if not receipt.over:
            receipt.over = True
            logger.warning(
                "delivery %s of %s was held for 12 hours, the most that SQS allows; it will be delivered again",
                delivery.id, self.name,
            )  # fmt: skip

    def _failed(self, call: Callable[..., Any], entries: Sequence[Entry]) -> dict[int, Entry]:
        """What SQS says of the entries that it refused, by their positions."""
        failed: dict[int, Entry] = {}
        for begin in range(0, len(entries), BATCH_MAX):
            with self._asking():
                answer = call(QueueUrl=self._queue.url, Entries=entries[begin : begin + BATCH_MAX])
            failed |= {int(failure["Id"]): failure for failure in answer.get("Failed", ())}
        return failed

    def _outcomes(self, many: int, failed: Mapping[int, Entry]) -> list[Outcome]:
        unknown = [failure for failure in failed.values() if _short(failure["Code"]) not in _LOST_CODES]
        if unknown:
            # Neither settled nor lost: the same may be asked again, for all of them.
            raise TransportError(f"{self.name} failed {len(unknown)} of {many} entries, the first with {_said(unknown[0])}")
        return [Outcome.LOST if index in failed else Outcome.SETTLED for index in range(many)]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        # A queue that was deleted or closed to us while we run is mended by somebody else, so the loop goes on asking.
        try:
            with _explained(self._queue.name):
                yield
        except UsageError as error:
            raise TransportError(str(error)) from error

    def close(self) -> None:
        """Nothing: the client is the caller's, and deliveries that are held become visible by themselves."""


class Sink:
    """SQS queues as a sink. `queues` says where each message type goes: one queue, several, or all types to one."""

    def __init__(self, client: Any, queues: str | Mapping[str, str | Sequence[str]]) -> None:
        """Each queue is a name or a URL; their attributes are read now.

        Raises `UsageError` for what names no queue, or one that cannot be used; `TransportError` when SQS does not answer.
        """
        if not queues or not isinstance(queues, str | Mapping):
            raise UsageError(
                "queues is one SQS queue for all types, or a mapping of types to queues, like "
                f"{{'order.paid': ['ledger', 'emails']}}; not {queues!r}"
            )
        self._client = client
        self._queues = queues
        targets = [queues] if isinstance(queues, str) else [name for kind in queues for name in self._targets(kind)]
        if not targets:
            raise UsageError(f"queues names no queue at all: {queues!r}")
        self._settings = {name: _settings(client, name) for name in dict.fromkeys(targets)}
        smallest = min(self._settings.values(), key=lambda queue: queue.message_bytes_max)
        self.traits = smallest.traits(visibility_seconds=30)
        self._ordered = any(queue.fifo for queue in self._settings.values())

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """Sent in requests of at most ten; into a FIFO queue, one message of a subject per request.

        There is no transaction over several queues: a message that one of them refused has an error, and goes to all of
        them again. The inboxes turn the doubles away.
        """
        held: set[str] = set()
        errors = [self._refuse(message, held) for message in messages]
        waiting = [index for index, error in enumerate(errors) if error is None]
        for index in waiting:
            errors[index] = _NOT_SENT
        while waiting:
            sent, waiting = self._next_round(waiting, messages)
            try:
                self._send(sent, messages, errors)
            except TransportError as error:
                if None not in errors:
                    raise
                return [error if each is _NOT_SENT else each for each in errors]
            waiting = _hold_back(sent, waiting, messages, errors)
        return errors

    def _next_round(self, waiting: Sequence[int], messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """What is sent next, and what after it."""
        if not self._ordered:
            return [*waiting], []
        # SQS may store the later of two entries of one request and refuse the earlier. So a message goes only when the one
        # before it is stored, or it would overtake that one for ever.
        now: list[int] = []
        later: list[int] = []
        subjects: set[str] = set()
        for index in waiting:
            subject = messages[index].subject
            (later if subject in subjects else now).append(index)
            if subject is not None:
                subjects.add(subject)
        return now, later

    def _send(self, sent: Sequence[int], messages: Sequence[Message], errors: list[BaseException | None]) -> None:
        """Each of these has its outcome in `errors`. Raises `TransportError` when SQS is away amid them."""
        targets = {index: set(self._targets(messages[index].type)) for index in sent}
        for name, queue in self._settings.items():
            entries = [send_entry(index, messages[index], fifo=queue.fifo) for index in sent if name in targets[index]]
            for request in requests(entries, queue.request_bytes_max):
                failed = self._request(queue, request)
                for index in (int(entry["Id"]) for entry in request):
                    targets[index].discard(name)
                    if index in failed:
                        errors[index] = failed[index]
                    elif not targets[index] and errors[index] is _NOT_SENT:
                        errors[index] = None

    def _request(self, queue: QueueSettings, entries: Sequence[Entry]) -> dict[int, BaseException]:
        """Why the queue did not store some of these, by their positions. Raises `TransportError` when SQS is away."""
        try:
            with _explained(queue.name):
                answer = self._client.send_message_batch(QueueUrl=queue.url, Entries=entries)
        except UsageError as error:
            if len(entries) == 1 or not isinstance(error, _RefusedRequest):
                return {int(entry["Id"]): error for entry in entries}
            # One entry may be what is wrong with the request, and must not hold up the others.
            return {index: why for entry in entries for index, why in self._request(queue, [entry]).items()}
        return {int(failure["Id"]): _send_error(failure) for failure in answer.get("Failed", ())}

    def _targets(self, message_type: str) -> Sequence[str]:
        if isinstance(self._queues, str):
            return (self._queues,)
        target = self._queues.get(message_type, ())
        return (target,) if isinstance(target, str) else target

    def _refuse(self, message: Message, held: set[str]) -> BaseException | None:
        """Why this message cannot be sent, now or at all; its subject is held from then on. None: it can."""
        error = _HELD if message.subject in held else self._unsendable(message)
        if error is not None and message.subject is not None:
            held.add(message.subject)
        return error

    def _unsendable(self, message: Message) -> BaseException | None:
        targets = self._targets(message.type)
        if not targets:
            return UsageError(f"no queue is named for messages of type {message.type!r}")
        smallest = min((self._settings[name] for name in targets), key=lambda queue: queue.message_bytes_max)
        if len(message.body) > smallest.body_bytes_max:
            return UsageError(
                f"a body of {len(message.body)} bytes is more than the {smallest.body_bytes_max} that always fit into a "
                f"message of {smallest.name!r} ({smallest.message_bytes_max} bytes, with envelope and as base64): raise "
                f"the queue's MaximumMessageSize (up to {MESSAGE_BYTES_MAX}), or store it elsewhere and send its place"
            )
        return None

    def close(self) -> None:
        """Nothing: the client is the caller's."""


class _RefusedRequest(UsageError):
    """SQS refused a request for what is in it, and not for who asks or where."""


@dataclass(slots=True)
class _Receipt:
    """What settles a delivery."""

    handle: str
    received_at: float  # by this process's monotonic clock, and not later than SQS's own time of it
    over: bool = False  # it was said that SQS extends it no further


def _header(attribute: Mapping[str, Any]) -> str:
    return attribute["StringValue"] if "StringValue" in attribute else as_text(attribute["BinaryValue"])


def _hidden_seconds(delivery: Delivery, seconds: float) -> int:
    """The whole seconds for which this delivery can be hidden from now on, at most `seconds`; 0 or less: none."""
    receipt: _Receipt = delivery.handle
    return min(math.ceil(seconds), math.floor(HIDDEN_SECONDS_MAX - (time.monotonic() - receipt.received_at)))


def _entry(index: int, delivery: Delivery) -> Entry:
    receipt: _Receipt = delivery.handle
    return {"Id": str(index), "ReceiptHandle": receipt.handle}


def _hold_back(
    sent: Sequence[int], waiting: Sequence[int], messages: Sequence[Message], errors: list[BaseException | None]
) -> list[int]:
    """What may still be sent: not what is behind an error of its subject, which gets an error too."""
    held: set[str] = set()
    for index in sent:
        subject = messages[index].subject
        if subject in held:
            errors[index] = _HELD
        elif subject is not None and errors[index] is not None:
            held.add(subject)
    for index in waiting:
        if messages[index].subject in held:
            errors[index] = _HELD
    return [index for index in waiting if errors[index] is _NOT_SENT]


def _send_error(failure: Entry) -> BaseException:
    kind = UsageError if failure.get("SenderFault") else TransportError
    return kind(f"SQS did not store it: {_said(failure)}")


def _settings(client: Any, queue: str) -> QueueSettings:
    if not isinstance(queue, str) or not queue:
        raise UsageError(f"an SQS queue is named by its name or its URL, not by {queue!r}")
    with _explained(queue):
        url = queue if queue.startswith(("http://", "https://")) else client.get_queue_url(QueueName=queue)["QueueUrl"]
        attributes = _attributes(client, url)
        fifo = _is_fifo(url)
        policy = json.loads(attributes.get("RedrivePolicy", "{}"))
        own = attributes.get("MessageRetentionPeriod")
        dead_letter = _dead_letter_retention(client, policy["deadLetterTargetArn"]) if policy else None
    return QueueSettings(
        url=url,
        name=url.rpartition("/")[2],
        fifo=fifo,
        message_bytes_max=int(attributes.get("MaximumMessageSize", MESSAGE_BYTES_MAX)),
        dead_letters_after=int(policy["maxReceiveCount"]) if policy else None,
        # ElasticMQ names none.
        retention_seconds=None if own is None else retention_seconds(int(own), dead_letter, fifo=fifo),
    )


def _dead_letter_retention(client: Any, arn: str) -> int:
    """The retention of a dead-letter queue; where it may not be read, the longest that there is."""
    account, name = arn.split(":")[-2:]
    try:
        url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        return int(_attributes(client, url).get("MessageRetentionPeriod", RETENTION_SECONDS_MAX))
    except ClientError as error:
        if not isinstance(_our_error(error, name), UsageError):
            raise
        logger.info("the retention of the dead-letter queue %s cannot be read, so 14 days are assumed: %s", name, error)
        return RETENTION_SECONDS_MAX


def _attributes(client: Any, url: str) -> dict[str, str]:
    attributes: dict[str, str] = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]).get("Attributes", {})
    return attributes


def _listed(client: Any, url: str) -> Queue:
    attributes = _attributes(client, url)
    visible, in_flight, delayed = (
        int(attributes.get(f"ApproximateNumberOfMessages{which}", 0)) for which in ("", "NotVisible", "Delayed")
    )
    return Queue(url.rpartition("/")[2], visible + in_flight + delayed, in_flight, _is_fifo(url))


def _dead_letter_arn(client: Any, name: str) -> str:
    attributes = {"MessageRetentionPeriod": str(RETENTION_SECONDS_MAX)}
    if _is_fifo(name):
        attributes |= {"FifoQueue": "true"}
    url = _url(client, name) or client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    return _attributes(client, url)["QueueArn"]


def _url(client: Any, name: str) -> str | None:
    """The URL of this queue; None: there is none."""
    try:
        url: str = client.get_queue_url(QueueName=name)["QueueUrl"]
    except ClientError as error:
        if _short(error.response["Error"]["Code"]) in _ABSENT_CODES:
            return None
        raise
    return url


def _is_fifo(queue: str) -> bool:
    # Its name says so: SQS makes no FIFO queue of another name, and no other queue of such a name.
    return queue.endswith(".fifo")


@contextmanager
def _explained(queue: str) -> Iterator[None]:
    """What the client raises becomes a `UsageError` where no retry cures it, else a `TransportError`."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise _our_error(error, queue) from error


def _our_error(error: ClientError | BotoCoreError, queue: str) -> UsageError | TransportError:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return UsageError(f"the client has no credentials for SQS: give it some when it is made ({error})")
    if isinstance(error, ParamValidationError):
        return _RefusedRequest(f"the request for queue {queue!r} cannot be made: {error}")
    if not isinstance(error, ClientError):
        return TransportError(f"SQS does not answer for queue {queue!r}: {error}")
    code, status = _short(error.response["Error"]["Code"]), error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code in _ABSENT_CODES:
        return UsageError(
            f"there is no SQS queue {queue!r} for this client: make it with `onceward queue create`, or correct the name, "
            "or the client's region, account or endpoint"
        )
    if code in _FORBIDDEN_CODES:
        return UsageError(
            f"this client may not call {error.operation_name} on queue {queue!r}: its role must allow it: {error}"
        )
    if code in _STRANGER_CODES:
        return UsageError(f"SQS does not know the client's credentials, or they are another region's: {error}")
    if status >= 500 or status == 429 or code in _PASSING_CODES:
        return TransportError(f"SQS cannot serve queue {queue!r} now: {error}")
    return _RefusedRequest(f"SQS refuses a request for queue {queue!r}: {error}")


def _short(code: str) -> str:
    """The error code without the prefix that older endpoints give it (`AWS.SimpleQueueService.`)."""
    return code.rpartition(".")[2]


def _said(failure: Entry) -> str:
    return f"{failure.get('Code')}: {failure.get('Message', '')}"
