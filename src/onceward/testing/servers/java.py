"""What the servers that run on Java have in common: jars, and an archive of the classes that a start loads."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Final
from uuid import uuid4

from onceward.testing.postgres.owners import Entry, locked
from onceward.testing.servers.installing import install_jars, jars_folder, program
from onceward.testing.servers.server import Record, Server

_REHEARSED_SECONDS_MAX: Final = 120.0
# The cheapest way to run a small JVM: no compiler that optimises, no threads that collect.
_SMALL: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

logger = logging.getLogger("onceward")


class JavaServer(Server):
    """A server whose jars `pom` names."""

    pom: ClassVar[Path]
    heap_mb: ClassVar[int]

    def __init__(self, folder: Path, record: Record, entry: Entry | None) -> None:
        super().__init__(folder, record, entry)
        self._options = self._archive_options()

    @classmethod
    def is_installed(cls) -> bool:
        return cls._archive().exists()  # which is made last

    @classmethod
    def install(cls) -> None:
        jars = install_jars(cls.pom)
        with locked(jars.with_name(f"{jars.name}.lock")):
            if not cls._archive().exists():
                cls._prepare()
                cls._rehearse()

    @abstractmethod
    def _main(self) -> list[str]:
        """The JVM's options, the class to run, and its arguments."""

    @classmethod
    def _prepare(cls) -> None:
        """What every start needs beside the jars is there."""

    def _command(self) -> list[str]:
        return [*java(self.pom, self.heap_mb), *self._options, *self._main()]

    @classmethod
    def _archive(cls) -> Path:
        jars = jars_folder(cls.pom)
        return jars.with_name(f"{jars.name}.jsa")

    def _archive_options(self) -> list[str]:
        archive = self._archive()
        return [f"-XX:SharedArchiveFile={archive}"] if archive.exists() and archive.stat().st_size else []

    @classmethod
    def _rehearse(cls) -> None:
        """The archive of the classes that a start loads is there, so that later starts take about half the time.

        It is empty where this Java cannot make one. Crash: as `start`; the next installation rehearses again.
        """
        logger.info("%s is started once, for later starts to be quicker: some ten seconds", cls.title)
        archive = cls._archive()
        draft = archive.with_name(f"{archive.name}.draft")
        draft.unlink(missing_ok=True)
        home = Path(tempfile.gettempdir()) / f"onceward-rehearsal-{uuid4().hex[:12]}"
        entry = Entry.add(home, temporary=True)
        home.mkdir(mode=0o700)
        server = cls(home, cls._planned(None, None, {}, lasting=False), entry)
        server._options = ["-XX:+IgnoreUnrecognizedVMOptions", f"-XX:ArchiveClassesAtExit={draft}"]
        try:
            server._serve()
            ended = server._ends_by_itself(_REHEARSED_SECONDS_MAX)
        finally:
            server.stop()
        # One that had to be killed has left half an archive.
        if not ended or not draft.exists():
            draft.write_bytes(b"")
        draft.rename(archive)

    def _ends_by_itself(self, seconds: float) -> bool:
        """The server has ended because it was asked to; False if it does not within `seconds`."""
        process = self._popen
        if process is None:
            return False
        os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def java(pom: Path, heap_mb: int) -> list[str]:
    """How a JVM with the jars of `pom` is started."""
    found = program("java", "Java 17 or newer", "apt-get install openjdk-17-jre-headless")
    return [found, f"-Xmx{heap_mb}m", *_SMALL, "-cp", f"{jars_folder(pom)}/*"]
