"""The broker of a name."""

from __future__ import annotations

from typing import assert_never

from onceward_proof.brokers.broker import Broker
from onceward_proof.workers.setting import QueueName


def find_broker(queue: QueueName) -> Broker:
    """The broker of this name. What its client needs is imported only now."""
    match queue:
        case "pgmq":
            from onceward_proof.brokers.pgmq import Pgmq  # noqa: PLC0415 - each client is an extra

            return Pgmq()
        case "sqs" | "sqs-fifo":
            from onceward_proof.brokers.sqs import Sqs  # noqa: PLC0415

            return Sqs(fifo=queue == "sqs-fifo")
        case "rabbitmq":
            from onceward_proof.brokers.rabbitmq import Rabbit  # noqa: PLC0415

            return Rabbit()
        case "kafka":
            from onceward_proof.brokers.kafka import Kafka  # noqa: PLC0415

            return Kafka()
        case never:
            assert_never(never)
