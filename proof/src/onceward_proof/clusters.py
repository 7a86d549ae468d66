"""Where a proof runs: two clusters of its own, and in them fresh databases for each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from onceward.schema import migrate
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq
from onceward_proof.bundled import payments_folder
from onceward_proof.faults import ServerFault
from onceward_proof.workers.setting import QUEUES


@dataclass(frozen=True, slots=True)
class Clusters:
    """Where a proof runs: two clusters, and a folder for its files."""

    app: Cluster
    queue: Cluster
    folder: Path

    def servers(self) -> dict[ServerFault, Callable[[], None]]:
        """What a schedule may do to them: SIGKILL with all its backends, and start again, at once."""
        return {"kill-postgres-app": _restarter(self.app), "kill-postgres-queue": _restarter(self.queue)}


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


def _restarter(cluster: Cluster) -> Callable[[], None]:
    def kill_and_restart() -> None:
        cluster.kill()
        cluster.restart()

    return kill_and_restart


def count_waiting(database: str, queue_database: str) -> dict[str, int]:
    """What is still on its way, in the queues and in the outbox.

    Raises `psycopg.Error` when a server is down.
    """
    # Short: a server that was just killed must not hold up the poll.
    waiting: dict[str, int] = {}
    with psycopg.connect(queue_database, autocommit=True, connect_timeout=2) as conn:
        for name in QUEUES.values():
            row = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("pgmq", f"q_{name}"))).fetchone()
            waiting[f"queue {name}"] = row[0] if row else 0
    with psycopg.connect(database, autocommit=True, connect_timeout=2) as conn:
        row = conn.execute("SELECT count(*) FROM onceward.outbox").fetchone()
        waiting["outbox"] = row[0] if row else 0
    return waiting
