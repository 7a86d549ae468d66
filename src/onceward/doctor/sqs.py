"""SQS: what a queue's attributes and those of its dead-letter queue say, and what is wrong with them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, assert_never

from onceward.doctor.diagnosis import Check, Diagnosis, Leg, spoken
from onceward.doctor.needs import (
    LEASE,
    WINDOW,
    Needs,
    judge_dead_letters_after,
    judge_lease,
    judge_retention,
    judge_window,
    visibility_command,
)
from onceward.errors import TransportError, UsageError

RETENTION_SECONDS_MAX: Final = 14 * 86_400
RECEIVE_COUNT_WANTED: Final = 100

VISIBILITY: Final = Check(
    "sqs.visibility_timeout",
    Leg.TIMEOUT,
    "It is the lease of whatever does not ask for another one, AWS Lambda's event source among them: a handler that "
    "outlives it is joined by a second worker. AWS asks for six times what the work takes.",
)
RETENTION: Final = Check(
    "sqs.retention",
    Leg.QUEUE,
    "SQS deletes what nobody has consumed for so long: an outage of the consumer that lasts longer loses messages.",
)
REDRIVE: Final = Check(
    "sqs.redrive_policy",
    Leg.CONSUMER,
    "Without a dead-letter queue, a message that ends every worker before it is taken goes round until its retention "
    "deletes it.",
)
RECEIVE_COUNT: Final = Check(
    "sqs.max_receive_count",
    Leg.CONSUMER,
    "SQS counts receives, and so also releases and crashes: with a low limit it sets a message aside without a "
    "reason, before the consumer has made all its attempts and parked it.",
)
DEAD_LETTER_QUEUE: Final = Check(
    "sqs.dead_letter_queue",
    Leg.CONSUMER,
    "SQS can neither move a message to a queue that is not there nor deliver it any more.",
)
DEAD_LETTER_RETENTION: Final = Check(
    "sqs.dead_letter_retention",
    Leg.QUEUE,
    "On a standard queue a dead letter keeps the time at which it was first sent: what had waited for long is deleted"
    " soon after it arrives, before anybody has looked.",
)
CONTENT_DEDUPLICATION: Final = Check(
    "sqs.content_based_deduplication",
    Leg.PRODUCER,
    "For five minutes, SQS drops a message whose body equals another one's, although it has an id of its own: two "
    "equal orders become one. Our Sink names its own deduplication id; other producers may not.",
)


class Absence(Enum):
    """Why the attributes of a dead-letter queue are not known."""

    DELETED = "deleted"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """What SQS says of one queue. Durations in seconds; None: the server does not say."""

    name: str
    url: str
    arn: str
    endpoint: str | None = None  # of a stand-in for SQS
    fifo: bool = False
    visibility_seconds: float = 30.0
    retention_seconds: float | None = None
    content_deduplication: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SqsFacts:
    """A queue with its dead-letter queue."""

    queue: QueueFacts
    dead_letter_arn: str | None = None
    max_receive_count: int | None = None
    dead_letter: QueueFacts | Absence | None = None


def gather(client: Any, queue: str, *, dead_letter: str | None = None, endpoint: str | None = None) -> SqsFacts:
    """The facts of a queue, by its name or URL, and of its dead-letter queue: `dead_letter`, else what its policy names.

    Raises `UsageError` when there is no such queue, `TransportError` when SQS does not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra

    try:
        attributes, facts = _queue(client, queue, endpoint)
        policy = json.loads(attributes.get("RedrivePolicy", "{}"))
        arn = policy.get("deadLetterTargetArn")
        named = dead_letter or arn
        return SqsFacts(
            queue=facts,
            dead_letter_arn=arn,
            max_receive_count=int(policy["maxReceiveCount"]) if policy else None,
            dead_letter=None if named is None else _dead_letter(client, named, endpoint),
        )
    except ClientError as error:
        if _code(error) in ("QueueDoesNotExist", "NonExistentQueue"):
            raise UsageError(
                f"there is no SQS queue {queue!r}: make it with `onceward queue create sqs://{queue}`"
            ) from error
        raise TransportError(f"SQS does not say how the queue {queue!r} is set: {error}") from error
    except BotoCoreError as error:
        raise TransportError(f"SQS does not answer: {error}") from error


def _queue(client: Any, queue: str, endpoint: str | None) -> tuple[Mapping[str, str], QueueFacts]:
    url = queue if "://" in queue else client.get_queue_url(QueueName=queue)["QueueUrl"]
    attributes: dict[str, str] = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    retention = attributes.get("MessageRetentionPeriod")  # ElasticMQ does not know it
    return attributes, QueueFacts(
        name=url.rpartition("/")[2],
        url=url,
        arn=attributes.get("QueueArn", ""),
        endpoint=endpoint,
        fifo=attributes.get("FifoQueue") == "true",
        visibility_seconds=float(attributes["VisibilityTimeout"]),
        retention_seconds=None if retention is None else float(retention),
        content_deduplication=attributes.get("ContentBasedDeduplication") == "true",
    )


def _dead_letter(client: Any, named: str, endpoint: str | None) -> QueueFacts | Absence:
    """The dead-letter queue of this ARN, name or URL. It may be another account's, which need not let us look."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - an extra

    try:
        if named.startswith("arn:"):
            account, name = named.split(":")[-2:]
            named = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        return _queue(client, named, endpoint)[1]
    except ClientError as error:
        return Absence.DELETED if _code(error) in ("QueueDoesNotExist", "NonExistentQueue") else Absence.FORBIDDEN


def _code(error: Any) -> str:
    # Older endpoints put a prefix before it: AWS.SimpleQueueService.NonExistentQueue.
    return str(error.response["Error"]["Code"]).rpartition(".")[2]


def judge(facts: SqsFacts, needs: Needs) -> Iterator[Diagnosis]:
    """What is right and what is wrong with them."""
    queue, place = facts.queue, f"sqs:{facts.queue.name}"
    yield judge_lease(LEASE, place, needs.visibility_seconds, needs, visibility_command)
    yield judge_lease(
        VISIBILITY, place, queue.visibility_seconds, needs, lambda seconds: _set(queue, VisibilityTimeout=f"{seconds}")
    )
    yield _judge_kept(RETENTION, place, queue)
    yield from _judge_redrive(facts, needs, place)
    yield from _judge_dead_letter(facts)
    yield from _judge_kept_together(facts, needs, place)
    if queue.fifo:
        yield _judge_deduplication(queue, place)


def _judge_kept(check: Check, place: str, queue: QueueFacts) -> Diagnosis:
    if queue.retention_seconds is None:
        return _not_said(check, place, queue)
    mend = _set(queue, MessageRetentionPeriod=str(RETENTION_SECONDS_MAX))
    return judge_retention(check, place, queue.retention_seconds, mend)


def _not_said(check: Check, place: str, queue: QueueFacts) -> Diagnosis:
    look = _aws(queue, "get-queue-attributes", "--attribute-names", "MessageRetentionPeriod")
    return check.unknown(place, "the server does not say how long it keeps messages", find_out=look)


def _judge_redrive(facts: SqsFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    queue = facts.queue
    if facts.max_receive_count is None:
        dead = _dead_letter_of(queue)
        policy = _policy(f"{queue.arn.rpartition(':')[0]}:{dead.name}", RECEIVE_COUNT_WANTED)
        yield REDRIVE.wrong(
            place, "none", wanted=f"a dead-letter queue, after {RECEIVE_COUNT_WANTED} receives or so", severe=False,
            mend=f"{_create(dead)} && {_set(queue, RedrivePolicy=policy)}",
        )  # fmt: skip
        return
    yield REDRIVE.right(place, f"to {facts.dead_letter_arn}")
    policy = _policy(str(facts.dead_letter_arn), max(RECEIVE_COUNT_WANTED, needs.dead_letters_after_min))
    yield judge_dead_letters_after(
        RECEIVE_COUNT, place, facts.max_receive_count, needs, found=str(facts.max_receive_count),
        mend=_set(queue, RedrivePolicy=policy),
    )  # fmt: skip


def _judge_dead_letter(facts: SqsFacts) -> Iterator[Diagnosis]:
    match facts.dead_letter:
        case None:
            return
        case Absence.DELETED:
            name = str(facts.dead_letter_arn).rpartition(":")[2]
            mend = _create(_dead_letter_of(facts.queue, name))
            yield DEAD_LETTER_QUEUE.wrong(f"sqs:{name}", "it does not exist", wanted="a queue", mend=mend)
        case Absence.FORBIDDEN:
            yield DEAD_LETTER_QUEUE.unknown(
                f"sqs:{str(facts.dead_letter_arn).rpartition(':')[2]}", "these credentials may not read its attributes",
                find_out="allow sqs:GetQueueUrl and sqs:GetQueueAttributes on it",
            )  # fmt: skip
        case QueueFacts() as dead_letter:
            place = f"sqs:{dead_letter.name}"
            yield DEAD_LETTER_QUEUE.right(place, "it exists")
            yield _judge_dead_letters_kept(dead_letter, facts.queue, place)
        case _:
            assert_never(facts.dead_letter)


def _judge_dead_letters_kept(dead_letter: QueueFacts, queue: QueueFacts, place: str) -> Diagnosis:
    if dead_letter.retention_seconds is None or queue.retention_seconds is None:
        return _not_said(DEAD_LETTER_RETENTION, place, dead_letter)
    # A FIFO queue's dead letter gets a new time when it is moved; it has the whole retention of its new queue.
    left = dead_letter.retention_seconds - (0 if queue.fifo else queue.retention_seconds)
    found = f"{spoken(dead_letter.retention_seconds)}; the queue's own is {spoken(queue.retention_seconds)}"
    if left > 0 or dead_letter.retention_seconds == RETENTION_SECONDS_MAX:
        return DEAD_LETTER_RETENTION.right(place, found)
    return DEAD_LETTER_RETENTION.wrong(
        place, found, wanted="14 d, the longest that SQS offers",
        mend=_set(dead_letter, MessageRetentionPeriod=str(RETENTION_SECONDS_MAX)),
    )  # fmt: skip


def _judge_kept_together(facts: SqsFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    own = facts.queue.retention_seconds
    if own is None:
        yield _not_said(WINDOW, place, facts.queue)
        return
    match facts.dead_letter:
        case None:
            dead = 0.0
        case QueueFacts() as dead_letter:
            dead = RETENTION_SECONDS_MAX if dead_letter.retention_seconds is None else dead_letter.retention_seconds
        case _:
            dead = RETENTION_SECONDS_MAX  # not known: the longest that there is
    # The sum also for a standard queue: what its own redrive (StartMessageMoveTask) brings back begins a new retention.
    yield from judge_window(place, own + dead, needs)


def _judge_deduplication(queue: QueueFacts, place: str) -> Diagnosis:
    if not queue.content_deduplication:
        return CONTENT_DEDUPLICATION.right(place, "off")
    return CONTENT_DEDUPLICATION.wrong(
        place, "on", wanted="off, and a deduplication id from each producer", severe=False,
        mend=_set(queue, ContentBasedDeduplication="false"),
    )  # fmt: skip


def _dead_letter_of(queue: QueueFacts, name: str | None = None) -> QueueFacts:
    """The dead-letter queue that the queue is to have."""
    name = name or f"{queue.name.removesuffix('.fifo')}-dead{'.fifo' if queue.fifo else ''}"
    return replace(queue, name=name, url=f"{queue.url.rpartition('/')[0]}/{name}")


def _create(dead_letter: QueueFacts) -> str:
    """The commands that make it, and have it keep messages for long."""
    kept = _set(dead_letter, MessageRetentionPeriod=str(RETENTION_SECONDS_MAX))
    return f"{shlex.join(['onceward', 'queue', 'create', f'sqs://{dead_letter.name}'])} && {kept}"


def _policy(arn: str, receives: int) -> str:
    return json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(receives)}, separators=(",", ":"))


def _set(queue: QueueFacts, **attributes: str) -> str:
    """The command that sets one attribute."""
    [(name, value)] = attributes.items()
    # JSON in JSON cannot be written in the short form.
    text = json.dumps({name: value}) if value.startswith('{"') else f"{name}={value}"
    return _aws(queue, "set-queue-attributes", "--attributes", text)


def _aws(queue: QueueFacts, verb: str, option: str, value: str) -> str:
    endpoint = ["--endpoint-url", queue.endpoint] if queue.endpoint else []
    return shlex.join(["aws", *endpoint, "sqs", verb, "--queue-url", queue.url, option, value])
