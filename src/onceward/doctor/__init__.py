"""What is wrong with the settings of a queue and of the database, leg by leg, and the command that mends each.

One file a broker: `gather` asks its server, and `judge` is a pure function of what was found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from onceward.doctor import kafka, postgres, rabbitmq, sqs
from onceward.doctor.diagnosis import Check, Diagnosis, Leg, Verdict, findings
from onceward.doctor.needs import Needs
from onceward.errors import UsageError
from onceward.queue_urls import SQS_ENDPOINT, KafkaTopic, PgmqQueue, QueueUrl, RabbitmqQueue, SqsQueue, sqs_client

__all__ = ["Check", "Diagnosis", "Leg", "Needs", "Surroundings", "Verdict", "examine", "findings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What cannot be asked of the queue itself."""

    dead_letter: QueueUrl | None = None  # where the broker does not say which it is
    management: str | None = None  # the URL of RabbitMQ's management plugin
    consumer_timeout_seconds: float | None = None  # of RabbitMQ's nodes


def examine(queue: QueueUrl, needs: Needs, surroundings: Surroundings) -> Iterator[Diagnosis]:
    """What its server says of this queue, judged by what the consumer needs.

    Raises `UsageError` when there is no such queue; `TransportError`, or psycopg's error, when its server does not answer.
    """
    _check_dead_letter(queue, surroundings.dead_letter)
    match queue:
        case SqsQueue():
            return _examine_sqs(queue, needs, surroundings.dead_letter)
        case KafkaTopic():
            dead_letter = surroundings.dead_letter
            dead = _gather_topic(dead_letter) if isinstance(dead_letter, KafkaTopic) else None
            return kafka.judge(_gather_topic(queue), needs, dead_letter=dead)
        case RabbitmqQueue():
            return _examine_rabbitmq(queue, needs, surroundings)
        case PgmqQueue():
            return _examine_pgmq(queue, needs)
        case _:
            raise UsageError(f"doctor does not know queues of the kind {queue.extra!r}")


def _check_dead_letter(queue: QueueUrl, dead_letter: QueueUrl | None) -> None:
    if dead_letter is None:
        return
    if type(dead_letter) is not type(queue):
        raise UsageError("--dead-letter and --queue are queues of different kinds: no broker moves a message between them")
    if not isinstance(queue, SqsQueue | KafkaTopic):
        raise UsageError(f"--dead-letter is for Kafka and SQS: of {queue.extra}, where dead letters go is known")


def _examine_sqs(queue: SqsQueue, needs: Needs, dead_letter: QueueUrl | None) -> Iterator[Diagnosis]:
    facts = sqs.gather(
        sqs_client(), queue.name, dead_letter=None if dead_letter is None else dead_letter.name,
        endpoint=os.environ.get(SQS_ENDPOINT) or None,
    )  # fmt: skip
    return sqs.judge(facts, needs)


def _examine_rabbitmq(queue: RabbitmqQueue, needs: Needs, surroundings: Surroundings) -> Iterator[Diagnosis]:
    facts = rabbitmq.gather(
        queue.url, queue.name, management=surroundings.management,
        consumer_timeout_seconds=surroundings.consumer_timeout_seconds,
    )  # fmt: skip
    return rabbitmq.judge(facts, needs)


def _gather_topic(topic: KafkaTopic) -> kafka.TopicFacts:
    return kafka.gather(topic.brokers, topic.name, topic.settings)


def _examine_pgmq(queue: PgmqQueue, needs: Needs) -> Iterator[Diagnosis]:
    import psycopg  # noqa: PLC0415

    with psycopg.connect(queue.database, autocommit=True) as conn:
        facts = postgres.gather_queue(conn, queue.name)
    return postgres.judge_queue(facts, needs)
