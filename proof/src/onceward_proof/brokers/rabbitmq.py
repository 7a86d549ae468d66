"""RabbitMQ: a node of the proof's own, with a recorder before it as the witness.

A delivery has no lease there. What is not settled within the node's consumer timeout closes its channel, and comes again:
the proof sets that timeout to the lease that it gives to the deliveries of other queues.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import pika
from pika.exceptions import AMQPError

from onceward.testing.servers import RabbitMQ
from onceward.transport import Sink, Source
from onceward.transports import rabbitmq
from onceward_proof.brokers.broker import NeverStruck, Passed
from onceward_proof.brokers.installed import need_installed
from onceward_proof.brokers.recording import Recording, start_recorder
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import QUEUE_LEASE_SECONDS, QUEUES, Setting

_ANSWER_SECONDS_MAX: Final = 2.0
_COUNTED: Final = "/api/queues/%2F?disable_stats=true&enable_queue_totals=true"
_USER: Final = b64encode(b"guest:guest").decode()
# How often a queue writes its counts down: 5 s by default, for which a quiet queue would seem to hold what it has not.
_TICK: Final = "application:set_env(rabbit, quorum_tick_interval, 100)."


class RabbitQueues(NeverStruck):
    """One variant's queues. Their address is the recorder's."""

    def __init__(self, names: Mapping[str, str], server: RabbitMQ, recording: Recording) -> None:
        self.names = names
        self.address = f"amqp://guest:guest@127.0.0.1:{recording.port}/%2F"
        self._server = server
        self._recording = recording
        for name in names.values():
            rabbitmq.create_queue(pika.URLParameters(server.url), name)
        # A queue that was declared a moment before a kill could come back without a leader.
        server.sync()

    def waiting(self) -> Mapping[str, int] | None:
        try:
            counted = self._counted()
            ready = self._ready(counted)
        except (OSError, HTTPException, ValueError, AMQPError):
            return None
        if not set(self.names.values()) <= counted.keys():
            return None
        return {f"queue {name}": max(count, ready[name]) for name, count in counted.items()}

    def _counted(self) -> dict[str, int]:
        """What each queue has written down of its messages, in flight ones too; also those that wait for a delay."""
        request = Request(f"{self._server.management_url}{_COUNTED}", headers={"Authorization": f"Basic {_USER}"})  # noqa: S310
        with urlopen(request, timeout=_ANSWER_SECONDS_MAX) as answer:  # noqa: S310 - loopback
            queues: list[dict[str, Any]] = json.load(answer)
        ours = [queue for queue in queues if queue["name"].startswith(tuple(self.names.values()))]
        return {queue["name"]: int(queue.get("messages", 0)) for queue in ours}

    def _ready(self, names: Iterable[str]) -> dict[str, int]:
        """What each queue has to deliver, asked of itself: a node that has just come back has nothing written down yet."""
        parameters = pika.URLParameters(self._server.url)
        parameters.socket_timeout = parameters.blocked_connection_timeout = _ANSWER_SECONDS_MAX
        with closing(pika.BlockingConnection(parameters)) as connection:
            channel = connection.channel()
            return {name: int(channel.queue_declare(name, passive=True).method.message_count) for name in names}

    def passed(self) -> Passed:
        return self._recording.passed(self.names)

    def cut_at_ack(self, message_type: str, order: str) -> None:
        self._recording.cut_at_ack(self.names[message_type], order)


@dataclass(frozen=True, slots=True)
class RunningRabbit:
    """A node, and the recorder that workers reach it by."""

    server: RabbitMQ
    recording: Recording
    fault: ServerFault = "kill-broker"
    recovery_seconds: float = 20.0

    def make_queues(self, variant: str) -> RabbitQueues:
        names = {message_type: f"{name}-{variant}" for message_type, name in QUEUES.items()}
        return RabbitQueues(names, self.server, self.recording)


class Rabbit:
    """RabbitMQ with quorum queues."""

    def check(self) -> None:
        need_installed(RabbitMQ, "rabbitmq")

    @contextmanager
    def start(self, folder: Path, postgres_settings: Mapping[str, str]) -> Iterator[RunningRabbit]:  # noqa: ARG002 - no Postgres
        with (
            RabbitMQ.start(folder / "rabbitmq", consumer_timeout_seconds=QUEUE_LEASE_SECONDS) as server,
            start_recorder("amqp", server.port, folder) as recording,
        ):
            server.control("eval", _TICK)
            yield RunningRabbit(server, recording)

    def warm_up(self, setting: Setting) -> None:
        """The client is imported with this module."""

    def source(self, setting: Setting, message_type: str, member: str) -> Source:  # noqa: ARG002 - RabbitMQ knows no members
        parameters = pika.URLParameters(setting.queue_address)
        return rabbitmq.Source(parameters, setting.queues[message_type], prefetch=setting.threads + setting.prefetch)

    def sink(self, address: str, queues: Mapping[str, str]) -> Sink:
        return rabbitmq.Sink(pika.URLParameters(address), queues)
