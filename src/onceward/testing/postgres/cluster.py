"""A Postgres cluster of your own: started, killed and restarted at will.

It needs `initdb` and `postgres`, and nothing else of an installation.
It is as durable as a production server (fsync on), so that a kill tests what a crash would do. It listens on 127.0.0.1
and trusts every connection, as its superuser: any user of this machine may connect, and act as the one who runs it.
So it is for development and tests; not for a machine that you share with people whom you do not trust.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote
from uuid import uuid4

import psycopg
from psycopg import sql

from onceward.errors import OncewardError, UsageError
from onceward.testing.postgres.binaries import Binaries, copy_for_others, find_binaries, reachable_by_others
from onceward.testing.postgres.identity import LAUNCH, server_identity
from onceward.testing.postgres.launch import GO
from onceward.testing.postgres.owners import Entry, PidFile, Started, locked, refuse_foreign, sweep_leftovers

READY_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 5.0
_POLL_SECONDS: Final = 0.01
_SOCKET_PATH_BYTES_MAX: Final = 100  # sun_path holds 104 (macOS) or 108 (Linux)
_LOG_TAIL_BYTES: Final = 4000
# Below the ports that clients get (Linux from 32768, macOS from 49152): while the server is down, no connection that
# goes out, not even one to this very port, can take the port that it comes back to.
_PORTS: Final = range(15_000, 32_000)
DURABLE: Final[Mapping[str, str]] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "logical",
    "max_connections": "200",
    # Its segments are files in the data folder, and go with it: nothing is left in /dev/shm by a kill.
    "dynamic_shared_memory_type": "mmap",
}


class ClusterFailed(OncewardError):
    """The server did not start, or not in time; the text ends with what its log said."""


class AlreadyRunning(UsageError):
    """Another owner's server runs on this folder; `dsn` is where."""

    def __init__(self, folder: Path, dsn: str, pid: int) -> None:
        super().__init__(f"a server runs on {folder} already: {dsn} (pid {pid})")
        self.dsn = dsn
        self.pid = pid


class Cluster:
    """One server with its folder.

    It is made by `start`, and ended by `stop` or at the end of its `with` block.
        with Cluster.start() as cluster, psycopg.connect(cluster.dsn) as conn:
            ...

    `port` stays the same over restarts, `pid` (the postmaster's) does not. Only the process that started it may end it:
    a forked child's `stop`, or the end of its `with` block, does nothing.
    """

    def __init__(self, entry: Entry, port: int | None, name: str, settings: Mapping[str, str]) -> None:
        self.folder = Path(entry.folder)
        self._data = self.folder / "data"
        self._log = self.folder / "log"
        self.port = port or free_port()
        self.socket_folder = _socket_folder(self.folder)
        self._port_fixed = port is not None
        self._settings = {**DURABLE, "cluster_name": name, **settings}
        self._entry = entry
        self._process: subprocess.Popen[bytes] | None = None
        self._identity = server_identity()
        self._binaries = self._usable_binaries()
        self._log_start = 0
        self._stopped = False

    @classmethod
    def start(
        cls,
        folder: Path | None = None,
        *,
        name: str = "pg",
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """A server answers on `dsn`.

        Its data is in `folder`, which is kept, or in a temporary one, which goes with the server.
        An empty or new folder gets a cluster by `initdb`; one that holds something else is refused, and left as it is.
        Without `port`, a free one is chosen. `settings` overrule the durable ones, but not where it listens. What
        owners that were killed have left is swept first. Raises `UsageError` (no programs, `port` is taken, `folder` is not
        ours), `AlreadyRunning`, `ClusterFailed` (the log says why).

        Crash: on Linux, a server that the main thread started ends within milliseconds of this process. Any other, and
        the temporary folder, goes at the next start by the same user. A half-made cluster is made again.
        """
        sweep_leftovers()
        home = (folder or Path(tempfile.gettempdir()) / f"onceward-{name}-{uuid4().hex[:12]}").absolute()
        if folder is not None:
            refuse_foreign(home)
        entry = Entry.add(home, temporary=folder is None)
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=folder is not None)
            with locked(home / "lock"):
                _refuse_running(home)
                if port is not None and not is_free(port):
                    raise UsageError(f"port {port} of 127.0.0.1 is taken: stop what listens there, or ask for another")
                cluster = cls(entry, port, name, settings or {})
                cluster._make_data()
                cluster._serve()
        except BaseException:
            (Entry.read(Path(entry.path)) or entry).remove()
            raise
        atexit.register(cluster.stop)
        return cluster

    @property
    def dsn(self) -> str:
        """Where the database `postgres` is."""
        return self.dsn_for("postgres")

    @property
    def pid(self) -> int:
        """The postmaster's pid: of the last one, while none runs."""
        if self._entry.server is None:
            raise UsageError("the cluster was never started")
        return self._entry.server.pid

    def dsn_for(self, dbname: str) -> str:
        """Where the database `dbname` of this cluster is, or would be."""
        return _dsn(self.port, dbname)

    def create_database(self, name: str, template: str | None = None) -> str:
        """The database `name` exists; returns its DSN.

        A copy of `template`, if one is given: no session may be connected to that.
        """
        copied = sql.SQL("TEMPLATE {}").format(sql.Identifier(template)) if template else sql.SQL("")
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), copied))
        return self.dsn_for(name)

    def kill(self) -> None:
        """The postmaster and all its backends are killed, by SIGKILL.

        What was not on disk or with the kernel is lost.
        Crash: as `start`; there is no server left to end.
        """
        self._refuse_others()
        self._end(gracefully=False)

    def restart(self) -> None:
        """A server answers again over the same folder and port.

        It has recovered if it was killed; one that runs is stopped first.
        Crash: as `start`.
        """
        self._refuse_others()
        self._end(gracefully=True)
        self._serve()

    def stop(self) -> None:
        """The server has ended: asked to (SIGINT), and killed after 5 s.

        A temporary folder is removed with it.
        Does nothing the second time, and nothing in a forked child.
        Crash: the next sweep does the rest.
        """
        if self._stopped:
            return
        if not self._is_mine():
            if self._process is not None:
                self._process.poll()  # finds no such child here: the fork's copy will not warn that it still runs
            return
        # First: after a stop that was interrupted, the one at exit does nothing, and the next sweep does the rest.
        self._stopped = True
        self._end(gracefully=True)
        self._entry.remove()
        atexit.unregister(self.stop)

    def wait(self) -> None:
        """Returns once the server has ended, for whatever reason.

        Signal handlers run while this waits.
        """
        self._refuse_others()
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _is_mine(self) -> bool:
        return self._entry.owner.pid == os.getpid()

    def _refuse_others(self) -> None:
        if self._stopped or not self._is_mine():
            raise UsageError("only the process that started a cluster may end or restart it, and only before `stop`")

    def _usable_binaries(self) -> Binaries:
        version = self._data / "PG_VERSION"
        found = find_binaries(int(version.read_text()) if version.exists() else None)
        if self._identity.kind != "user":
            return found
        if not reachable_by_others(self.folder.parent):
            raise UsageError(f"{self.folder} cannot be reached by `nobody`, as whom Postgres runs for root: move it")
        return copy_for_others(found, self.folder / "programs")

    def _make_data(self) -> None:
        """The data folder is whole."""
        # `initdb` works on a draft, and the rename that follows is atomic: a crash leaves no half of a cluster.
        self._identity.own(self.folder)
        if self._data.exists():
            return
        draft = self.folder / "data.draft"
        if draft.exists():
            shutil.rmtree(draft)
        # Without sync: a crash of the machine while the draft is made leaves a draft, which is made again.
        options = ["--no-sync", "-E", "UTF8", "--locale=C", "-U", "postgres", "-A", "trust", "-D", str(draft)]
        command = self._launched(signal.SIGTERM, [str(self._binaries.initdb), *options])
        with self._log.open("ab") as log:
            made = subprocess.run(command, input=GO, stdout=log, stderr=log, env=_environment(), check=False)
        if made.returncode != 0:
            raise ClusterFailed(f"initdb failed ({made.returncode}) on {draft}:\n{self._log_tail()}")
        draft.rename(self._data)

    def _serve(self) -> None:
        """A server answers.

        It is on another port where we chose the port and another program has taken it meanwhile.
        """
        deadline = time.monotonic() + READY_SECONDS_MAX
        try:
            while not self._answers(deadline):
                self._end(gracefully=False)
                self._prepare_another_try(self._log_tail())
        except BaseException:
            self._end(gracefully=False)
            raise
        self._port_fixed = True

    def _answers(self, deadline: float) -> bool:
        """A server is started and answers as ours (True), or it has ended (False)."""
        server = self._spawn()
        while server.alive():
            file = PidFile.read(self._data)
            if file is not None and file.pid == server.pid and file.ready and _serves(self.port, self._data):
                return True
            if time.monotonic() > deadline:
                raise ClusterFailed(f"no answer in {READY_SECONDS_MAX:.0f} s on {self._data}:\n{self._log_tail()}")
            time.sleep(_POLL_SECONDS)
        if time.monotonic() > deadline:
            raise ClusterFailed(f"the server on {self._data} does not stay up:\n{self._log_tail()}")
        return False

    def _prepare_another_try(self, log: str) -> None:
        """Another start may work: the reason for which the server ended is known, and passes.

        Raises `ClusterFailed` for any other reason.
        """
        if "Address already in use" in log and not self._port_fixed:
            self.port = free_port()
        elif "pre-existing shared memory block" in log:
            time.sleep(_POLL_SECONDS)  # backends of a postmaster that was killed from outside are about to end
        else:
            raise ClusterFailed(f"the server on {self._data} ended:\n{log}")

    def _spawn(self) -> Started:
        """The server starts, and is on record before it does."""
        # Its launcher waits for `GO`, and ends if we do: a server that no sweep knows of never runs.
        self._log_start = self._log.stat().st_size
        command = self._launched(signal.SIGQUIT, [str(self._binaries.postgres), "-D", str(self._data), *self._options()])
        gate, hand = os.pipe()
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(command, stdin=gate, stdout=log, stderr=log, env=_environment())
            server = Started.of(self._process.pid)
            if server is None:
                raise ClusterFailed(f"{command[0]} ended at once:\n{self._log_tail()}")
            self._entry = self._entry.with_server(server)
            os.write(hand, GO)
        finally:
            os.close(gate)
            os.close(hand)
        return server

    def _launched(self, death_signal: int, command: list[str]) -> list[str]:
        """`command` behind the launcher.

        The death signal follows a thread, and only the main one lasts as we do.
        """
        follows = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
        owner = [str(int(death_signal)) if follows else "0", str(os.getpid())]
        return [*LAUNCH, *self._identity.arguments(), *owner, *command]

    def _options(self) -> list[str]:
        where = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": f'"{self.socket_folder}"' if self.socket_folder else "",
        }
        return [word for name, value in {**self._settings, **where}.items() for word in ("-c", f"{name}={value}")]

    def _end(self, *, gracefully: bool) -> None:
        """No process of the server is left."""
        server = self._entry.server
        if server is None or self._process is None:
            return
        if gracefully and server.alive():
            # SIGINT ends sessions and checkpoints ("fast"); SIGTERM would wait for clients, perhaps for ever.
            os.kill(server.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS_MAX)
        server.end()
        self._process.poll()  # reaps it

    def _log_tail(self) -> str:
        with self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")


def _refuse_running(home: Path) -> None:
    """Raises `AlreadyRunning` if the folder's server answers.

    If it does not, Postgres's own lock judges.
    """
    file = PidFile.read(home / "data")
    if file is not None and Started.of(file.pid) is not None and _serves(file.port, home / "data"):
        raise AlreadyRunning(home, _dsn(file.port, "postgres"), file.pid)


def _serves(port: int, data: Path) -> bool:
    """The server that answers on `port`, if any, is that of `data`."""
    # Another one may have taken the port.
    try:
        with psycopg.connect(_dsn(port, "postgres"), autocommit=True, connect_timeout=5) as conn:
            row = conn.execute("SELECT current_setting('data_directory')").fetchone()
    except psycopg.Error:  # not up yet, or another server that does not let us see this: not ours, either way
        return False
    return row is not None and Path(row[0]).resolve() == data.resolve()


def _dsn(port: int, dbname: str) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/{quote(dbname, safe='')}"


def _environment() -> dict[str, str]:
    """Our environment, less what would steer Postgres (PGDATA, ...).

    Its language is one that a program can read.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _socket_folder(folder: Path) -> Path | None:
    """The cluster's folder, if the path of a socket in it is short enough for the system.

    If it is not, no socket is made.
    """
    longest = folder / f".s.PGSQL.{_PORTS.stop}"
    return folder if len(os.fsencode(longest)) <= _SOCKET_PATH_BYTES_MAX and '"' not in str(folder) else None


def free_port() -> int:
    return next(filter(is_free, random.sample(_PORTS, len(_PORTS))))


def is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
        probe.bind(("127.0.0.1", port))
        return True
    return False
