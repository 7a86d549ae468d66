"""A PgBouncer of a test's own in front of one of its databases, in each of its modes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.support.waiting import until

Mode = Literal["session", "transaction", "statement"]
MODES: tuple[Mode, ...] = ("session", "transaction", "statement")
MISSING = "no pgbouncer here: apt-get install pgbouncer"


class Bouncer:
    """`dsn(mode)`: the database behind it."""

    def __init__(self, port: int, user: str) -> None:
        self._port = port
        self._user = user

    def dsn(self, mode: Mode) -> str:
        return make_conninfo(host="127.0.0.1", port=self._port, user=self._user, dbname=mode)


@contextmanager
def bouncing(dsn: str, *, pool_size: int = 5, round_robin: bool = False) -> Iterator[Bouncer]:
    """In front of `dsn`, on a port of its own. Without PgBouncer the test is skipped, and fails where CI is set."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have one: {MISSING}")
        pytest.skip(MISSING)
    server = conninfo_to_dict(dsn)
    user = str(server["user"])
    target = f"host={server['host']} port={server['port']} dbname={server['dbname']} user={user}"
    with tempfile.TemporaryDirectory(prefix="bouncer-") as folder, socket.socket() as asked:
        Path(folder).chmod(0o755)
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
        asked.close()
        lines = [
            "[databases]", *(f"{mode} = {target} pool_mode={mode}" for mode in MODES),
            "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = any",
            f"default_pool_size = {pool_size}", f"server_round_robin = {int(round_robin)}", "query_wait_timeout = 20",
        ]  # fmt: skip
        configuration = Path(folder) / "pgbouncer.ini"
        configuration.write_text("\n".join(lines) + "\n")
        # It refuses to run as root.
        as_user = ["--user", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen([program, "--quiet", *as_user, str(configuration)], stderr=subprocess.DEVNULL)
        try:
            bouncer = Bouncer(port, user)
            until(lambda: _answers(bouncer), "PgBouncer answering")
            yield bouncer
        finally:
            process.kill()
            process.wait()


def _answers(bouncer: Bouncer) -> bool:
    try:
        with psycopg.connect(bouncer.dsn("session"), connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
