"""`onceward dev`: a Postgres to develop against, for as long as this runs.

Its data is kept in the project's folder.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onceward.errors import UsageError
from onceward.testing.postgres.cluster import AlreadyRunning, Cluster


def dev(port: int | None = None, folder: Path | None = None, prepare: Callable[[str], None] | None = None) -> int:
    """A server answers until Ctrl-C or SIGTERM; then it is stopped and its folder kept.

    The exit code.
    0: stopped on request. 1: the server ended by itself. 2: one runs on this folder already; its DSN is printed.
    `folder` is `./.onceward/pg` unless given. `prepare` gets the DSN before it is printed (to bring the schema up).
    Call it from the main thread.

    Crash: as `Cluster.start`; the folder stays, and the next `dev` recovers it.
    """
    home = folder or _default_folder()
    try:
        with _sigterm_interrupts(), Cluster.start(home, name="dev", port=port) as cluster:
            if prepare is not None:
                prepare(cluster.dsn)
            _say(
                f"Postgres runs on {home} until Ctrl-C (its data stays). Its DSN:\n\n    {cluster.dsn}\n\n"
                f"For psql:     psql {cluster.dsn}\nFor Python:   psycopg.connect({cluster.dsn!r})"
            )
            cluster.wait()
            _say(f"the server ended by itself; its log is {home / 'log'}")
            return 1
    except AlreadyRunning as running:
        _say(f"Postgres runs on {home} already (pid {running.pid}), nothing was started. Its DSN:\n\n    {running.dsn}\n")
        return 2
    except KeyboardInterrupt:
        _say("stopped")
        return 0


def _default_folder() -> Path:
    """`./.onceward/pg`, with a note beside it that keeps git out."""
    home = Path.cwd() / ".onceward"
    ignore = home / ".gitignore"
    try:
        home.mkdir(exist_ok=True)
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError as error:
        raise UsageError(f"{home} cannot be written ({error.strerror}): name a folder with --folder") from error
    return home / "pg"


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
