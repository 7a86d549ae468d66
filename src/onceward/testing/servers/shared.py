"""The shared set: one server of each kind for all tests of this user, started once, found by its folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Literal

from onceward.testing.postgres.owners import locked
from onceward.testing.servers.elasticmq import ElasticMQ
from onceward.testing.servers.installing import servers_folder
from onceward.testing.servers.kafka import Kafka
from onceward.testing.servers.rabbitmq import RabbitMQ
from onceward.testing.servers.server import Server

SharedName = Literal["sqs", "rabbitmq", "kafka"]


class ServerState(Enum):
    """What is seen of a server from outside."""

    UP = "up"
    SILENT = "silent"
    DOWN = "down"


@dataclass(frozen=True)
class Shared:
    """One server of the shared set: its name, its class, and the variable that names a server of the user's own instead."""

    name: SharedName
    kind: type[Server]
    variable: str

    @property
    def folder(self) -> Path:
        """Where its record, its log and its data are while it runs."""
        return servers_folder() / "shared" / self.name

    def running(self) -> Server | None:
        """The server, if its process runs."""
        return self.kind.running(self.folder)

    def state(self) -> ServerState:
        """Silent is a server whose process runs and does not answer: it starts, or it hangs."""
        server = self.running()
        if server is None:
            return ServerState.DOWN
        return ServerState.UP if server.answers() else ServerState.SILENT

    def up(self, port: int | None = None) -> Server:
        """The server answers; one that runs already is left as it is.

        One that is started has empty data, and its usual port unless that is taken. Raises as `Server.start` does.

        Crash: a server that has begun to start goes on, and the next `up` or `down` finds it.
        """
        with locked(servers_folder() / f"{self.name}.lock"):
            server = self.running()
            if server is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                return self.kind.start(self.folder, port=port, lasting=True)
            server.wait_until_ready()
            return server

    def down(self) -> bool:
        """The server has ended, and its data is gone; False if none ran.

        A process that only has the pid of a server that ended is left alone.
        """
        with locked(servers_folder() / f"{self.name}.lock"):
            server = self.running()
            if server is not None:
                server.kill()  # a clean end would only save what is removed now
            shutil.rmtree(self.folder, ignore_errors=True)
            return server is not None

    def url(self) -> str | None:
        """Where tests find this broker: the environment says, else the shared server that runs; None without either."""
        given = os.environ.get(self.variable)
        if given:
            return given
        server = self.running()
        return None if server is None else server.url


SHARED: Final = (
    Shared("sqs", ElasticMQ, "ONCEWARD_SQS_ENDPOINT"),
    Shared("rabbitmq", RabbitMQ, "ONCEWARD_RABBITMQ_URL"),
    Shared("kafka", Kafka, "ONCEWARD_KAFKA_BOOTSTRAP"),
)
