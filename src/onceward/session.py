"""One database session: its settings, its reset after a handler, and its thread.

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

from onceward.errors import UsageError
from onceward.protocol import words as p

logger = logging.getLogger("onceward")

# The commit guard: is this still the transaction that we opened? One string is one round trip: when the division fails, the
# server does not go on to COMMIT. What the handler did to its session is undone on the way, so that this commit is durable,
# too, although it may have switched that off. What is deferred fires before, under the handler's own role and settings.
# COMMIT stands last: its reply is the one that libpq hands out.
COMMIT_GUARDED: Final = "{before}SELECT 1 / coalesce(({is_ours})::int, 0), {settings}; COMMIT"
IS_OURS: Final = "pg_current_xact_id_if_assigned()::text = '{transaction}'"
DURABLE: Final = "set_config('synchronous_commit', 'on', true)"
# Not DISCARD ALL: it cannot run in a transaction, and would throw away what psycopg has prepared. What else a handler may
# leave in its session (statements prepared by hand, cursors, temporary tables) the next take looks for.
RESET: Final = "SET CONSTRAINTS ALL IMMEDIATE; RESET ALL; "
DIVISION_BY_ZERO: Final = "22012"
CONNECTION_CLASSES: Final = ("08", "57P")  # connection exceptions; the server was told to stop, or starts
TAKE_LOCK_SECONDS: Final = 1.0
# What gets the owner's values again when a borrowed connection is returned.
BORROWED: Final = (
    "synchronous_commit", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout",
    "idle_session_timeout", "search_path", "role", "default_transaction_read_only", "default_transaction_isolation",
    "row_security", "TimeZone", "DateStyle",
)  # fmt: skip
READ_BORROWED: Final = "SELECT " + ", ".join(f"current_setting('{name}')" for name in BORROWED)
RESTORE_BORROWED: Final = "SELECT " + ", ".join(f"set_config('{name}', %s, false)" for name in BORROWED)
# Settings of newer servers that would end a session of ours behind our back.
_SINCE: Final = {"transaction_timeout": 170_000}


def settings(handler_seconds_max: float, server_version: int) -> dict[str, str]:
    """What every session of ours is set to: durable commits, and a limit on every wait.

    Except on the wait for its next use: if the server ended idle sessions, messages would meet dead connections.
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
    """The list of calls that sets these, for the session."""
    return ", ".join(f"set_config('{name}', '{value}', false)" for name, value in values.items())


def putting_back(conn: Connection[Any], values: dict[str, str]) -> str:
    """The calls that, after RESET ALL, make the session of `conn` what it is now.

    They set the role, which RESET ALL leaves alone, and `values` again: only what the session would not have by itself, but
    durability always, because the server's own default may change while the session lasts.
    """
    known = {**values, "role": "none"}
    asking = "SELECT " + ", ".join(f"current_setting('{name}')" for name in known)
    own = dict(zip(known, conn.execute(asking.encode()).fetchone() or (), strict=True))
    again = {name: value for name, value in values.items() if own[name] != value or name == "synchronous_commit"}
    return setting({"role": own["role"], **again}) + ", pg_advisory_unlock_all()"


def begin(conn: Connection[Any]) -> bool:
    """A transaction is open on `conn`; False: the server did not say so.

    By libpq's own blocking call: what psycopg adds (parameters, rows, types) is not needed here, and BEGIN and COMMIT are
    half of a transaction's round trips.
    """
    with conn.lock:
        return conn.pgconn.exec_(b"BEGIN").status == ExecStatus.COMMAND_OK


def put_back(conn: Connection[Any], calls: str) -> None:
    """The session is as it was before a handler had it; one that cannot be is closed.

    `calls`: those of `putting_back`; '' for a borrowed session, which is its owner's.
    """
    if not calls:
        return
    with conn.lock:
        result = conn.pgconn.exec_(f"{_before(conn)}SELECT {calls}".encode())
    if result.status != ExecStatus.TUPLES_OK:
        logger.warning(
            "resetting a session after its handler failed; closing the connection: %s", result.get_error_message()
        )
        discard(conn)


def _before(conn: Connection[Any]) -> str:
    """The SQL that resets the session."""
    # The server reports a change of user by itself, so that the reset of it is sent only where it is needed.
    lock: Any = conn.lock
    if conn.pgconn.parameter_status(b"session_authorization") != lock.user:
        return f"RESET SESSION AUTHORIZATION; {RESET}"
    return RESET


def commit_guarded(
    conn: Connection[Any], transaction: str, calls: str
) -> p.Committed | p.Aborted | p.ForeignCommit | p.Ambiguous:
    """COMMIT, if this session is still in this transaction; and what the reply says.

    A transaction that failed inside "commits" as ROLLBACK without an error; a handler that ended it by raw SQL leaves none,
    or another one. `calls`: those of `putting_back`; '' for a borrowed session, which is its owner's.
    """
    if conn.info.transaction_status == TransactionStatus.INERROR:
        return p.Aborted()
    is_ours = IS_OURS.format(transaction=transaction)
    before, then = (_before(conn), calls) if calls else ("", DURABLE)
    text = COMMIT_GUARDED.format(before=before, is_ours=is_ours, settings=then)
    with conn.lock:
        result = conn.pgconn.exec_(text.encode())  # of several results, the last one
    if result.status == ExecStatus.COMMAND_OK:
        return p.Committed() if result.command_status == b"COMMIT" else p.Aborted()
    sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    if sqlstate == DIVISION_BY_ZERO:
        return p.ForeignCommit()
    if not sqlstate or sqlstate.startswith(CONNECTION_CLASSES) or conn.closed or conn.broken:
        return p.Ambiguous()
    logger.warning("COMMIT failed; the attempt counts as failed: %s", result.get_error_message())
    return p.Aborted()


class LentLock:
    """A connection's lock that only the thread to which the connection is lent can take.

    psycopg takes its connection's lock around everything that it says to the server. A handler that passes its connection
    to another thread, or keeps it in one that outlives it, would speak in the middle of another message's transaction; with
    this lock it is refused instead.
    """

    def __init__(self, putting_back: str = "", user: bytes | None = None) -> None:
        """`putting_back` and `user`: of a session of ours, what `put_back` needs to know of it."""
        self.putting_back = putting_back
        self.user = user
        self._lock = threading.Lock()
        self.release = self._lock.release
        self.locked = self._lock.locked
        self._thread: int | None = None
        self._closed = False

    def lend(self) -> None:
        self._thread = threading.get_ident()

    def take_back(self) -> None:
        self._thread = None

    def close(self) -> None:
        """Its connection is closed: any thread that still holds it may clean up.

        psycopg tells it that the connection is closed.
        """
        self._closed = True

    def acquire(self) -> bool:
        if threading.get_ident() != self._thread and not (_our_work.here or self._closed):
            raise UsageError(
                "this connection belongs to one handler, on its own thread, until that handler ends: use it nowhere else"
            )
        return self._lock.acquire()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class _OurWork(threading.local):
    """Whether this thread is at our own work, with no handler code on its stack."""

    here = False


_our_work: Final = _OurWork()


@contextmanager
def our_work() -> Iterator[None]:
    """In this block the thread may use connections that are lent to other threads.

    Only where no handler has them: those of another thread of ours, or those that wait in the pool.
    """
    before, _our_work.here = _our_work.here, True
    try:
        yield
    finally:
        _our_work.here = before


@contextmanager
def lent(conn: Connection[Any]) -> Iterator[None]:
    """In this block `conn` is this thread's alone; afterwards nobody's, or its owner's again."""
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
    """The connection is closed, whatever is still under way on it.

    The server rolls back, and its pool makes another one.
    """
    conn.close()
    lock: Any = conn.lock
    if isinstance(lock, LentLock):
        lock.close()


def left_open(conn: Connection[Any] | None) -> str:
    """What was begun on `conn` and not ended; '' when nothing was.

    A statement on such a connection would wait for ever.
    """
    if conn is None or conn.closed:
        return ""
    if cast("LentLock", conn.lock).locked():
        return "a stream or a COPY half read"
    return "a pipeline" if conn.pgconn.pipeline_status != PipelineStatus.OFF else ""
