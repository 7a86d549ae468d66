"""Kafka: one broker that is its own controller (KRaft)."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from onceward.testing.servers.installing import InstallFailed, jars_folder
from onceward.testing.servers.java import JavaServer, java

_LOG4J: Final = Path(__file__).with_name("kafka.log4j2.yaml")
_ANSWER_SECONDS_MAX: Final = 2.0
_CLUSTER_ID: Final = "b25jZXdhcmQtdGVzdGluZw"
_PROPERTIES: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "num.partitions": "1",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    # A group of one need not wait for others to join it.
    "group.initial.rebalance.delay.ms": "0",
    # A broker that comes back after a SIGKILL is let in when the session of the killed one has run out: 9 s by default.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # A test's topic has a handful of messages, and an index is allocated whole: 10 MB for each of two by default.
    "log.index.size.max.bytes": "1048576",
    "log.segment.bytes": "67108864",
    "log.cleaner.dedupe.buffer.size": "2097152",
}


class Kafka(JavaServer):
    """One broker that is its own controller; topics are not made by being used.

    `settings` are those of server.properties. `url` is what clients call bootstrap.servers. An acknowledged message is with
    the kernel: it survives a kill of the broker, not one of the machine. Needs Java 17 and, for the first start, Maven.
    """

    title = "Kafka"
    ports_preferred: ClassVar = {"clients": 19092, "controller": 19093}
    pom = Path(__file__).with_name("kafka.pom.xml")
    heap_mb = 256

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def sync(self) -> None:
        """Nothing: a topic that was made survives a kill from the moment of the answer."""

    @classmethod
    def _prepare(cls) -> None:
        """An empty data folder is formatted. Each server gets a copy: to format one takes a JVM and 1.5 s."""
        data = cls._formatted()
        if data.exists():
            return
        draft = data.with_name(f"{data.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        properties = data.with_name(f"{data.name}.properties")
        # No server ever listens on these ports: formatting only wants to read that there are some.
        _write_properties(properties, {**_PROPERTIES, **_where(19092, 19093, draft)})
        tool = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(properties)]
        done = subprocess.run([*java(cls.pom, 128), *tool], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InstallFailed(f"Kafka's data folder cannot be formatted:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        draft.rename(data)

    @classmethod
    def _formatted(cls) -> Path:
        jars = jars_folder(cls.pom)
        return jars.with_name(f"{jars.name}.formatted")

    def _configure(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            draft = self.folder / "data.draft"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(self._formatted(), draft)
            draft.rename(data)
        ports = self._record.ports
        where = _where(ports["clients"], ports["controller"], data)
        _write_properties(self.folder / "server.properties", {**_PROPERTIES, **where, **self._record.settings})

    def _main(self) -> list[str]:
        return [f"-Dlog4j2.configurationFile=file:{_LOG4J}", "kafka.Kafka", str(self.folder / "server.properties")]

    def _is_ready(self) -> bool:
        """It names a broker to clients: it has been let into its own cluster."""
        try:
            return _brokers(self.port) > 0
        except (OSError, struct.error):
            return False


def _where(clients: int, controller: int, data: Path) -> dict[str, str]:
    """The properties that say where the server listens and keeps its data."""
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{clients}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "log.dirs": str(data),
    }


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


def _brokers(port: int) -> int:
    """How many brokers the server names to a client that asks for the metadata of no topic.

    By the protocol's own frame (Metadata, version 4), since this package must not need a client.
    """
    client = b"onceward"
    header = struct.pack(f">hhih{len(client)}s", 3, 4, 1, len(client), client)
    request = header + struct.pack(">i?", 0, False)
    with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS_MAX) as conn, conn.makefile("rb") as answers:
        conn.sendall(struct.pack(">i", len(request)) + request)
        # The length, the request's number, how long the client is to hold back, and the length of the list of brokers.
        _, _, _, brokers = struct.unpack(">iiii", answers.read(16))
    return int(brokers)
