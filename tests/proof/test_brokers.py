"""What the proof asks of each broker: what still waits there, what passed, and what it can be made to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support.brokers import installed
from tests.support.waiting import until

from onceward.message import Message
from onceward.testing.servers.shared import SharedName
from onceward.transport import ACK, Delivery, Source, release
from onceward_proof.brokers.broker import Broker, Queues, RunningBroker
from onceward_proof.brokers.find import find_broker
from onceward_proof.workers.setting import QueueName, Setting

PLACED = "order.placed"
FIRST, SECOND = "O-1", "O-2"
BROKERS = [
    pytest.param(("pgmq", None), id="pgmq"),
    pytest.param(("sqs", "sqs"), marks=pytest.mark.sqs, id="sqs"),
    pytest.param(("sqs-fifo", "sqs"), marks=pytest.mark.sqs, id="sqs-fifo"),
    pytest.param(("rabbitmq", "rabbitmq"), marks=pytest.mark.rabbitmq, id="rabbitmq"),
    pytest.param(("kafka", "kafka"), marks=pytest.mark.kafka, id="kafka"),
]


@dataclass(frozen=True)
class Bench:
    """One broker at work, with fresh queues."""

    name: QueueName
    broker: Broker
    running: RunningBroker
    queues: Queues

    def source(self) -> Source:
        setting = Setting(
            variant="naive", database="", queue_address=self.queues.address, provider_url="", queue=self.name,
            queues=self.queues.names, prefetch=1, visibility_seconds=30,
        )  # fmt: skip
        return self.broker.source(setting, PLACED, "charge-0")

    def publish(self, *orders: str) -> None:
        with closing(self.broker.sink(self.queues.address, self.queues.names)) as sink:
            messages = [Message(type=PLACED, subject=order, data={"id": order}) for order in orders]
            assert list(sink.publish(messages)) == [None] * len(orders)

    def waiting(self) -> int | None:
        waiting = self.queues.waiting()
        return None if waiting is None else sum(waiting.values())


@pytest.fixture(scope="module", params=BROKERS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[QueueName, RunningBroker]]:
    queue, server = request.param
    _need(server)
    with find_broker(queue).start(tmp_path_factory.mktemp(queue), {}) as broker:
        yield queue, broker


def _need(server: SharedName | None) -> None:
    if server is not None:
        installed(server)


@pytest.fixture
def bench(running: tuple[QueueName, RunningBroker]) -> Bench:
    queue, broker = running
    return Bench(queue, find_broker(queue), broker, broker.make_queues(f"v{uuid4().hex[:8]}"))


def receive(source: Source, count: int) -> Sequence[Delivery]:
    """So many deliveries; a broker may take some seconds to give the first."""
    found: list[Delivery] = []

    def are_there() -> bool:
        found.extend(source.receive(count - len(found), 1.0).deliveries)
        return len(found) == count

    until(are_there)
    return found


def test_what_is_in_flight_or_delayed_still_waits(bench: Bench) -> None:
    assert bench.waiting() == 0
    bench.publish(FIRST, SECOND)
    until(lambda: bench.waiting() == 2)
    with closing(bench.source()) as source:
        in_flight, given_back = receive(source, 2)
        source.settle([(given_back, release(1.0))])
        until(lambda: bench.waiting() == 2)
        source.settle([(in_flight, ACK)])
        (again,) = receive(source, 1)
        source.settle([(again, ACK)])
    until(lambda: bench.waiting() == 0)


def test_what_was_stored_is_known_afterwards_with_its_time(bench: Bench) -> None:
    bench.publish(FIRST)
    bench.publish(SECOND)
    stored = bench.queues.passed().stored
    assert set(stored) == {(PLACED, FIRST), (PLACED, SECOND)}
    assert stored[PLACED, FIRST] <= stored[PLACED, SECOND]


def test_what_is_stored_survives_a_kill_and_nothing_is_said_of_a_server_that_is_down(bench: Bench) -> None:
    bench.publish(FIRST)
    bench.running.server.kill()
    assert bench.waiting() is None
    bench.running.server.restart()
    until(lambda: bench.waiting() == 1)
    with closing(bench.source()) as source:
        (delivery,) = receive(source, 1)
        assert delivery.headers["subject"] == FIRST


@pytest.mark.sqs
def test_a_redriven_message_comes_again_under_another_id_of_the_queues(tmp_path: Path) -> None:
    installed("sqs")
    broker = find_broker("sqs")
    with broker.start(tmp_path, {}) as running:
        bench = Bench("sqs", broker, running, running.make_queues("naive"))
        assert bench.queues.redrive(0) == "", "nothing was processed yet"
        bench.publish(FIRST)
        source = bench.source()
        (first,) = receive(source, 1)
        source.settle([(first, ACK)])
        assert bench.queues.redrive(7) == FIRST
        (again,) = receive(source, 1)
        assert again.headers["id"] == first.headers["id"]
        assert again.id != first.id
