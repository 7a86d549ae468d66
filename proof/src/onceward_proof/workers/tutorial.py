"""The plain client of each broker, as the tutorials' service uses it: nothing of the proof is wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, assert_never

from onceward_proof.workers.setting import CONSUMED, Role, Setting

Opened = tuple[tuple[Any, ...], Mapping[str, str]]


@contextmanager
def open_clients(setting: Setting, role: Role) -> Iterator[Opened]:
    """What the functions of the tutorial's module take: the clients of this role, and by message type where it sends."""
    match setting.queue:
        case "sqs" | "sqs-fifo":
            yield _open_sqs(setting)
        case "rabbitmq":
            import pika  # noqa: PLC0415 - each client is an extra

            with pika.BlockingConnection(pika.URLParameters(setting.queue_address)) as connection:
                yield (connection.channel(),), setting.queues
        case "kafka":
            with _open_kafka(setting, role) as clients:
                yield clients, setting.queues
        case "pgmq":
            raise AssertionError("there is no tutorial of the queue in Postgres")
        case never:
            assert_never(never)


def _open_sqs(setting: Setting) -> Opened:
    from onceward_proof.brokers.sqs import make_plain_client  # noqa: PLC0415 - as above

    client = make_plain_client(setting.queue_address)
    urls = {name: client.get_queue_url(QueueName=queue)["QueueUrl"] for name, queue in setting.queues.items()}
    return (client,), urls


@contextmanager
def _open_kafka(setting: Setting, role: Role) -> Iterator[tuple[Any, ...]]:
    from confluent_kafka import Consumer, Producer  # noqa: PLC0415 - as above

    from onceward_proof.brokers.kafka import plain_config  # noqa: PLC0415

    producer = Producer({"bootstrap.servers": setting.queue_address})
    if role == "producer":
        yield (producer,)
        return
    with closing(Consumer(plain_config(setting.queue_address, setting.queues[CONSUMED[role]]))) as consumer:
        yield (consumer, producer) if role == "charge" else (consumer,)
