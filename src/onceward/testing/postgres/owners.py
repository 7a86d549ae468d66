"""Who owns which cluster: a registry on disk, read by the next start.

So nothing outlives an owner that was killed.
A process is known by its pid *and* the moment that it started, never by its name, and never by a pid alone: pids are used
again. One JSON file per cluster in a folder per user, `<temp>/onceward-<uid>/` (0700).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, Self
from uuid import uuid4

import psutil  # type: ignore[import-untyped]

from onceward.errors import OncewardError, UsageError

_GONE_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.005
_BEFORE_THE_CLUSTER: Final = frozenset({"lock", "log", "programs", "data.draft"})
IPC_RMID: Final = 0  # linux/ipc.h, sys/ipc.h

logger = logging.getLogger("onceward")
REMOVE_SECONDS_MAX: Final = 5.0


@dataclass(frozen=True)
class Started:
    """One process, told apart from any other that has had or will have its pid."""

    pid: int
    moment: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this pid now.

        None if none has, or it is dead and only waits to be reaped.
        """
        moment = _moment_linux(pid) if sys.platform == "linux" else _moment_elsewhere(pid)
        return None if moment is None else cls(pid, moment)

    def alive(self) -> bool:
        """It still runs: the same process, not another one with its pid."""
        return Started.of(self.pid) == self

    def end(self) -> None:
        """It and everything that it started are killed at once, without a chance to tidy up.

        That is what a crash of the machine would do.
        """
        if not self.alive():
            return
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            # Postgres's backends each lead a session of their own, so a signal to a group would miss them. The postmaster
            # is stopped first, so that it starts no more children between the look at them and their kill.
            first.suspend()
            _until(lambda: not self.alive() or first.status() == psutil.STATUS_STOPPED, f"process {self.pid} to stop")
            family = [first, *first.children(recursive=True)]
            started = [member for process in family if (member := Started.of(process.pid))]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            _until(lambda: not any(map(Started.alive, started)), f"process {self.pid} and its children to end")


class PidFile(NamedTuple):
    """What a server writes about itself into its data folder's postmaster.pid.

    Its lines are those of miscadmin.h, LOCK_FILE_LINE_*.
    """

    pid: int
    port: int
    shared_memory_key: int
    shared_memory_id: int
    ready: bool

    @classmethod
    def read(cls, data: Path) -> Self | None:
        """The file as it is now; None while it is missing, or not yet complete."""
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
            key, segment = map(int, lines[6].split())
            return cls(int(lines[0]), int(lines[3]), key, segment, lines[7].strip() == "ready")
        except (FileNotFoundError, IndexError, ValueError):
            return None


@dataclass(frozen=True)
class Entry:
    """One cluster in the registry: its owner, its server, and the folder that goes with it."""

    path: str
    place: str
    owner: Started
    folder: str
    temporary: bool
    server: Started | None = None

    @classmethod
    def add(cls, folder: Path, *, temporary: bool) -> Self:
        """`folder` belongs to this process.

        Crash: the next sweep removes it if it is temporary, made or not.
        """
        owner = Started.of(os.getpid())
        if owner is None:
            raise OncewardError("this process does not find itself in the process table: is /proc mounted?")
        entry = cls(str(registry() / f"{uuid4().hex}.json"), _place(), owner, str(folder), temporary)
        entry.store()
        return entry

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The entry, or None when its owner has just removed it.

        Also None where a power cut has left it empty: it is removed then.
        """
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        if not text:
            path.unlink(missing_ok=True)
            return None
        fields = json.loads(text)
        server = fields.pop("server")
        return cls(**fields | {"owner": Started(**fields["owner"]), "server": server and Started(**server)})

    def with_server(self, server: Started | None) -> Self:
        """The registry names `server` as the one to end should this owner die.

        One atomic rename: old or new, whole.
        """
        entry = replace(self, server=server)
        entry.store()
        return entry

    def remove(self) -> None:
        """The cluster is over: its temporary folder and then its entry are removed.

        Crash between: the next sweep.
        """
        data = Path(self.folder) / "data"
        if self.server is not None and not self.server.alive():
            release_shared_memory(data)
        if self.temporary and not _folder_is_gone(Path(self.folder)):
            logger.warning("%s cannot be removed yet; the next start tries again", self.folder)
            return
        Path(self.path).with_suffix(".draft").unlink(missing_ok=True)
        Path(self.path).unlink(missing_ok=True)

    def orphaned(self) -> bool:
        """Its owner has ended for certain.

        An owner in another container that shares this folder is not ours to judge.
        """
        boot, _, namespace = self.place.partition(" ")
        boot_now, _, namespace_now = _place().partition(" ")
        if boot != boot_now:
            return True
        return namespace == namespace_now and not self.owner.alive()

    def store(self) -> None:
        """The registry holds this entry: whole, or still the one before."""
        path = Path(self.path)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(path)  # atomic: a reader, or a crash, sees the whole old entry or the whole new one


def _folder_is_gone(folder: Path) -> bool:
    """The folder is removed; False when that does not succeed within `REMOVE_SECONDS_MAX`."""
    # An initdb that was told to end when its owner died tidies up the same folder at the same time: what one of the two
    # does not find any more, the other has removed.
    deadline = time.monotonic() + REMOVE_SECONDS_MAX
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
    return not folder.exists()


def registry() -> Path:
    """The folder of this user's entries; refused (`UsageError`) when another user has made it."""
    folder = Path(tempfile.gettempdir()) / f"onceward-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UsageError(f"{folder} is not this user's own folder: remove it, or set TMPDIR")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def refuse_foreign(home: Path) -> None:
    """Raises `UsageError` if the folder holds something that we have not made.

    Nothing is ever written beside that.
    Ours is a folder that holds our lock and a cluster; or, where we were killed before `initdb` was done, our lock and
    nothing but what is written before that.
    """
    if not home.exists():
        return
    if not home.is_dir():
        raise UsageError(f"{home} is not a folder: name an empty or a new one")
    names = {entry.name for entry in home.iterdir()}
    started = names <= _BEFORE_THE_CLUSTER and "lock" in names
    if names and not started and not ("lock" in names and (home / "data" / "PG_VERSION").exists()):
        raise UsageError(f"{home} is not empty, and holds no cluster of ours: name an empty or a new folder")


def sweep_leftovers() -> list[str]:
    """No cluster whose owner has ended runs or, if temporary, exists.

    Returns the folders of those that were ended now.
    Crash: the entry goes last, so that another sweep does the rest. Sweeps take turns.
    """
    folder = registry()
    swept = []
    with locked(folder / "lock"):
        for path in sorted(folder.glob("*.json")):
            entry = Entry.read(path)
            if entry is not None and entry.orphaned():
                if entry.server is not None:
                    entry.server.end()
                # Last: a sweep that is killed before it leaves an entry, which the next sweep finds.
                entry.remove()
                swept.append(entry.folder)
    return swept


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is in this block.

    The lock goes with its holder, however that one ends.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:  # not by the close alone: a child forked meanwhile holds the same file open
            fcntl.flock(file, fcntl.LOCK_UN)


def release_shared_memory(data: Path) -> None:
    """The segment that a killed server left behind is removed.

    It has some 50 bytes only, but the number of segments is limited.
    A server that ends in order has removed it, and one that is started on `data` again does so.
    """
    file = PidFile.read(data)
    if file is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.shmget(file.shared_memory_key, 0, 0) == file.shared_memory_id:
            libc.shmctl(file.shared_memory_id, IPC_RMID, None)


def _place() -> str:
    """Within what a pid means something: this boot of the machine and this pid namespace."""
    if sys.platform != "linux":
        return "any"  # there, the moment that a process started is a date, and tells boots apart as well
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _moment_linux(pid: int) -> str | None:
    """Field 22 of /proc/<pid>/stat: ticks since boot.

    Unlike a time of day, no change of the clock moves it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def _moment_elsewhere(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _GONE_SECONDS_MAX
    while not fact():
        if time.monotonic() > deadline:
            raise OncewardError(f"waited {_GONE_SECONDS_MAX:.0f} s for {what}, without success")
        time.sleep(_POLL_SECONDS)
