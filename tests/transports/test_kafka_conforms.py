"""The conformance suite on a real Kafka: with order, without it, and with retry topics."""

from __future__ import annotations

from itertools import count
from os import getpid
from typing import Any, ClassVar

import pytest

from onceward.testing.transport import Rig, TransportSuite
from onceward.transports import kafka

_names = count(1)


class Conforms(TransportSuite):
    """One partition: with several, a second member takes some over, and with them what the first one holds of these."""

    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def bootstrap(self, kafka_bootstrap: str) -> None:
        self.brokers = kafka_bootstrap

    def make(self) -> Rig:
        topic = f"conforms-{getpid()}-{next(_names)}"
        brokers = {"bootstrap.servers": self.brokers}
        member = {**brokers, "group.id": topic, "session.timeout.ms": 6000, "heartbeat.interval.ms": 200}
        for name in (topic, f"{topic}.{topic}.retry"):
            kafka.create_topic(brokers, name)
        return Rig(
            source=lambda: kafka.Source(member, topic, **self.options),
            sink=lambda: kafka.Sink(brokers, topic),
        )


class TestWithOrder(Conforms):
    """The default."""


class TestWithoutOrder(Conforms):
    options: ClassVar = {"order": None}


class TestWithRetryTopics(Conforms):
    options: ClassVar = {"order": None, "retry_topics": True}
