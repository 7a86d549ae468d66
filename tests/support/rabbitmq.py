"""A RabbitMQ as a test sees it beside the adapter: by pika's blocking connection."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pika
from tests.support.brokers import fresh

from onceward.transports import rabbitmq
from onceward.transports.rabbitmq.queues import DELAY_LEVELS_SECONDS, delay_queue


class Broker:
    """A broker with queues of this test's own."""

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        self.parameters = parameters
        self._connection = pika.BlockingConnection(parameters)
        self.channel = self._connection.channel()
        self._made: list[str] = []

    def queue(self, **options: Any) -> str:
        name = fresh("test")
        rabbitmq.create_queue(self.parameters, name, **options)
        self._made.append(name)
        return name

    def declare(self, name: str, **arguments: Any) -> str:
        """A queue as somebody else would make it."""
        self.channel.queue_declare(name, durable=True, arguments={n.replace("_", "-"): v for n, v in arguments.items()})
        self._made.append(name)
        return name

    def put(self, queue: str, body: bytes = b"{}", **properties: Any) -> None:
        """A message of a stranger's."""
        self.channel.basic_publish("", queue, body, pika.BasicProperties(**properties))

    def many(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def delete_queues(self) -> None:
        with pika.BlockingConnection(self.parameters) as connection:
            channel = connection.channel()
            for name in self._made:
                for queue in (name, f"{name}.dead", *(delay_queue(name, level) for level in DELAY_LEVELS_SECONDS)):
                    channel.queue_delete(queue)

    def close(self) -> None:
        # A server that was killed has broken this one off.
        with suppress(pika.exceptions.AMQPError):
            self._connection.close()
