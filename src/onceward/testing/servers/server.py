"""What all servers have in common: a folder, ports, one process with its children, and who ends it."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from uuid import uuid4

import psutil  # type: ignore[import-untyped]

from onceward.errors import OncewardError, UsageError
from onceward.testing.postgres.cluster import free_port, is_free
from onceward.testing.postgres.identity import LAUNCH
from onceward.testing.postgres.launch import GO
from onceward.testing.postgres.owners import Entry, Started, locked, sweep_leftovers

READY_SECONDS_MAX: Final = 90.0
STOP_SECONDS_MAX: Final = 15.0
_LET_GO_SECONDS_MAX: Final = 5.0
_POLL_SECONDS: Final = 0.02
_LOG_TAIL_CHARS: Final = 4000
_RECORD: Final = "server.json"


class ServerFailed(OncewardError):
    """The server did not start, or not in time; the text ends with what its log said."""


@dataclass(frozen=True)
class Record:
    """What a folder says of its server: `ports` by their purpose, what overrules our settings, and its process."""

    ports: dict[str, int]
    settings: dict[str, str]
    process: Started | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record as it is now; None where no server was ever made."""
        try:
            fields = json.loads((folder / _RECORD).read_text())
        except FileNotFoundError:
            return None
        process = fields["process"]
        return cls(fields["ports"], fields["settings"], process and Started(**process))

    def write(self, folder: Path) -> None:
        """The folder holds this record: whole, or still the one before."""
        draft = folder / f"{_RECORD}.draft"
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(folder / _RECORD)


class Server(ABC):
    """One server with its folder: `ElasticMQ`, `RabbitMQ` or `Kafka`.

    It is made by `start`, and ended by `stop` or at the end of its `with` block.
        with ElasticMQ.start() as server:
            client = boto3.client("sqs", endpoint_url=server.url, ...)
            server.kill()
            server.restart()

    Its ports stay the same over restarts, `pid` does not. It listens on 127.0.0.1 and trusts everybody there: it is for
    development and tests. It leads a session of its own, so that Ctrl-C in a terminal does not reach it.
    """

    title: ClassVar[str]
    # What it listens on. The first is the one that clients get; the number is what `up` prefers, so that what somebody has
    # exported once goes on to be true.
    ports_preferred: ClassVar[Mapping[str, int]]

    def __init__(self, folder: Path, record: Record, entry: Entry | None) -> None:
        self.folder = folder
        self._log = folder / "log"
        self._record = record
        self._entry = entry
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._stopped = False

    @classmethod
    def start(
        cls,
        folder: Path | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        lasting: bool = False,
    ) -> Self:
        """A server answers on `url`.

        Its data is in `folder`, which is kept, or in a temporary one, which goes with the server. A folder that a server
        was started on before gives its data and ports back; one that holds something else is refused. Without `port`, a
        free one is chosen. `settings` are the server's own, and overrule ours. A server that is `lasting` survives this
        process; any other has an owner, and ends with it. What is missing is installed first. Raises `UsageError` (a port
        is taken, `folder` is not ours, or its server runs), `InstallFailed`, `ServerFailed` (the log says why).

        Crash: on Linux, a server that the main thread started ends within milliseconds of this process. Any other that is
        not lasting, and the temporary folder, goes at the next start of a server by the same user.
        """
        cls.install()
        sweep_leftovers()
        home = (folder or Path(tempfile.gettempdir()) / f"onceward-{cls.__name__.lower()}-{uuid4().hex[:12]}").absolute()
        known = _checked(home) if folder is not None else None
        entry = None if lasting else Entry.add(home, temporary=folder is None)
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=folder is not None)
            with locked(home / "lock"):
                server = cls(home, cls._planned(known, port, settings or {}, lasting=lasting), entry)
                server._serve()
        except BaseException:
            if entry is not None:
                (Entry.read(Path(entry.path)) or entry).remove()
            raise
        if not lasting:
            atexit.register(server.stop)
        return server

    @classmethod
    def running(cls, folder: Path) -> Self | None:
        """The lasting server of `folder`, whoever started it; None where none runs."""
        record = Record.read(folder)
        if record is None or record.process is None or not record.process.alive():
            return None
        return cls(folder, record, None)

    @classmethod
    @abstractmethod
    def is_installed(cls) -> bool:
        """Its programs are here; otherwise the first start has to fetch them."""

    @classmethod
    @abstractmethod
    def install(cls) -> None:
        """Its programs are here. Raises `UsageError` or `InstallFailed`, which say what to do."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it, as their libraries want to hear it."""

    @property
    def port(self) -> int:
        """Where clients find it on 127.0.0.1."""
        return next(iter(self._record.ports.values()))

    @property
    def pid(self) -> int:
        """The server's pid: of the last one, while none runs."""
        if self._record.process is None:
            raise UsageError(f"{self.title} was never started")
        return self._record.process.pid

    @property
    def is_alive(self) -> bool:
        """Its process runs: the very one that was started, not another one with its pid."""
        return self._record.process is not None and self._record.process.alive()

    def answers(self) -> bool:
        """It serves clients at this moment."""
        return self.is_alive and self._is_ready()

    @abstractmethod
    def sync(self) -> None:
        """The queues that have been declared are on disk: from here on they survive a kill.

        Two of the three servers answer before that.
        """

    def kill(self) -> None:
        """The server and all its children are killed, by SIGKILL: what it had not written is lost.

        Crash: as `start`; there is no server left to end.
        """
        self._refuse_others()
        self._end(gracefully=False)

    def restart(self) -> None:
        """A server answers again on the same ports, over the same data; one that runs is stopped first.

        Crash: as `start`.
        """
        self._refuse_others()
        self._end(gracefully=True)
        self._serve()

    def stop(self) -> None:
        """The server has ended: asked to (SIGTERM), and killed after 15 s.

        With a temporary folder, which is removed, it is killed at once: there is nothing that it could save.

        Crash: as `start`.
        """
        if self._stopped or not self._is_mine():
            return
        self._stopped = True
        self._end(gracefully=self._entry is None or not self._entry.temporary)
        if self._entry is not None:
            self._entry.remove()
            atexit.unregister(self.stop)

    def wait_until_ready(self, seconds: float = READY_SECONDS_MAX) -> None:
        """It serves clients. Raises `ServerFailed` when it has ended, or does not within `seconds`."""
        deadline = time.monotonic() + seconds
        while not self._is_ready():
            if not self.is_alive:
                raise ServerFailed(f"{self.title} ended at its start; its log {self._log} says:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.title} does not answer after {seconds:.0f} s; {self._log}:\n{self._log_tail()}")
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @abstractmethod
    def _configure(self) -> None:
        """The server's own files are in the folder; data that is there stays."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts it, and becomes it by `exec`: its pid is the server's."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """A client would be served now."""

    def _environment(self) -> dict[str, str]:
        """What the server finds in its environment beside ours."""
        return {}

    @classmethod
    def _planned(cls, known: Record | None, port: int | None, settings: Mapping[str, str], *, lasting: bool) -> Record:
        """Which ports it gets: those it had, those that are asked for, and else free ones."""
        ports = dict(known.ports) if known else _free_ports(cls.ports_preferred, preferred=lasting)
        if port is not None:
            ports[next(iter(ports))] = port
        return Record(ports, {**(known.settings if known else {}), **settings})

    def _serve(self) -> None:
        """The server runs and answers."""
        for purpose, port in self._record.ports.items():
            if not is_free(port):
                taken = f"port {port} of 127.0.0.1 ({purpose} of {self.title}) is taken{_by_whom(port)}"
                raise UsageError(f"{taken}: stop what listens there, or ask for another port")
        self._configure()
        try:
            self._spawn()
            self.wait_until_ready()
        except BaseException:
            self._end(gracefully=False)
            raise

    def _spawn(self) -> None:
        """The server starts, and is on record before it does."""
        # Its launcher waits for `GO`, and ends if we do: a server that nobody knows of never runs.
        gate, hand = os.pipe()
        try:
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                environment = os.environ | self._environment()
                command = self._launched()
                self._popen = subprocess.Popen(
                    command, stdin=gate, stdout=log, stderr=log, env=environment, cwd=self.folder
                )
            process = Started.of(self._popen.pid)
            self._note(process)
            os.write(hand, GO)
        finally:
            os.close(gate)
            os.close(hand)

    def _note(self, process: Started | None) -> None:
        self._record = Record(self._record.ports, self._record.settings, process)
        self._record.write(self.folder)
        if self._entry is not None:
            self._entry = self._entry.with_server(process)

    def _launched(self) -> list[str]:
        """The command behind the launcher.

        The death signal follows a thread, and only the main one lasts as we do.
        """
        on_main = threading.current_thread() is threading.main_thread()
        follows = self._entry is not None and sys.platform == "linux" and on_main
        owner = [str(int(signal.SIGKILL)) if follows else "0", str(os.getpid())]
        return [*LAUNCH, "plain", str(os.geteuid()), str(os.getegid()), *owner, *self._command()]

    def _end(self, *, gracefully: bool) -> None:
        """No process of the server is left."""
        process = self._record.process
        if process is None:
            return
        if gracefully and process.alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            _wait(lambda: not process.alive(), STOP_SECONDS_MAX)
        process.end()
        if self._popen is not None:
            self._popen.wait()  # reaps it
        # A process with many threads is dead some milliseconds before the last of them has let go of its sockets.
        _wait(lambda: all(map(is_free, self._record.ports.values())), _LET_GO_SECONDS_MAX)

    def _is_mine(self) -> bool:
        return self._entry is None or self._entry.owner.pid == os.getpid()

    def _refuse_others(self) -> None:
        if self._stopped or not self._is_mine():
            raise UsageError("only the process that started a server may end or restart it, and only before `stop`")

    def _log_since_start(self) -> str:
        """What the server has said since it was started last."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _log_tail(self) -> str:
        return self._log_since_start()[-_LOG_TAIL_CHARS:]


def _checked(home: Path) -> Record | None:
    """What the folder says of its server; None for a new or an empty one. Raises `UsageError` for any other."""
    if not home.exists():
        return None
    record = Record.read(home)
    if record is None and {entry.name for entry in home.iterdir()} - {"lock", "log", f"{_RECORD}.draft"}:
        raise UsageError(f"{home} is not empty, and holds no server of ours: name an empty or a new folder")
    if record is not None and record.process is not None and record.process.alive():
        raise UsageError(f"a server runs on {home} already (pid {record.process.pid})")
    return record


def _free_ports(purposes: Mapping[str, int], *, preferred: bool) -> dict[str, int]:
    ports: dict[str, int] = {}
    for purpose, number in purposes.items():
        port = number if preferred and is_free(number) else free_port()
        while port in ports.values():
            port = free_port()
        ports[purpose] = port
    return ports


def _wait(fact: Callable[[], bool], seconds: float) -> None:
    """Returns when `fact` is so, and after `seconds` at the latest."""
    deadline = time.monotonic() + seconds
    while not fact() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _by_whom(port: int) -> str:
    """The process that listens there, as far as this user may know."""
    with suppress(psutil.Error):
        connections: list[Any] = psutil.net_connections("tcp")
        for found in connections:
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                return f" by pid {found.pid} ({psutil.Process(found.pid).name()})"
    return ""
