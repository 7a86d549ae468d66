"""Where the brokers are that tests need; without one, a test is skipped with the command that starts it.

A test that asks for a broker's fixture has the mark of that broker: `-m kafka` runs what needs Kafka, and nothing else.
"""

from __future__ import annotations

import os
from typing import NoReturn
from uuid import uuid4

import pytest

from onceward.testing.servers import SHARED, Server, Shared
from onceward.testing.servers.shared import SharedName

FIXTURES: dict[str, SharedName] = {"sqs_endpoint": "sqs", "rabbitmq_url": "rabbitmq", "kafka_bootstrap": "kafka"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in FIXTURES:
                item.add_marker(FIXTURES[fixture])


def fresh(name: str) -> str:
    """A name that no other test has: the shared servers keep what tests leave in them."""
    return f"{name}-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def sqs_endpoint() -> str:
    """The URL of a server that speaks SQS."""
    return where("sqs")


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """The amqp:// URL of a RabbitMQ."""
    return where("rabbitmq")


@pytest.fixture(scope="session")
def kafka_bootstrap() -> str:
    """The bootstrap.servers of a Kafka."""
    return where("kafka")


def where(name: SharedName) -> str:
    """The broker that the environment names, else the shared one; the test is skipped, or fails in CI, without either."""
    shared = _shared(name)
    url = shared.url()
    if url is None:
        missing(f"no {shared.kind.title} here: ./run servers up {name} (or set {shared.variable})")
    return url


def installed(name: SharedName) -> type[Server]:
    """The class of a server, for a test that starts one of its own; skipped where that would first download it."""
    shared = _shared(name)
    if not shared.kind.is_installed():
        missing(f"{shared.kind.title} is not installed: ./run servers install {name}")
    return shared.kind


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"CI must have every broker: {what}")
    pytest.skip(what)


def _shared(name: SharedName) -> Shared:
    return next(shared for shared in SHARED if shared.name == name)
