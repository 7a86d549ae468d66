"""The reference service at rest, for one order at a time: what the system-call sweep and the ambiguous commits run on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from onceward.consumer import Consumer, OpenConsumer
from onceward.consumer_loop import Settler
from onceward.events import Listener
from onceward.lane import publish_rows
from onceward.relay_loop import relay
from onceward.testing.postgres import Cluster
from onceward.transport import Settlement
from onceward.transports import pgmq
from onceward_proof.brokers.pgmq import install_queues
from onceward_proof.prove import checker
from onceward_proof.prove.clusters import install
from onceward_proof.prove.run import ProofError
from onceward_proof.provider.server import ProviderProcess
from onceward_proof.workers.setting import CONSUMED, QUEUES, Role
from onceward_proof.workers.worker import make_card, warm_up
from payments import hardened

VISIBILITY_SECONDS: Final = 30  # never runs out by itself: `make_due` ends it, so that nothing has to wait
LEASE_SECONDS: Final = 60.0
AMOUNT: Final = 1000
SERVED: Final = {role: QUEUES[message_type] for role, message_type in CONSUMED.items()}  # consumer -> its queue
RECOVERIES_MAX: Final = 40


@dataclass(slots=True)
class Payments:
    """Two databases, the queues and the provider, with connections to look and to prepare with. One thread."""

    folder: Path
    database: str
    queue_database: str
    provider_url: str
    ledger: Path
    conn: psycopg.Connection[Any]
    queue_conn: psycopg.Connection[Any]
    sink: pgmq.Sink
    ordered: dict[str, int] = field(default_factory=dict)

    def place(self, order: str) -> None:
        """The order is committed, with its event in the outbox."""
        self.ordered[order] = AMOUNT
        hardened.place(self.conn, {"id": order, "amount": AMOUNT})

    def send_one(self, message_type: str) -> str:
        """The oldest event of this type goes to its queue; whose it was."""
        whole = "SELECT *, extract(epoch FROM time)::text AS time FROM onceward.outbox"
        statement = f"{whole} WHERE type = %s ORDER BY position LIMIT 1".encode()
        rows = self.conn.cursor(row_factory=dict_row).execute(statement, [message_type]).fetchall()
        if not rows or publish_rows(self.sink, rows) != [None]:
            raise ProofError(f"there is no {message_type} to send")
        self.conn.execute("DELETE FROM onceward.outbox WHERE position = %s", [rows[0]["position"]])
        return str(rows[0]["aggregateid"])

    def make_due(self) -> None:
        """Time passes: what a killed worker held is visible again in its queue, and its lease has lapsed."""
        for queue in QUEUES.values():
            table = sql.Identifier("pgmq", f"q_{queue}")
            self.queue_conn.execute(sql.SQL("UPDATE {} SET vt = clock_timestamp()").format(table))
        self.conn.execute("UPDATE onceward.inbox SET lease_until = clock_timestamp() WHERE state = 'pending'")
        self.conn.execute("UPDATE onceward.outbox SET retry_at = NULL WHERE retry_at IS NOT NULL")

    def consumer(self, role: Role) -> Consumer:
        if role == "ledger":
            return hardened.ledger(lease_seconds=LEASE_SECONDS)
        return hardened.charges(make_card(self.provider_url, "sweep")[0], lease_seconds=LEASE_SECONDS)

    def source(self, role: Role) -> pgmq.Source:
        return pgmq.Source(SERVED[role], self.queue_database, visibility_seconds=VISIBILITY_SECONDS)

    def consume(self, role: Role) -> None:
        """A fresh consumer takes what its queue has."""
        source = self.source(role)
        with self.consumer(role).open(self.database, source=source) as opened:
            while deliver_one(opened, source) is not None:
                pass
        source.close()

    def send_all(self, connect: Callable[[], psycopg.Connection] | None = None, *listeners: Listener) -> None:
        """One pass of a relay: until the outbox has nothing to take."""
        relay(
            sink=lambda: pgmq.Sink(QUEUES, self.queue_database), database=connect or self.database, lanes=1, batch=10,
            until_empty=True, listeners=listeners,
        )  # fmt: skip

    def waiting(self, role: Role) -> int:
        """Messages in this consumer's queue; or, for the relay, rows in the outbox."""
        if role == "relay":
            return int(self.look("SELECT count(*) FROM onceward.outbox"))
        return sum(map(len, self.ids(SERVED[role]).values()))

    def look(self, statement: LiteralString, *parameters: str) -> Any:
        """The first column of the first row; None where there is none."""
        row = self.conn.execute(statement, parameters).fetchone()
        return None if row is None else row[0]

    def ids(self, queue: str) -> dict[str, list[str]]:
        """The message ids in a queue, by order: two different ids would be two events."""
        table = sql.Identifier("pgmq", f"q_{queue}")
        statement = sql.SQL("SELECT headers->>'subject', headers->>'id' FROM {}").format(table)
        ids: dict[str, list[str]] = {}
        for order, message_id in self.queue_conn.execute(statement):
            ids.setdefault(order, []).append(message_id)
        return ids

    def judge(self) -> checker.Verdict:
        return checker.judge(checker.gather(self.ordered, self.ledger, self.database))

    def until_empty(self, role: Role, work: Callable[[], None]) -> None:
        """Do `work`, a fresh recovery, until nothing waits; time passes before each attempt."""
        for _ in range(RECOVERIES_MAX):
            self.make_due()
            work()
            if not self.waiting(role):
                return
            time.sleep(0.05)  # the server may not have noticed yet that a client was killed: its locks are still held
        raise ProofError(f"{self.waiting(role)} messages stay with {role} after {RECOVERIES_MAX} recoveries")


def deliver_one(opened: OpenConsumer, source: pgmq.Source) -> Settlement | None:
    """What the loop does with one message, on this thread: receive, deliver, settle.

    None: there is no message.
    """
    received = source.receive(1, 0)
    if not received.deliveries:
        return None
    opened.keeper.received(received.deliveries)
    (delivery,) = received.deliveries
    settlement = opened.deliver(delivery)
    Settler(opened, source).settle(delivery, settlement)
    return settlement


@contextmanager
def start_payments() -> Iterator[Payments]:
    """A cluster and a provider of our own, both gone afterwards."""
    with Cluster.start(name="prove-calls") as cluster:
        folder = cluster.folder / "proof"
        folder.mkdir()
        database, queue_database = cluster.create_database("app"), cluster.create_database("queue")
        install(database)
        install_queues(queue_database)
        ledger = folder / "ledger.sqlite"
        with (
            ProviderProcess(ledger, log=folder / "provider.log") as provider,
            psycopg.connect(database, autocommit=True) as conn,
            psycopg.connect(queue_database, autocommit=True) as queue_conn,
            closing(pgmq.Sink(QUEUES, queue_database)) as sink,
        ):
            warm_up(provider.url, database, queue_database)
            yield Payments(folder, database, queue_database, provider.url, ledger, conn, queue_conn, sink)
