"""Where connections come from: a DSN, a psycopg pool, or a callable that gives a psycopg connection.

Every connection that the runtime uses is set up the same: autocommit (each transaction is opened by us, on purpose),
durable commits, and a limit on every wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Union

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

from onceward.errors import UsageError
from onceward.statements import SCHEMA_DEFAULT, statements

if TYPE_CHECKING:
    from psycopg_pool import ConnectionPool  # imported where a pool is made: it would be a quarter of `import onceward`

DatabaseSource = Union[str, "ConnectionPool[Connection]", Callable[[], Connection]]
TAKE_LOCK_SECONDS: Final = 1.0
POOL_WAIT_SECONDS: Final = 10.0
_SETTINGS: Final = ("synchronous_commit", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
_READ_SETTINGS: Final = "SELECT " + ", ".join(f"current_setting('{name}')" for name in _SETTINGS)
_RESTORE_SETTINGS: Final = ("SELECT " + ", ".join(f"set_config('{name}', %s, false)" for name in _SETTINGS)).encode()


class Database:
    """Gives configured connections. Made from a DSN it owns a pool of exactly `size`; else the caller's is borrowed."""

    def __init__(
        self,
        source: DatabaseSource,
        *,
        size: int = 4,
        schema: str = SCHEMA_DEFAULT,
        handler_seconds_max: float = 300.0,
        application_name: str = "onceward",
    ) -> None:
        """`handler_seconds_max` limits one statement, and idling inside one transaction, of a handler.

        Raises `UsageError` for a pool that has fewer connections than `size`: threads would wait for each other.
        """
        self.statements = statements(schema)
        self.schema = schema
        self.lock_timeout = f"{round(handler_seconds_max * 1000)}ms"
        self._session = _session_settings(handler_seconds_max)
        self._pool: ConnectionPool[Connection] | None = None
        self._own = False
        self._factory: Callable[[], Connection] | None = None
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
            dsn, min_size=1, max_size=size, kwargs=keywords, configure=self._configure,
            timeout=POOL_WAIT_SECONDS, reconnect_timeout=60.0, open=True, name="onceward",
        )  # fmt: skip

    def _configure(self, conn: Connection) -> None:
        conn.execute(self._session)

    @contextmanager
    def connection(self, wait_seconds: float | None = None) -> Iterator[Connection]:
        """A configured connection outside any transaction; on the way out whatever is open is rolled back.

        Raises `psycopg.OperationalError` when the pool has none for `wait_seconds` (None: as it is set).
        """
        if self._pool is None:
            with self._from_factory() as conn:
                yield conn
        elif self._own:
            with self._pool.connection(timeout=wait_seconds) as conn:
                try:
                    yield conn
                finally:
                    _leave(conn)
        else:
            with self._pool.connection(timeout=wait_seconds) as conn, self._borrowed(conn):
                yield conn

    @contextmanager
    def _from_factory(self) -> Iterator[Connection]:
        if self._factory is None:
            raise UsageError("this database is closed")
        conn = self._factory()
        if not isinstance(conn, Connection):
            raise UsageError(f"database: the callable gave a {type(conn).__name__}, not a psycopg 3 Connection")
        try:
            with self._borrowed(conn):
                yield conn
        finally:
            conn.close()

    @contextmanager
    def _borrowed(self, conn: Connection) -> Iterator[None]:
        """The caller's connection, in our settings for a while, and in its own again afterwards."""
        autocommit = conn.autocommit
        if not autocommit:
            conn.autocommit = True
        before = tuples(conn, _READ_SETTINGS)[0]
        self._configure(conn)
        try:
            yield
        finally:
            if _leave(conn):
                conn.execute(_RESTORE_SETTINGS, before)
                conn.autocommit = autocommit

    def forget_broken(self) -> None:
        """After an outage: connections that died with the server are replaced now, not at their next use."""
        if self._pool is not None:
            self._pool.check()

    def close(self) -> None:
        if self._pool is not None and self._own:
            self._pool.close(timeout=5.0)


def as_pool(source: Any) -> ConnectionPool[Connection] | None:
    """The source if it is a psycopg pool; when nobody has imported psycopg_pool, it is none."""
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


def check_pool_size(pool: ConnectionPool[Connection], needed: int) -> None:
    """Raises `UsageError` when `pool` can never give the `needed` connections at once."""
    if pool.max_size < needed:
        raise UsageError(
            f"the pool gives at most {pool.max_size} connections, {needed} are needed (one per thread, one for the "
            f"heartbeat): set max_size={needed} or fewer threads"
        )


def is_lost(conn: Connection | None, error: BaseException | None = None) -> bool:
    """The connection is gone, or could not be had: what was not committed did not happen."""
    if conn is not None and (conn.closed or conn.broken):
        return True
    return isinstance(error, psycopg.OperationalError) and getattr(error, "sqlstate", None) is None


def _leave(conn: Connection) -> bool:
    """Whatever is open is rolled back; a pool would commit it. False: the connection is gone, and has done so itself."""
    if conn.closed or conn.broken:
        return False
    if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        conn.execute("ROLLBACK")
    return True


def _session_settings(handler_seconds_max: float) -> str:
    if handler_seconds_max <= 0:
        raise UsageError("handler_seconds_max must be more than 0")
    milliseconds = round(handler_seconds_max * 1000)
    return (
        "SET synchronous_commit TO on; "
        f"SET lock_timeout TO '{round(TAKE_LOCK_SECONDS * 1000)}ms'; "
        f"SET statement_timeout TO '{milliseconds}ms'; "
        f"SET idle_in_transaction_session_timeout TO '{milliseconds}ms'"
    )
