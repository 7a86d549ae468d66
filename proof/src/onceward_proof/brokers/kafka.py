"""Kafka: a broker of the proof's own. The witness is the log itself, which keeps every message with the time of its append.

A delivery has no lease there. A partition is taken from a member that does not call in time, and what it had not committed
comes again: the proof sets both of Kafka's limits to about the lease that it gives to the deliveries of other queues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from onceward.testing.servers import Kafka as KafkaServer
from onceward.transport import Sink, Source
from onceward.transports import kafka
from onceward_proof.brokers.broker import NeverStruck, Passed
from onceward_proof.brokers.installed import need_installed
from onceward_proof.brokers.recorder import order_of
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import QUEUES, Setting

PARTITIONS: Final = 12  # more than a consumer has processes
_ANSWER_SECONDS_MAX: Final = 2.0
_SETTINGS: Final = {
    # The broker's clock, not the producer's, says when a message was stored.
    "log.message.timestamp.type": "LogAppendTime",
    "group.min.session.timeout.ms": "1000",
}
SESSION_SECONDS: Final = 2.0
POLL_SECONDS_MAX: Final = 2.0


def member_config(address: str, group: str, member: str) -> dict[str, Any]:
    """A consumer's configuration. A member that is started again under its name gets its partitions back at once."""
    return {
        "bootstrap.servers": address,
        "group.id": group,
        "group.instance.id": member,
        "session.timeout.ms": round(SESSION_SECONDS * 1000),
        "heartbeat.interval.ms": 300,
        "max.poll.interval.ms": round(POLL_SECONDS_MAX * 1000),
        "auto.offset.reset": "earliest",
        "reconnect.backoff.max.ms": 500,
    }


def plain_config(address: str, topic: str) -> dict[str, Any]:
    """Of a consumer as tutorials write it, with the limits of every member: it has no name that would outlive it."""
    config = member_config(address, group_of(topic), "")
    return {name: value for name, value in config.items() if name != "group.instance.id"} | {"enable.auto.commit": False}


def asking_config(address: str, group: str) -> dict[str, Any]:
    """Of a consumer that reads for the proof, and never for the service."""
    return {"bootstrap.servers": address, "group.id": group, "enable.auto.commit": False, "log_level": 0}


def group_of(topic: str) -> str:
    """The group that consumes this topic."""
    return f"{topic}-group"


class KafkaQueues(NeverStruck):
    """One variant's topics. Their address is what clients call bootstrap.servers."""

    def __init__(self, names: Mapping[str, str], address: str) -> None:
        self.names = names
        self.address = address
        self._partitions: dict[str, list[TopicPartition]] = {}
        for name in names.values():
            kafka.create_topic({"bootstrap.servers": address}, name, partitions=PARTITIONS)
            self._partitions[name] = [TopicPartition(name, number) for number in range(PARTITIONS)]
        # They never join their groups: they only ask what has been committed.
        self._askers = {name: Consumer(asking_config(address, group_of(name))) for name in names.values()}

    def waiting(self) -> Mapping[str, int] | None:
        try:
            return {f"topic {name}": self._lag(name) for name in self.names.values()}
        except KafkaException:
            return None

    def _lag(self, name: str) -> int:
        """How many messages of the topic its group has not committed."""
        asker = self._askers[name]
        lag = 0
        for partition in asker.committed(self._partitions[name], timeout=_ANSWER_SECONDS_MAX):
            if partition.error is not None:
                raise KafkaException(partition.error)
            _, end = asker.get_watermark_offsets(partition, timeout=_ANSWER_SECONDS_MAX)
            lag += end - max(partition.offset, 0)
        return lag

    def passed(self) -> Passed:
        stored: dict[tuple[str, str], float] = {}
        for message_type, name in self.names.items():
            for order, at in self._read(name):
                stored.setdefault((message_type, order), at)
        return Passed(stored, {})

    def _read(self, name: str) -> Iterator[tuple[str, float]]:
        """The order of every message of the topic, and when it was stored; not in the order of their partitions."""
        with closing(Consumer(asking_config(self.address, "witness"))) as consumer:
            for number in range(PARTITIONS):
                partition = TopicPartition(name, number, 0)
                _, end = consumer.get_watermark_offsets(partition, timeout=10)
                consumer.assign([partition])
                read = 0
                while read < end:
                    for message in consumer.consume(500, timeout=1.0):
                        read = (message.offset() or 0) + 1
                        # Kafka counts milliseconds, and cuts off the rest: the end of that one is never too early.
                        yield order_of(message.value() or b""), (message.timestamp()[1] + 1) / 1000


@dataclass(frozen=True, slots=True)
class RunningKafka:
    """One broker that is its own controller."""

    server: KafkaServer
    fault: ServerFault = "kill-broker"
    recovery_seconds: float = 20.0

    def make_queues(self, variant: str) -> KafkaQueues:
        names = {message_type: f"{name}-{variant}" for message_type, name in QUEUES.items()}
        return KafkaQueues(names, self.server.url)


class Kafka:
    """Kafka with one consumer group for each queue."""

    def check(self) -> None:
        need_installed(KafkaServer, "kafka")

    @contextmanager
    def start(self, folder: Path, postgres_settings: Mapping[str, str]) -> Iterator[RunningKafka]:  # noqa: ARG002 - no Postgres
        with KafkaServer.start(folder / "kafka", settings=_SETTINGS) as server:
            yield RunningKafka(server)

    def warm_up(self, setting: Setting) -> None:
        """The client is imported with this module; its threads begin with its first object, after the fork."""

    def source(self, setting: Setting, message_type: str, member: str) -> Source:
        topic = setting.queues[message_type]
        return kafka.Source(member_config(setting.queue_address, group_of(topic), member), topic)

    def sink(self, address: str, queues: Mapping[str, str]) -> Sink:
        return kafka.Sink({"bootstrap.servers": address}, queues)
