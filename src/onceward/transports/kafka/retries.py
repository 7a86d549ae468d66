"""Retry topics: where what is released with a delay waits, so that its partition goes on without it."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import KafkaError
from confluent_kafka import Message as KafkaMessage

from onceward.transport import Settlement
from onceward.transports.kafka.partitions import Handle
from onceward.transports.kafka.sender import Sender
from onceward.transports.kafka.settings import Config
from onceward.transports.kafka.wire import Outgoing, headers_of, retry_copy, retry_seconds


class RetryTopics:
    """One for each topic of a group, `<topic>.<group.id>.retry`. What fails again goes back to it."""

    def __init__(self, config: Config, topics: Sequence[str]) -> None:
        self.of_topic = {name: f"{name}.{config['group.id']}.retry" for name in topics}
        self._sender = Sender(config)

    def takes(self, settlement: Settlement) -> bool:
        """It is a release with a delay. What is released at once is given again from memory."""
        return settlement.action == "release" and settlement.delay_seconds > 0

    def seconds_until_due(self, message: KafkaMessage) -> float:
        """0 for what is not from a retry topic."""
        return retry_seconds(headers_of(message)) if message.topic() in self.of_topic.values() else 0.0

    def send(self, released: Sequence[tuple[Handle, float]]) -> list[KafkaError | None]:
        """Each record, with its delay in seconds, is stored in its retry topic; one entry each: None, or why not."""
        return self._sender.send([self._copy(*each) for each in released])

    def _copy(self, handle: Handle, delay_seconds: float) -> Outgoing:
        message: KafkaMessage = handle.record.message
        topic = handle.partition.topic
        record = Outgoing(self.of_topic.get(topic, topic), message.key(), message.value(), headers_of(message))
        return retry_copy(record, delay_seconds)

    def close(self) -> None:
        """Give up what is open."""
        self._sender.close()
