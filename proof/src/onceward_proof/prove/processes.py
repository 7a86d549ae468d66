"""The processes of one variant: the provider, the supervisor with all that it forks, the socket that they report to."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from onceward.transport import Sink
from onceward_proof.brokers.find import find_broker
from onceward_proof.prove.clusters import Clusters, orders_in_outbox, prepare_database
from onceward_proof.prove.control import Controller
from onceward_proof.provider.server import ProviderProcess
from onceward_proof.workers.setting import QueueSetting, Setting

POLL_SECONDS: Final = 0.15
QUIET_POLLS: Final = 3  # in a row, so that what was just about to start has started


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is run: a variant as it is, or as a row of the ablation changes it."""

    name: str
    variant: str
    is_ablation: bool = False
    without: tuple[str, ...] = ()  # the layers that are removed
    window_seconds: float | None = None  # the scaled window of the provider's keys; None: the real one
    threads: int = 1  # of each consumer process
    prefetch: int = 0  # so many more deliveries wait in it
    queue: QueueSetting = field(default_factory=QueueSetting)
    is_resolved: bool = False  # what it holds once it is quiet is then ended by people


class Processes:
    """One variant's processes, from empty databases until they are quiet.

    Their files are in a folder of their own.
    """

    def __init__(
        self, clusters: Clusters, controller: Controller, subject: Subject, schedule_file: Path | None = None
    ) -> None:
        files = clusters.folder / subject.name
        files.mkdir()
        self.ledger = files / "ledger.sqlite"
        self.database = prepare_database(clusters, subject.name)
        self.queues = clusters.broker.make_queues(subject.name)
        controller.queues = self.queues
        self._queue = clusters.queue
        self._files = files
        self._controller = controller
        self._subject = subject
        self._schedule_file = str(schedule_file or "")
        # A socket's path must be short (about 100 bytes): one letter, in this folder.
        self._socket = files / "c"
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._provider: ProviderProcess | None = None
        self._waiting: dict[str, int] = {}

    @property
    def pids(self) -> tuple[int, int]:
        """Of the supervisor and of the provider, while they are at work."""
        return self._supervisor.pid if self._supervisor else 0, self._provider.pid if self._provider else 0

    @property
    def provider(self) -> ProviderProcess:
        """The provider, while they are at work."""
        if self._provider is None:
            raise AssertionError("the provider has not been started")
        return self._provider

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Inside, they work; afterwards none is left."""
        server = await asyncio.start_unix_server(self._controller.hear, path=str(self._socket), limit=1 << 20)
        provider = self._provider = self._start_provider()
        try:
            async with self._start_supervisor(self._setting(provider.url)) as (reader, writer):
                await self._controller.start_workers(reader, writer)
                yield
                self._controller.kill_all()
        finally:
            provider.stop()
            server.close()

    def _start_provider(self) -> ProviderProcess:
        return ProviderProcess(
            self.ledger,
            hook="onceward_proof.prove.provider_hook:Reporter",
            hook_argument=json.dumps([str(self._socket), self._schedule_file]),
            log=self._files / "provider.log",
            window_seconds=self._subject.window_seconds,
        )

    def _setting(self, provider_url: str) -> Setting:
        subject = self._subject
        return Setting(
            variant=subject.variant,
            database=self.database,
            queue=self._queue,
            queue_address=self.queues.address,
            queues=self.queues.names,
            provider_url=provider_url,
            control_socket=str(self._socket),
            schedule=self._schedule_file,
            is_ablation=subject.is_ablation,
            without=subject.without,
            window_seconds=subject.window_seconds,
            threads=subject.threads,
            prefetch=subject.prefetch,
            visibility_seconds=subject.queue.lease_seconds,
            archive=subject.queue.archive,
            double_settle=subject.queue.double_settle,
        )

    @asynccontextmanager
    async def _start_supervisor(self, setting: Setting) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """The line to the supervisor; when it ends, the parent does, with all that it forked."""
        ours, theirs = socket.socketpair()
        fd = theirs.fileno()
        command = [sys.executable, "-m", "onceward_proof.workers.supervisor", str(fd), json.dumps(asdict(setting))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with (self._files / "workers.log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the controller only, which ends the others in order.
            supervisor = self._supervisor = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, once
                command, pass_fds=[fd], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
        # With our copy open, the end of the supervisor would never be seen as the end of its line.
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            # It kills its workers when its line ends; afterwards none of them holds a connection to the clusters.
            await asyncio.to_thread(supervisor.wait, 10)

    async def until_quiet(self, stalled_seconds: float, polled: Callable[[], None] = lambda: None) -> bool:
        """No worker is busy and nothing is on its way, several times in a row.

        False: no progress for `stalled_seconds`.
        """
        quiet = 0
        self._controller.last_progress = time.monotonic()  # what went on before this wait is not a stall
        while quiet < QUIET_POLLS:
            await asyncio.sleep(POLL_SECONDS)
            polled()
            if time.monotonic() - self._controller.last_progress > stalled_seconds:
                return False
            quiet = quiet + 1 if self._controller.quiet() and self._all_empty() else 0
        return True

    def _all_empty(self) -> bool:
        """Queues, outbox and the provider's open requests are empty.

        A server that is down is not empty.
        """
        if self._provider is None:
            return False
        try:
            # The outbox is read first: a message that leaves it meanwhile is then found in its queue.
            outbox = len(orders_in_outbox(self.database))
            in_queues = self.queues.waiting()
            requests = int(self._provider.admin("open")["open_requests"])
        except (psycopg.Error, OSError):
            return False
        if in_queues is None:
            return False
        self._waiting = {"outbox": outbox, **in_queues, "open provider requests": requests}
        return not any(self._waiting.values())

    def sink(self) -> Sink:
        """A way to the variant's queues, for somebody who is none of its workers."""
        return find_broker(self._queue).sink(self.queues.address, self.queues.names)

    def why_not_quiet(self) -> str:
        """What still waits, in words."""
        waiting = ", ".join(f"{name}: {count}" for name, count in self._waiting.items() if count)
        return waiting or "workers are still busy"
