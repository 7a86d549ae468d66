"""Where a proof runs: a cluster and a broker of its own, and in them fresh databases and queues for each variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from onceward.schema import migrate
from onceward.testing.postgres import Cluster
from onceward_proof.brokers.broker import RunningBroker, Server
from onceward_proof.brokers.find import find_broker
from onceward_proof.bundled import payments_folder
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import QueueName


@dataclass(frozen=True, slots=True)
class Clusters:
    """Where a proof runs: the application's cluster, the broker, and a folder for its files."""

    app: Cluster
    queue: QueueName
    broker: RunningBroker
    folder: Path

    def servers(self) -> dict[ServerFault, Server]:
        """Which one each server fault strikes."""
        return {"kill-postgres-app": self.app, self.broker.fault: self.broker.server}


@contextmanager
def start_clusters(settings: Mapping[str, str] | None = None, queue: QueueName = "pgmq") -> Iterator[Clusters]:
    """The application's database and the broker run, both on servers of their own; both are gone afterwards."""
    with Cluster.start(name="prove-app", settings=settings) as app:
        folder = app.folder / "proof"
        folder.mkdir()
        with find_broker(queue).start(folder, settings or {}) as broker:
            yield Clusters(app, queue, broker, folder)


def prepare_database(clusters: Clusters, variant: str) -> str:
    """The application's, empty, with its schema; as a DSN."""
    database = clusters.app.create_database(f"app_{variant}".replace("-", "_"))
    install(database)
    return database


def install(database: str) -> None:
    """The service's and Onceward's tables are in the database."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute((payments_folder() / "payments" / "schema.sql").read_bytes())
        migrate(conn)


def orders_in_outbox(database: str) -> list[str]:
    """The orders whose messages are in the outbox. Raises `psycopg.Error` when the server is down."""
    # The timeout is short: a server that was just killed must not hold up the poll.
    with psycopg.connect(database, autocommit=True, connect_timeout=2) as conn:
        return [row[0] for row in conn.execute("SELECT aggregateid FROM onceward.outbox")]
