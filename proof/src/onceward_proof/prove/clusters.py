"""Where a proof runs: two clusters of its own, and in them fresh databases for each variant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from onceward.schema import migrate
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq
from onceward_proof.bundled import payments_folder
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import QUEUES


@dataclass(frozen=True, slots=True)
class Clusters:
    """Where a proof runs: two clusters, and a folder for its files."""

    app: Cluster
    queue: Cluster
    folder: Path

    def servers(self) -> dict[ServerFault, Cluster]:
        """Which one each server fault strikes."""
        return {"kill-postgres-app": self.app, "kill-postgres-queue": self.queue}


@contextmanager
def start_clusters(settings: Mapping[str, str] | None = None) -> Iterator[Clusters]:
    """Two clusters of their own, both gone afterwards: the application's database and the queue's."""
    # Two, because the queue is in Postgres, too: killing the one must leave the other alive, as a broker would be.
    with (
        Cluster.start(name="prove-app", settings=settings) as app,
        Cluster.start(name="prove-queue", settings=settings) as queue,
    ):
        folder = app.folder / "proof"
        folder.mkdir()
        yield Clusters(app, queue, folder)


def prepare_databases(clusters: Clusters, variant: str) -> tuple[str, str]:
    """The application's and the queue's, empty, with their schemas; as DSNs."""
    database = clusters.app.create_database(f"app_{variant}".replace("-", "_"))
    queue_database = clusters.queue.create_database(f"queue_{variant}".replace("-", "_"))
    install(database, queue_database)
    return database, queue_database


def install(database: str, queue_database: str, queues: Iterable[str] = QUEUES.values()) -> None:
    """The service's and Onceward's tables are in the one database, the queues in the other (which may be the same)."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute((payments_folder() / "payments" / "schema.sql").read_bytes())
        migrate(conn)
    with psycopg.connect(queue_database, autocommit=True) as conn:
        pgmq.install(conn)
        for queue in queues:
            pgmq.create_queue(conn, queue)


def on_its_way(database: str, queue_database: str) -> dict[str, list[str]]:
    """The orders whose messages are in the outbox and in each queue. Raises `psycopg.Error` when a server is down."""
    places: dict[str, list[str]] = {}
    # The timeout is short: a server that was just killed must not hold up the poll. The outbox is read first: a message
    # that leaves it meanwhile is then found in its queue.
    with psycopg.connect(database, autocommit=True, connect_timeout=2) as conn:
        places["outbox"] = [row[0] for row in conn.execute("SELECT aggregateid FROM onceward.outbox")]
    with psycopg.connect(queue_database, autocommit=True, connect_timeout=2) as conn:
        for name in QUEUES.values():
            statement = sql.SQL("SELECT headers->>'subject' FROM {}").format(sql.Identifier("pgmq", f"q_{name}"))
            places[f"queue {name}"] = [row[0] for row in conn.execute(statement)]
    return places
