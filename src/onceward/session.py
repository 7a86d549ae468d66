"""One database session: what we set it to, how it is put back after a handler has had it, and whose thread may use it.

A handler may change anything of its session: settings, role, search_path, cursors, temporary tables, locks. None of that
may reach the next message. So the session is put back in the round trip of the handler's COMMIT (or ROLLBACK), and a
connection answers only to the thread that it is lent to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from psycopg import Connection
from psycopg.pq import DiagnosticField, ExecStatus, PipelineStatus, TransactionStatus

from onceward import protocol as p
from onceward.errors import UsageError

logger = logging.getLogger("onceward")

# The commit guard: is this still the transaction that we opened? One string is one round trip: when the division fails, the
# server does not go on to COMMIT. A handler may have switched durable commits off for its session; this commit is durable
# all the same. What the handler did to its session is undone on the way.
COMMIT_GUARDED: Final = (
    "SELECT 1 / coalesce((pg_current_xact_id_if_assigned()::text = '{transaction}')::int, 0),"
    " set_config('synchronous_commit', 'on', true); {putting_back}COMMIT"
)
DIVISION_BY_ZERO: Final = "22012"
CONNECTION_CLASSES: Final = ("08", "57P")  # connection exceptions; the server was told to stop, or starts
TAKE_LOCK_SECONDS: Final = 1.0
# What is the session's own again, when a borrowed connection goes back to its owner.
BORROWED: Final = (
    "synchronous_commit", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout",
    "idle_session_timeout", "search_path", "role", "default_transaction_read_only", "default_transaction_isolation",
    "row_security", "TimeZone", "DateStyle",
)  # fmt: skip
READ_BORROWED: Final = "SELECT " + ", ".join(f"current_setting('{name}')" for name in BORROWED)
RESTORE_BORROWED: Final = "SELECT " + ", ".join(f"set_config('{name}', %s, false)" for name in BORROWED)
# Settings that newer servers have, and that would end a session of ours behind our back.
_SINCE: Final = {"transaction_timeout": 170_000}
# BEGIN, and in its round trip what a handler before this one has prepared by hand: the name would be taken already. What
# psycopg itself has prepared stays: it is what makes the next message cheap.
_BEGIN: Final = b"BEGIN; SELECT string_agg(format('DEALLOCATE %I', name), '; ') FROM pg_prepared_statements WHERE from_sql"


def settings(handler_seconds_max: float, server_version: int) -> dict[str, str]:
    """What every session of ours is set to: durable commits, and a limit on every wait but that for its next use.

    The server may not end an idle session: each message would meet a connection that is gone.
    """
    limit = f"{round(handler_seconds_max * 1000)}ms"
    newer = {name: "0" for name, since in _SINCE.items() if server_version >= since}
    return {
        "synchronous_commit": "on",
        "lock_timeout": f"{round(TAKE_LOCK_SECONDS * 1000)}ms",
        "statement_timeout": limit,
        "idle_in_transaction_session_timeout": limit,
        "idle_session_timeout": "0",
        **newer,
    }


def setting(values: dict[str, str]) -> str:
    """The SQL that sets these, for the session."""
    return "SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in values.items())


def putting_back(values: dict[str, str]) -> str:
    """The SQL that makes a session what it was when it was new, and sets it to `values` again.

    For the end of a handler's transaction, before COMMIT: what is deferred fires first, under the handler's own role and
    settings, and COMMIT is the last word of the string, so that its reply is the one that libpq hands out. Not DISCARD ALL:
    it cannot run in a transaction, and would throw away what psycopg has prepared.
    """
    return (
        "SET CONSTRAINTS ALL IMMEDIATE; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; "
        f"DISCARD TEMP; DISCARD SEQUENCES; {setting(values)}, pg_advisory_unlock_all()"
    )


def begin(conn: Connection[Any]) -> bool:
    """A transaction is open on `conn`; False: the server did not say so.

    By libpq's own blocking call: what psycopg adds (parameters, rows, types) is not needed here, and BEGIN and COMMIT are
    half of a transaction's round trips.
    """
    with conn.lock:
        result = conn.pgconn.exec_(_BEGIN)
        if result.status != ExecStatus.TUPLES_OK:
            return False
        prepared_by_hand = result.get_value(0, 0)
        if prepared_by_hand is not None:
            result = conn.pgconn.exec_(prepared_by_hand)
        return result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


def put_back(conn: Connection[Any], putting_back: str) -> None:
    """The session is as it was before a handler had it; one that cannot be put back is closed."""
    if not putting_back:
        return
    with conn.lock:
        result = conn.pgconn.exec_(putting_back.encode())
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        logger.warning("a session could not be put back after a handler, it is closed: %s", result.get_error_message())
        discard(conn)


def commit_guarded(
    conn: Connection[Any], transaction: str, putting_back: str
) -> p.Committed | p.Aborted | p.ForeignCommit | p.Ambiguous:
    """COMMIT, only if this session is still in this transaction, and only if the reply says COMMIT.

    A transaction that failed inside "commits" as ROLLBACK without an error; a handler that ended it by raw SQL leaves none,
    or another one.
    """
    if conn.info.transaction_status == TransactionStatus.INERROR:
        return p.Aborted()
    text = COMMIT_GUARDED.format(transaction=transaction, putting_back=f"{putting_back}; " if putting_back else "")
    with conn.lock:
        result = conn.pgconn.exec_(text.encode())  # of several results, the last one
    if result.status == ExecStatus.COMMAND_OK:
        return p.Committed() if result.command_status == b"COMMIT" else p.Aborted()
    sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    if sqlstate == DIVISION_BY_ZERO:
        return p.ForeignCommit()
    if not sqlstate or sqlstate.startswith(CONNECTION_CLASSES) or conn.closed or conn.broken:
        return p.Ambiguous()
    logger.warning("a transaction could not be committed: %s", result.get_error_message())
    return p.Aborted()


# ---- whose connection it is ------------------------------------------------------------------------------------------


class LentLock:
    """A connection's lock that only the thread to which the connection is lent can take.

    psycopg takes its connection's lock around everything that it says to the server. A handler that passes its connection
    to another thread, or keeps it in one that outlives it, would speak in the middle of another message's transaction; with
    this lock it is refused instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._closed = False

    def lend(self) -> None:
        self._thread = threading.get_ident()

    def take_back(self) -> None:
        self._thread = None

    def close(self) -> None:
        """Its connection is closed: whoever still holds on to it may clean up, and hears from psycopg that it is gone."""
        self._closed = True

    def locked(self) -> bool:
        return self._lock.locked()

    def acquire(self) -> bool:
        if threading.get_ident() != self._thread and not (_our_work.here or self._closed):
            raise UsageError(
                "this connection belongs to one handler, on its own thread, until that handler ends: use it nowhere else"
            )
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _OurWork(threading.local):
    """Whether this thread is at our own work just now, with no code of a handler's on its stack."""

    here = False


_our_work: Final = _OurWork()


@contextmanager
def our_work() -> Iterator[None]:
    """In this block the thread may speak on connections that are lent to another thread of ours, or wait in the pool."""
    _our_work.here = True
    try:
        yield
    finally:
        _our_work.here = False


@contextmanager
def lent(conn: Connection[Any]) -> Iterator[None]:
    """In this block `conn` is this thread's alone; afterwards nobody's, or its owner's again if it is a borrowed one."""
    before: Any = conn.lock
    mine = before if isinstance(before, LentLock) else LentLock()
    conn.lock = cast("threading.Lock", mine)
    mine.lend()
    try:
        yield
    finally:
        mine.take_back()
        conn.lock = before


def discard(conn: Connection[Any]) -> None:
    """The connection is closed, whatever is still under way on it; the server rolls back, and its pool makes another."""
    conn.close()
    lock: Any = conn.lock
    if isinstance(lock, LentLock):
        lock.close()


def left_open(conn: Connection[Any] | None) -> str:
    """What somebody began on `conn` and did not end; '' when nothing is. Whoever speaks on it now would wait for ever."""
    if conn is None or conn.closed:
        return ""
    if cast("LentLock", conn.lock).locked():
        return "a stream or a COPY half read"
    return "a pipeline" if conn.pgconn.pipeline_status != PipelineStatus.OFF else ""
