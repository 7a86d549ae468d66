"""The `onceward` command as a process: run to its end, or kept until it is told to stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
SECONDS_MAX = 60


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would point at a database of the developer's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "ONCEWARD_"))}
    return kept | {"PYTHONPATH": str(SOURCES)} | more


def without_privileges() -> list[str]:
    """A prefix for a command: root may write everywhere, unless its capabilities are dropped."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root without setpriv: there is no folder that cannot be written to")
    return [setpriv, "--bounding-set", "-all", "--inh-caps", "-all"]


def onceward(
    *arguments: str, cwd: Path | None = None, prefix: Sequence[str] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end. Whatever happens, nobody ever sees a traceback."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "onceward", *arguments],
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False, cwd=cwd, env=environment(**more),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, and one line on standard error that says why."""
    assert done.returncode == 2, done
    assert done.stdout == "", done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("onceward: "), done.stderr
    assert [word for word in words if word not in lines[0]] == [], done.stderr


class Running:
    """A command that runs until it is stopped; what it says is kept."""

    def __init__(self, process: subprocess.Popen[str], said: Path) -> None:
        self.process = process
        self._said = said

    @property
    def said(self) -> str:
        return self._said.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS_MAX)


@contextmanager
def running(*arguments: str, cwd: Path | None = None, **more: str) -> Iterator[Running]:
    """The command, until the block ends; it must not have shown a traceback."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "onceward", *arguments],
            stdout=said, stderr=said, text=True, cwd=cwd, env=environment(**more), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        started = Running(process, Path(said.name))
        try:
            yield started
            assert "Traceback" not in started.said, started.said
        finally:
            process.kill()
            process.wait()
