"""Where connections come from: a DSN, a psycopg pool, or a callable that gives one.

Every connection that the runtime uses is set up in the same way (see `onceward.session`): autocommit (each transaction is
opened by us, on purpose), durable commits, a limit on every wait, and one thread that it is lent to.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, Union, cast

import psycopg
from psycopg import BaseConnection, Connection
from psycopg.rows import dict_row, tuple_row

from onceward.errors import UsageError
from onceward.session import (
    READ_BORROWED,
    RESTORE_BORROWED,
    LentLock,
    discard,
    left_open,
    lent,
    our_work,
    putting_back,
    setting,
    settings,
)
from onceward.statements import SCHEMA_DEFAULT, statements

if TYPE_CHECKING:
    from psycopg_pool import ConnectionPool  # imported where a pool is made: it would be a quarter of `import onceward`

DatabaseSource = Union[str, "ConnectionPool[Connection]", Callable[[], Connection]]
POOL_WAIT_SECONDS: Final = 10.0
HANDLER_SECONDS_MAX: Final = 300.0
PREPARE_THRESHOLD: Final = 5  # psycopg's own
PROBES: Final = 3
_POOLED: Final = """\
{what}: between this process and Postgres is a pooler (PgBouncer, say) in transaction or statement mode, which gives each \
transaction to whichever session is free. Our settings, advisory locks and LISTEN last as long as a session, and would go \
to its other clients: name Postgres itself, or a pool in session mode"""


class Database:
    """Gives configured connections.

    For a DSN, from a pool of exactly `size` that it owns; else from the pool or callable of its caller.
    """

    def __init__(
        self,
        source: DatabaseSource,
        *,
        size: int = 4,
        schema: str = SCHEMA_DEFAULT,
        handler_seconds_max: float = HANDLER_SECONDS_MAX,
        application_name: str = "onceward",
    ) -> None:
        """`handler_seconds_max` limits a statement of a handler, and idling in its transaction.

        Raises `UsageError` for a pool that has fewer connections than `size`: threads would wait for each other.
        """
        if handler_seconds_max <= 0:
            raise UsageError("handler_seconds_max must be more than 0")
        self.statements = statements(schema)
        self.schema = schema
        self.lock_timeout = f"{round(handler_seconds_max * 1000)}ms"
        self._handler_seconds_max = handler_seconds_max
        self._pool: ConnectionPool[Connection] | None = None
        self._own = False
        self._factory: Callable[[], Connection] | None = None
        self._dsn = source if isinstance(source, str) else ""
        # Whether sessions are this process's own; None: not known yet.
        self._keeps_sessions: bool | None = None
        if isinstance(source, str):
            self._pool, self._own = self._make_pool(source, size, application_name), True
        elif (pool := as_pool(source)) is not None:
            check_pool_size(pool, size)
            self._pool = pool
        elif callable(source):
            self._factory = source
        else:
            raise UsageError(f"database: a DSN, a psycopg pool or a callable, not a {type(source).__name__}")

    def _make_pool(self, dsn: str, size: int, application_name: str) -> ConnectionPool[Connection]:
        from psycopg_pool import ConnectionPool  # noqa: PLC0415 - see above

        keywords = {"autocommit": True, "application_name": application_name}
        return ConnectionPool(
            dsn, min_size=1, max_size=size, kwargs=keywords, configure=self._configure_own,
            timeout=POOL_WAIT_SECONDS, reconnect_timeout=60.0, open=True, name="onceward",
        )  # fmt: skip

    def _session_is_kept(self, conn: Connection, another: Callable[[], AbstractContextManager[Connection]]) -> bool:
        if self._keeps_sessions is None:
            self._keeps_sessions = keeps_session(conn, another)
        return self._keeps_sessions

    def _configure(self, conn: Connection) -> None:
        conn.execute(b"SELECT " + setting(self._settings(conn)).encode())

    def _settings(self, conn: Connection) -> dict[str, str]:
        return settings(self._handler_seconds_max, conn.info.server_version)

    def _configure_own(self, conn: Connection) -> None:
        # Raised in `connection`: what is raised here, the pool tries again. Nothing is set meanwhile, for others to find.
        if not self._session_is_kept(conn, lambda: closing(psycopg.connect(self._dsn, autocommit=True))):
            return
        back = putting_back(conn, self._settings(conn))
        user = conn.pgconn.parameter_status(b"session_authorization")
        self._configure(conn)
        conn.lock = cast("threading.Lock", LentLock(back, user))

    def putting_back(self, conn: Connection) -> str:
        """What undoes what a handler did to the session of `conn` (see `session`).

        '' for a borrowed one: its owner's.
        """
        return cast("LentLock", conn.lock).putting_back if self._own else ""

    @contextmanager
    def connection(self, wait_seconds: float | None = None) -> Iterator[Connection]:
        """A configured connection outside any transaction, this thread's alone.

        What is open at the end is rolled back.
        Raises `psycopg.OperationalError` when the pool has none for `wait_seconds` (None: as it is set), and `UsageError`
        behind a pooler that keeps no session.
        """
        if self._pool is None:
            with self._from_factory() as conn:
                yield conn
            return
        conn = self._pool.getconn(timeout=wait_seconds)
        try:
            if self._keeps_sessions is False:
                raise UsageError(_POOLED.format(what="database"))
            with lent(conn), _left_clean(conn) if self._own else self._borrowed(conn):
                yield conn
        finally:
            self._pool.putconn(conn)

    @contextmanager
    def _from_factory(self) -> Iterator[Connection]:
        conn = self._connected()
        if not isinstance(conn, Connection):
            raise UsageError(f"database: the callable gave a {type(conn).__name__}, not a psycopg 3 Connection")
        with closing(conn), lent(conn), self._borrowed(conn):
            yield conn

    def _another(self) -> AbstractContextManager[Connection]:
        """One more connection of the caller's, as it comes."""
        return closing(self._connected()) if self._pool is None else self._pool.connection()

    def _connected(self) -> Connection:
        """What the callable gives.

        Raises `psycopg.OperationalError` also for an error of a framework's own.
        """
        if self._factory is None:
            raise UsageError("this database is closed")
        try:
            return self._factory()
        except (psycopg.Error, UsageError):
            raise
        except Exception as error:
            # An outage has one name here, or each of our callers would have to know every framework's.
            raise psycopg.OperationalError(f"the database callable raised {type(error).__name__}: {error}") from error

    @contextmanager
    def _borrowed(self, conn: Connection) -> Iterator[None]:
        """The caller's connection, in our settings for a while, and in its own again afterwards."""
        autocommit = conn.autocommit
        if not autocommit:
            conn.autocommit = True
        try:
            if not self._session_is_kept(conn, self._another):
                raise UsageError(_POOLED.format(what="database"))
            before = tuples(conn, READ_BORROWED)[0]
            self._configure(conn)
        except BaseException:
            # Nothing of ours stays on it, or its owner's next statement would be committed at once.
            if _roll_back(conn):
                conn.autocommit = autocommit
            raise
        try:
            yield
        finally:
            if _roll_back(conn):
                # First: under a role that a handler has set, the settings below might be refused.
                conn.execute("RESET SESSION AUTHORIZATION")
                conn.execute(RESTORE_BORROWED.encode(), before)
                conn.autocommit = autocommit

    def forget_broken(self) -> None:
        """Connections that died with the server are replaced now, not at their next use."""
        if self._pool is not None:
            with our_work():
                self._pool.check()

    def close(self) -> None:
        if self._pool is not None and self._own:
            self._pool.close(timeout=5.0)


def keeps_session(conn: Connection[Any], another: Callable[[], AbstractContextManager[Connection[Any]]]) -> bool:
    """Whether `conn`, which is in autocommit mode, has one session of the server for as long as it is open.

    Not behind a pooler in transaction or statement mode. `another` connects in the same way; it is called only where there
    is a pooler.
    """
    # To a client, a pooler gives a process id of its own making. A Postgres says the same in both ways.
    if conn.info.backend_pid == _backend_pid(conn):
        return True
    with another() as other:
        autocommit = other.autocommit
        other.autocommit = True
        # No two connections share a session that each of them keeps, and none changes it. Asked in turn: a pooler gives the
        # session that one has just left to the other, or, where it goes round, a new one to each.
        seen = {(_backend_pid(conn), _backend_pid(other)) for _ in range(PROBES)}
        other.autocommit = autocommit
    return len(seen) == 1 and len({*seen.pop()}) == 2


def check_keeps_session(conn: Connection[Any], dsn: str, *, what: str) -> None:
    """Raises `UsageError` where `conn`, connected to `dsn` in autocommit mode, is behind a pooler that keeps no session.

    `what` has named the DSN.
    """
    if not keeps_session(conn, lambda: closing(psycopg.connect(dsn, autocommit=True))):
        raise UsageError(_POOLED.format(what=what))


def _backend_pid(conn: Connection[Any]) -> int:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return int(row[0]) if row is not None else 0


def check_connection(conn: object) -> None:
    """Raises `UsageError` unless `conn` is a synchronous psycopg 3 connection."""
    # An AsyncConnection would give a coroutine that nobody awaits, so the row would be missing without any error.
    if isinstance(conn, Connection):
        return
    kind = f"{type(conn).__module__}.{type(conn).__qualname__}"
    raise UsageError(f"a psycopg 3 Connection is needed here, not a {kind}{_how_to_get_one(conn)}")


def check_outside_transaction(conn: Connection[Any], what: str) -> None:
    """Raises `UsageError` inside a transaction, and for what is not a synchronous psycopg 3 connection."""
    check_connection(conn)
    check_idle(conn, what)


def check_idle(conn: BaseConnection[Any], what: str) -> None:
    """As `check_outside_transaction`, for a connection of either kind."""
    if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise UsageError(f"{what} commits on its own: call it outside a transaction")


def _how_to_get_one(conn: object) -> str:
    """How to reach the psycopg connection below what a framework hands out."""
    if isinstance(conn, psycopg.AsyncConnection):
        return (
            ": onceward.aio has Inbox, Intents and publish for it; or use a synchronous connection, in a thread of its "
            "own (asyncio.to_thread)"
        )
    # By the name of the class's package: to import a framework for an error message would be odd.
    package = type(conn).__module__.partition(".")[0]
    if package == "sqlalchemy":
        own = "session.connection()" if hasattr(conn, "get_bind") else "connection"
        return f": give it {own}.connection.driver_connection"
    if package == "django":
        return ": give it connection.connection, inside transaction.atomic()"
    return ""


def as_pool(source: Any) -> ConnectionPool[Connection] | None:
    """The source, if it is a psycopg pool."""
    # Where psycopg_pool was never imported, it cannot be one; and importing it takes a quarter of `import onceward`.
    module = sys.modules.get("psycopg_pool")
    return source if module is not None and isinstance(source, module.ConnectionPool) else None


def tuples(conn: Connection[Any], statement: Any, params: Any = None) -> list[tuple[Any, ...]]:
    """The rows as tuples, whatever row factory the caller's pool has."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement, params).fetchall()


def one_tuple(conn: Connection[Any], statement: Any, params: Any = None) -> tuple[Any, ...] | None:
    """The first row, as a tuple; None when there is none."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement, params).fetchone()


def dicts(conn: Connection[Any], statement: Any, params: Any = None) -> list[dict[str, Any]]:
    """The rows by the names of their columns, whatever row factory the caller's pool has."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, params).fetchall()


def check_pool_size(pool: ConnectionPool[Connection], needed: int) -> None:
    """Raises `UsageError` when `pool` can never give the `needed` connections at once."""
    if pool.max_size < needed:
        raise UsageError(
            f"the pool gives at most {pool.max_size} connections, but {needed} are needed (one per thread, one for the "
            f"heartbeat): set max_size={needed} or fewer threads"
        )


def is_broken(conn: Connection | None, error: BaseException | None = None) -> bool:
    """The connection is gone, or could not be had: what was not committed did not happen."""
    if conn is not None and (conn.closed or conn.broken):
        return True
    return isinstance(error, psycopg.OperationalError) and getattr(error, "sqlstate", None) is None


@contextmanager
def _left_clean(conn: Connection) -> Iterator[None]:
    """Afterwards nothing is open on the connection, and its Python side is as it was before a handler had it."""
    try:
        yield
    finally:
        # While it is still lent: this speaks to the server, which only the thread that it is lent to may do.
        _roll_back(conn)
        conn.row_factory = tuple_row
        conn.cursor_factory = psycopg.Cursor
        conn.prepare_threshold = PREPARE_THRESHOLD


def _roll_back(conn: Connection) -> bool:
    """Whatever is open on `conn` is rolled back.

    False: the connection is gone, and the server has done so by itself.
    """
    # A pool would do the same for an open transaction, but with a warning in the log for each.
    if left_open(conn):
        # A stream, a COPY or a pipeline is still under way: no other statement can be sent on this connection.
        discard(conn)
    if conn.closed or conn.broken:
        return False
    if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        conn.execute("ROLLBACK")
    return True
