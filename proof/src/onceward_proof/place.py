"""Where a proof runs: two clusters of its own, and in them fresh databases for each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from onceward.schema import migrate
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq
from onceward_proof.alongside import service_folder
from onceward_proof.roles import QUEUES


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proof runs: two clusters, a folder for its files, the service under test."""

    app: Cluster
    queue: Cluster
    folder: Path
    service: Path

    def servers(self) -> dict[str, Callable[[], None]]:
        """What a schedule may do to them: SIGKILL with all its backends, and start again, at once."""
        return {"kill-postgres-app": _restarter(self.app), "kill-postgres-queue": _restarter(self.queue)}


@contextmanager
def place(settings: Mapping[str, str] | None = None) -> Iterator[Place]:
    """Two clusters of their own, both gone afterwards: the application's database and the queue's."""
    with (
        Cluster.start(name="prove-app", settings=settings) as app,
        Cluster.start(name="prove-queue", settings=settings) as queue,
    ):
        folder = app.folder / "proof"
        folder.mkdir()
        yield Place(app, queue, folder, service_folder())


def prepare_databases(where: Place, variant: str) -> tuple[str, str]:
    """The application's and the queue's, empty, with their schemas; as DSNs."""
    database = where.app.create_database(f"app_{variant}".replace("-", "_"))
    queue_database = where.queue.create_database(f"queue_{variant}".replace("-", "_"))
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute((where.service / "payments" / "schema.sql").read_bytes())
        migrate(conn)
    with psycopg.connect(queue_database, autocommit=True) as conn:
        pgmq.install(conn)
        for queue in QUEUES.values():
            pgmq.create_queue(conn, queue)
    return database, queue_database


def _restarter(cluster: Cluster) -> Callable[[], None]:
    def kill_and_restart() -> None:
        cluster.kill()
        cluster.restart()

    return kill_and_restart


def count_waiting(database: str, queue_database: str) -> dict[str, int]:
    """What is still on its way, in the queues and in the outbox. Raises `psycopg.Error` when a server is down."""
    waiting: dict[str, int] = {}
    with psycopg.connect(queue_database, autocommit=True, connect_timeout=2) as conn:
        for name in QUEUES.values():
            row = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("pgmq", f"q_{name}"))).fetchone()
            waiting[f"queue {name}"] = row[0] if row else 0
    with psycopg.connect(database, autocommit=True, connect_timeout=2) as conn:
        row = conn.execute("SELECT count(*) FROM onceward.outbox").fetchone()
        waiting["outbox"] = row[0] if row else 0
    return waiting
