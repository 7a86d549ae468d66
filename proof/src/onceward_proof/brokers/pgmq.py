"""pgmq: the queues are tables, in a database for each variant, on a cluster of their own.

The witness is the queues' own database. By triggers that no worker knows of it keeps what was ever stored in it, and what
was ever taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool

from onceward.testing.postgres import Cluster
from onceward.transport import Sink, Source
from onceward.transports import pgmq
from onceward_proof.brokers.broker import NeverStruck, Passed
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import QUEUES, Setting

# Plain inserts: they stand or fall with the transaction that they are about, also when the server is killed.
_TABLES: Final = """
CREATE SCHEMA witness;
CREATE TABLE witness.stored (message_type text NOT NULL, subject text NOT NULL, at double precision NOT NULL);
CREATE TABLE witness.removed (message_type text NOT NULL, subject text NOT NULL, at double precision NOT NULL);
CREATE FUNCTION witness.store() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness.stored VALUES
        (NEW.headers->>'type', NEW.headers->>'subject', extract(epoch FROM clock_timestamp()));
    RETURN NULL; END $$;
CREATE FUNCTION witness.remove() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness.removed VALUES
        (OLD.headers->>'type', OLD.headers->>'subject', extract(epoch FROM clock_timestamp()));
    RETURN NULL; END $$;
"""
_TRIGGERS: Final = (
    "CREATE TRIGGER witness_store AFTER INSERT ON {queue} FOR EACH ROW EXECUTE FUNCTION witness.store()",
    "CREATE TRIGGER witness_remove AFTER DELETE ON {queue} FOR EACH ROW EXECUTE FUNCTION witness.remove()",
)
_STORED: Final = "SELECT message_type, subject, min(at) FROM witness.stored GROUP BY message_type, subject"
_REMOVED: Final = "SELECT message_type, subject, array_agg(at) FROM witness.removed GROUP BY message_type, subject"


class PgmqQueues(NeverStruck):
    """One variant's queues: a database of their own. Their address is its DSN."""

    names: Mapping[str, str] = QUEUES

    def __init__(self, dsn: str) -> None:
        self.address = dsn

    def waiting(self) -> Mapping[str, int] | None:
        try:
            return {name: len(orders) for name, orders in orders_in_queues(self.address).items()}
        except psycopg.Error:
            return None

    def passed(self) -> Passed:
        with psycopg.connect(self.address, autocommit=True) as conn:
            stored = {(row[0], row[1]): row[2] for row in conn.execute(_STORED.encode())}
            removed = {(row[0], row[1]): row[2] for row in conn.execute(_REMOVED.encode())}
        return Passed(stored, removed)


@dataclass(frozen=True, slots=True)
class RunningPgmq:
    """A cluster of its own: killing it must leave the application's alive, as a broker would be."""

    server: Cluster
    fault: ServerFault = "kill-postgres-queue"
    recovery_seconds: float = 0.0

    def make_queues(self, variant: str) -> PgmqQueues:
        dsn = self.server.create_database(f"queue_{variant}".replace("-", "_"))
        install_queues(dsn)
        _install_witness(dsn)
        return PgmqQueues(dsn)


class Pgmq:
    """The queue in Postgres."""

    def check(self) -> None:
        """It needs what every proof needs."""

    @contextmanager
    def start(self, folder: Path, postgres_settings: Mapping[str, str]) -> Iterator[RunningPgmq]:  # noqa: ARG002 - its own
        with Cluster.start(name="prove-queue", settings=postgres_settings) as cluster:
            yield RunningPgmq(cluster)

    def warm_up(self, setting: Setting) -> None:
        ConnectionPool(setting.queue_address, min_size=1, open=False).close()
        psycopg.connect(setting.queue_address).close()

    def source(self, setting: Setting, message_type: str, member: str) -> Source:  # noqa: ARG002 - pgmq knows no members
        return pgmq.Source(
            setting.queues[message_type], setting.queue_address, visibility_seconds=setting.visibility_seconds,
            archive=setting.archive,
        )  # fmt: skip

    def sink(self, address: str, queues: Mapping[str, str]) -> Sink:
        return pgmq.Sink(queues, address)


def install_queues(dsn: str, names: Iterable[str] = QUEUES.values()) -> None:
    """pgmq and these queues are in the database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        pgmq.install(conn)
        for name in names:
            pgmq.create_queue(conn, name)


def orders_in_queues(dsn: str) -> dict[str, list[str]]:
    """The orders whose messages are in each queue. Raises `psycopg.Error` when the server is down."""
    # The timeout is short: a server that was just killed must not hold up the poll.
    with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as conn:
        return {f"queue {name}": _orders_in(conn, name) for name in QUEUES.values()}


def _orders_in(conn: psycopg.Connection[tuple[str, ...]], name: str) -> list[str]:
    statement = sql.SQL("SELECT headers->>'subject' FROM {}").format(sql.Identifier("pgmq", f"q_{name}"))
    return [row[0] for row in conn.execute(statement)]


def _install_witness(dsn: str) -> None:
    """From now on the queues' database keeps what is stored and removed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_TABLES.encode())
        for name in QUEUES.values():
            for trigger in _TRIGGERS:
                conn.execute(sql.SQL(trigger).format(queue=sql.Identifier("pgmq", f"q_{name}")))
