"""RabbitMQ: the conformance suite, and what is peculiar to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.support.brokers import fresh

from onceward.testing.proxy import Proxy
from onceward.testing.transport import Rig, TransportSuite
from onceward.transports import rabbitmq


class TestRabbitMQ(TransportSuite):
    """The contract, through a proxy that can cut the connections."""

    parameters: pika.ConnectionParameters
    proxy: Proxy

    @pytest.fixture(autouse=True)
    def broker(self, rabbitmq_url: str) -> Iterator[None]:
        self.parameters = pika.URLParameters(rabbitmq_url)
        with Proxy(f"host={self.parameters.host} port={self.parameters.port}") as self.proxy:
            yield

    def make(self) -> Rig:
        queue = fresh("conformance")
        rabbitmq.create_queue(self.parameters, queue)
        through = pika.ConnectionParameters(
            host="127.0.0.1",
            port=int(str(conninfo_to_dict(self.proxy.dsn)["port"])),
            virtual_host=self.parameters.virtual_host,
            credentials=self.parameters.credentials,
        )
        return Rig(
            source=lambda: rabbitmq.Source(through, queue, prefetch=200),
            sink=lambda: rabbitmq.Sink(through, queue),
            cut=self.cut,
        )

    def cut(self) -> None:
        self.proxy.cut()
        self.proxy.heal()
