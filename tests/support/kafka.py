"""Topics, members of a group and their offsets on a real Kafka; a Kafka of a test's own, also behind a proxy."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition
from tests.support.brokers import fresh, installed
from tests.support.rows import CONSUMER, write_effect
from tests.support.shop import AT_ONCE
from tests.support.waiting import until

from onceward.consumer import Consumer
from onceward.consumer_loop import run
from onceward.message import Message
from onceward.testing.postgres.cluster import free_port
from onceward.testing.proxy import Proxy
from onceward.testing.servers import Server
from onceward.transport import Delivery
from onceward.transports import kafka

# What the shared broker allows at the least; the rest follows from it.
SESSION_MILLISECONDS = 6000
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["onceward.consumer_loop", "onceward.transports.kafka", "psycopg_pool"])


class Topic:
    """A fresh topic, with a group of the same name."""

    def __init__(self, bootstrap: str, *, partitions: int = 1, settings: dict[str, str] | None = None) -> None:
        self.name = fresh("orders")
        self.brokers = {"bootstrap.servers": bootstrap}
        kafka.create_topic(self.brokers, self.name, partitions=partitions, settings=settings)
        self.partitions = partitions

    def member(self, **config: Any) -> dict[str, Any]:
        """The configuration of a member of its group; underscores stand for dots."""
        given = {name.replace("_", "."): value for name, value in config.items()}
        quick = {"session.timeout.ms": SESSION_MILLISECONDS, "heartbeat.interval.ms": 200}
        return {**self.brokers, "group.id": self.name, **quick, **given}

    def source(
        self, *, config: dict[str, Any] | None = None, kind: type[kafka.Source] = kafka.Source, **options: Any
    ) -> kafka.Source:
        return kind(config or self.member(), self.name, **options)

    def sink(self) -> kafka.Sink:
        return kafka.Sink(self.brokers, self.name)

    def publish(self, *messages: Message) -> None:
        sink = self.sink()
        assert list(sink.publish(messages)) == [None] * len(messages)
        sink.close()

    def committed(self, topic: str | None = None) -> list[int]:
        """The group's offset in each partition; -1001: none."""
        client = Client({**self.brokers, "group.id": self.name})
        asked = [TopicPartition(topic or self.name, number) for number in range(self.partitions)]
        offsets = [found.offset for found in client.committed(asked, timeout=10)]
        client.close()
        return offsets

    def ends(self) -> list[int]:
        """Where each partition ends."""
        client = Client({**self.brokers, "group.id": self.name})
        ends = [client.get_watermark_offsets(TopicPartition(self.name, n), timeout=10)[1] for n in range(self.partitions)]
        client.close()
        return ends


def receive_all(source: kafka.Source, many: int, seconds: float = 20.0) -> list[Delivery]:
    """Exactly so many deliveries."""
    got: list[Delivery] = []

    def enough() -> bool:
        got.extend(source.receive(many - len(got), 0.2).deliveries)
        return len(got) >= many

    until(enough, f"{many} deliveries", seconds)
    return got


def receive_one(source: kafka.Source, seconds: float = 20.0) -> Delivery:
    return receive_all(source, 1, seconds)[0]


def lost_by(source: kafka.Source, many: int, seconds: float = 20.0) -> list[str]:
    """The ids of so many deliveries that were taken away; nothing new may come before."""
    lost: list[str] = []

    def enough() -> bool:
        received = source.receive(0, 0.1)
        lost.extend(delivery.id for delivery in received.lost)
        return len(lost) >= many

    until(enough, f"{many} lost deliveries", seconds)
    return lost


@contextmanager
def kafka_of_our_own(**settings: str) -> Iterator[Server]:
    """A broker that a test may kill, with sessions as short as half a second."""
    short = {"group.min.session.timeout.ms": "500", **settings}
    with installed("kafka").start(settings=short) as server:
        yield server


@contextmanager
def kafka_behind_a_proxy() -> Iterator[tuple[Proxy, str]]:
    """A broker that names itself to clients as the proxy before it; the proxy, and its own bootstrap.servers."""
    direct, proxied, controller = free_port(), free_port(), free_port()
    with Proxy(f"host=127.0.0.1 port={proxied}") as proxy:
        way = f"127.0.0.1:{proxy.dsn.partition('port=')[2].split()[0]}"
        settings = {
            "listeners": f"PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{direct},PROXIED://{way}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        }
        with installed("kafka").start(port=direct, settings=settings):
            yield proxy, way


def start_worker(dsn: str, config: dict[str, Any], topic: str, lock: int = 0) -> Any:
    """A process of its own that consumes; each handler waits for an advisory lock that the test may hold."""
    child = _context.Process(target=_work, args=(dsn, config, topic, lock), daemon=True)
    child.start()
    return child


def _work(dsn: str, config: dict[str, Any], topic: str, lock: int) -> None:
    logging.disable(logging.CRITICAL)

    def handle(message: Message, tx: psycopg.Connection[Any]) -> None:
        tx.execute("SELECT pg_advisory_xact_lock_shared(%s)", (lock,))
        write_effect(tx, message)

    consumer = Consumer(CONSUMER, backoff=AT_ONCE)
    consumer.transactional("order.placed")(handle)
    run(consumer, source=lambda: kafka.Source(config, topic), database=dsn, threads=2)
