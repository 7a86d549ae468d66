"""What a demonstration works with: one Postgres with a database for each side, one payment provider, and workers."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, LiteralString, NamedTuple

import psycopg

from onceward.message import Message
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq
from onceward_proof.brokers.pgmq import install_queues
from onceward_proof.demos.narrator import Narrator
from onceward_proof.demos.roles import store
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.clusters import install
from onceward_proof.provider.server import ProviderProcess
from onceward_proof.workers.fork import fork
from onceward_proof.workers.line import Line
from onceward_proof.workers.reports import Note, Report, Word
from onceward_proof.workers.roles import Work, work_of
from onceward_proof.workers.setting import QUEUES, Role, Setting
from onceward_proof.workers.worker import Worker, warm_up
from payments import hardened, naive

UNASKED: Final = "unasked"  # a queue of its own for the order whose charge cannot be looked up
ORDER: Final = {"id": "O-123", "amount": 5000}
Order = dict[str, Any]
Evidence = dict[str, Any]
SideName = Literal["naive", "hardened"]


class Step(NamedTuple):
    """One step that is told later than it happened; `at` is monotonic."""

    at: float
    who: str
    what: str


class Side:
    """One of the two ways: a database of its own, an account of its own at the provider, and what its script does.

    `log`: what its workers write to standard error. `claims`: what it claims, and whether that was seen.
    """

    def __init__(self, name: SideName, dsn: str, provider: ProviderProcess, narrator: Narrator, log: Path) -> None:
        self.name: SideName = name
        self.dsn = dsn
        self.account = f"sk_test_{name}"
        self.provider = provider
        self.heading = narrator.heading
        self.start_clock = narrator.start_clock
        self.tell = narrator.tell
        self.fast = narrator.fast
        self.log = log
        self.claims: list[tuple[str, bool]] = []
        self._workers: list[WorkerProcess] = []

    def claim(self, what: str, held: bool) -> None:
        """One claim of the demonstration; all must hold."""
        self.claims.append((what, held))

    def kill_workers(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def place(self, order: Order = ORDER, queue: str = "charges") -> None:
        """The order is in the database, and its event in the queue: each side by its own means."""
        with psycopg.connect(self.dsn, autocommit=True) as conn, closing(pgmq.Sink(queue, self.dsn)) as sink:
            if self.name == "naive":
                naive.place(conn, sink, order)
                return
            hardened.place(conn, order)
        self.start("relay", "relay", queue=queue, until_empty=True).finish()

    def store(self, order: Order) -> None:
        """The order and its account are in the database; nothing is sent."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            store(conn, order)

    def send(self, messages: Sequence[Message], queue: str) -> None:
        with closing(pgmq.Sink(queue, self.dsn)) as sink:
            for error in sink.publish(messages):
                if error is not None:
                    raise error

    def start(
        self,
        role: Role | Work,
        name: str,
        *gates: Word,
        variant: str = "",
        queue: str = "charges",
        orders: Sequence[Order] = (),
        **setting: Any,
    ) -> WorkerProcess:
        """A worker process of this role, which waits at these gates until it is let go on.

        `variant`: whose code it runs, this side's if none is named. `queue`: of the orders that are to be charged.
        """
        chosen = Setting(
            variant=variant or self.name, database=self.dsn, queue_address=self.dsn, provider_url=self.provider.url,
            account=self.account, queues={**QUEUES, "order.placed": queue}, is_demo=True,
            **{"visibility_seconds": 1, "lease_seconds": 1.0, **setting},
        )  # fmt: skip
        work = work_of(chosen.variant, role) if isinstance(role, str) else role
        ours, theirs = socket.socketpair()

        def be_worker() -> None:
            ours.close()
            line = Line(theirs, lambda report: report.word in gates)
            try:
                work(Worker(chosen, line, name, orders))
            except Exception as error:
                line.report(Report(Note.RAISED, error=type(error).__name__))
                raise
            line.report(Report(Note.ENDED))

        # This process holds no thread and no open connection here: the fork is a clean one.
        worker = WorkerProcess(name, fork(be_worker, self.log), ours)
        theirs.close()
        self._workers.append(worker)
        return worker

    def see(self, worker: WorkerProcess, word: Word, what: str, *, who: str = "", is_start: bool = False) -> Report:
        """The worker's next report of this word is told, at the time at which it happened; T=0 if it `is_start`.

        `what` may name the report's fields: {it.charge}. `who`: if it is not the worker's own doing.
        """
        report = worker.expect(word)
        if is_start:
            self.start_clock(at=report.at)
        self.tell(who or worker.name, what.format(it=report), report.at)
        return report

    def tell_in_order(self, *steps: Step) -> None:
        """What several workers did at once is told, earliest first."""
        for step in sorted(steps):
            self.tell(step.who, step.what, step.at)

    def charges(self) -> list[str]:
        """The ids of the charges in the provider's own ledger, oldest first."""
        return [charge["id"] for charge in self._ledger()]

    def charged(self) -> int:
        """The money that the provider took, in the smallest unit."""
        return sum(charge["amount"] for charge in self._ledger())

    def charges_per_order(self) -> dict[str, int]:
        orders = [charge["transfer_group"] for charge in self._ledger()]
        return {order: orders.count(order) for order in dict.fromkeys(orders)}

    def _ledger(self) -> list[dict[str, Any]]:
        return [charge for charge in self.provider.admin("ledger") if charge["account"] == self.account]

    def look(self, statement: LiteralString, *parameters: str) -> Any:
        """The first column of the first row; None where there is none."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            row = conn.execute(statement, parameters).fetchone()
        return None if row is None else row[0]

    def paid(self) -> int:
        return int(self.look("SELECT count(*) FROM orders WHERE status = 'paid'"))

    def queued(self, queue: str = "charges") -> int:
        return int(self.look("SELECT queue_length FROM pgmq.metrics(%s)", queue))

    def received_at(self, visibility_seconds: int) -> float:
        """When (monotonic) the one message of the charges was received: the queue knows until when it is hidden."""
        # Read before the question: the answer may be late, and the queue must not seem to deliver before its own timeout.
        now = time.monotonic()
        hidden_seconds = float(self.look("SELECT extract(epoch FROM vt - clock_timestamp()) FROM pgmq.q_charges"))
        return now + hidden_seconds - visibility_seconds


@contextmanager
def open_sides(narrator: Narrator) -> Iterator[list[Side]]:
    """A cluster, a provider and the two sides; nothing of them is left afterwards."""
    logging.getLogger("onceward").setLevel(logging.CRITICAL)
    logging.getLogger("payments").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster.start(name="demo"))
        folder = cluster.folder / "demo"
        folder.mkdir()
        provider = stack.enter_context(ProviderProcess(folder / "ledger.sqlite", log=folder / "provider.log"))
        stack.callback(cluster.kill)  # nothing of it is kept: there is nothing to stop gracefully for
        stack.callback(provider.kill)
        dsn = cluster.create_database("naive")
        install(dsn)
        install_queues(dsn, (*QUEUES.values(), UNASKED))
        # A copy of the first, so that both sides start from the same.
        copy = cluster.create_database("hardened", template="naive")
        warm_up(provider.url, dsn)
        log = folder / "workers.log"
        sides = [Side("naive", dsn, provider, narrator, log), Side("hardened", copy, provider, narrator, log)]
        for side in sides:
            stack.callback(side.kill_workers)
        yield sides


def wait_until(moment: float) -> None:
    """Until this instant of the monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))
