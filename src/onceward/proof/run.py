"""Runs one variant under one schedule, from empty databases to quiet, and gathers what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from onceward.embedded import Cluster
from onceward.errors import OncewardError
from onceward.proof import checker
from onceward.proof.control import Controller, Counts, Moment
from onceward.proof.provider import ProviderProcess
from onceward.proof.roles import QUEUES, Setting
from onceward.proof.schedule import Schedule
from onceward.proof.variants import CREWS
from onceward.schema import migrate
from onceward.transports import pgmq

STALLED_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.15
QUIET_POLLS: Final = 3  # in a row, so that what was just about to start has started


class ProofError(OncewardError):
    """The proof itself could not be run; nothing is said of any variant."""


@dataclass(slots=True)
class Result:
    """One variant's run: what the checker says, what the controller counted, and the stories of the orders."""

    variant: str
    verdict: checker.Verdict
    counts: Counts
    planned: dict[str, int]
    predicted_parked: frozenset[str]
    finished: bool  # went quiet by itself; False: no progress for STALLED_SECONDS
    wall_seconds: float
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    why_stalled: str = ""

    def unreached(self) -> dict[str, int]:
        return {name: n - self.counts.fired[name] for name, n in self.planned.items() if n > self.counts.fired[name]}

    def every_fault_fired(self) -> bool:
        return not self.unreached()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proof runs: two clusters, a folder for its files, the service under test."""

    app: Cluster
    queue: Cluster
    folder: Path
    service: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """How one row of the ablation differs from hardened: its name, the layers taken away, the provider's scaled window."""

    name: str
    without: tuple[str, ...] = ()
    window_seconds: float | None = None


Progress = Callable[[str, Controller], None]


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


def service_folder() -> Path:
    """The folder that holds the package `payments`: in an installed wheel, or in the checkout."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "_examples", here.parent.parent / "examples"):
        if (folder / "payments").is_dir():
            return folder
    raise ProofError("the reference payment service (examples/payments) is not installed with this package")


def run_variant(
    where: Place, schedule: Schedule, schedule_file: Path, variant: str, progress: Progress, changed: Changed | None = None
) -> Result:
    """Fresh databases, a fresh ledger, the whole crew; returns when it is quiet, or has made no progress for long."""
    started = time.monotonic()
    name = changed.name if changed else variant
    files = where.folder / name
    files.mkdir()
    database, queue_database = _prepare_databases(where, name)
    # A socket's path must be short (about 100 bytes): relative to the folder is the shortest.
    control_socket = files / "c"
    servers = {"kill-postgres-app": _restarter(where.app), "kill-postgres-queue": _restarter(where.queue)}
    controller = Controller(schedule, CREWS[variant], servers)
    argument = json.dumps([str(control_socket), str(schedule_file)])
    ledger = files / "ledger.sqlite"
    run = _Run(where, controller, variant, progress, database, queue_database, files, changed)
    finished = asyncio.run(run.go(ledger, control_socket, argument, schedule_file))
    evidence = checker.gather({order.id: order.amount for order in schedule.orders}, ledger, database)
    return Result(
        variant=name,
        verdict=checker.judge(evidence),
        counts=controller.counts,
        planned=schedule.planned(),
        predicted_parked=schedule.predicted_parked() if variant == "hardened" else frozenset(),
        finished=finished,
        wall_seconds=time.monotonic() - started,
        moments=dict(controller.moments),
        why_stalled="" if finished else run.why_not_quiet(),
    )


def _prepare_databases(where: Place, variant: str) -> tuple[str, str]:
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


class _Run:
    """One variant's processes."""

    def __init__(
        self, where: Place, controller: Controller, variant: str, progress: Progress, database: str, queue_database: str,
        files: Path, changed: Changed | None,
    ) -> None:  # fmt: skip
        self._where = where
        self._controller = controller
        self._variant = variant
        self._changed = changed
        self._progress = progress
        self._database = database
        self._queue_database = queue_database
        self._files = files
        self._waiting: dict[str, int] = {}

    async def go(self, ledger: Path, control_socket: Path, hook_argument: str, schedule_file: Path) -> bool:
        server = await asyncio.start_unix_server(self._controller.hear, path=str(control_socket), limit=1 << 20)
        hook = "onceward.proof.provider_hook:make"
        log = self._files / "provider.log"
        changed = self._changed
        window = changed.window_seconds if changed else None
        provider = ProviderProcess.start(ledger, hook=hook, hook_argument=hook_argument, log=log, window_seconds=window)
        try:
            setting = Setting(
                variant=self._variant,
                database=self._database,
                queue_database=self._queue_database,
                provider_url=provider.url,
                control_socket=str(control_socket),
                schedule=str(schedule_file),
                service=str(self._where.service),
                row=changed is not None,
                without=changed.without if changed else (),
                window_seconds=window,
            )
            async with _nursery(self._files / "workers.log") as (reader, writer):
                await self._controller.nurse(reader, writer, asdict(setting))
                finished = await self._until_quiet(provider)
                self._controller.kill_all()
            return finished
        finally:
            provider.stop()
            server.close()

    async def _until_quiet(self, provider: ProviderProcess) -> bool:
        quiet = 0
        while quiet < QUIET_POLLS:
            await asyncio.sleep(POLL_SECONDS)
            self._progress(self._changed.name if self._changed else self._variant, self._controller)
            if time.monotonic() - self._controller.last_progress > STALLED_SECONDS:
                return False
            quiet = quiet + 1 if self._controller.quiet() and await self._all_empty(provider) else 0
        return True

    async def _all_empty(self, provider: ProviderProcess) -> bool:
        """Queues, outbox and the provider's open requests are empty. A server that is down is not empty."""
        try:
            self._waiting = count_waiting(self._database, self._queue_database)
            self._waiting["open provider requests"] = int(provider.admin("open")["open_requests"])
        except (psycopg.Error, OSError):
            return False
        return not any(self._waiting.values())

    def why_not_quiet(self) -> str:
        left = ", ".join(f"{name}: {count}" for name, count in self._waiting.items() if count)
        return left or "workers are still busy"


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


class _nursery:  # noqa: N801 - used as a function
    """The warm parent as a child process, and the line to it; it ends, with all that it forked, when the line does."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def __aenter__(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "onceward.proof.nursery", str(theirs.fileno())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, once
                command, pass_fds=[theirs.fileno()], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
        theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        return reader, self._writer

    async def __aexit__(self, *_: Any) -> None:
        if self._writer is not None:
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, 10)
