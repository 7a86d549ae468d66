"""Where connections come from: a DSN, a psycopg pool, or a callable that gives a psycopg connection.

Every connection that the runtime uses is set up the same: autocommit (each transaction is opened by us, on purpose),
durable commits, and a limit on every wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

from onceward.errors import UsageError
from onceward.statements import SCHEMA_DEFAULT, statements

DatabaseSource = str | ConnectionPool[Connection] | Callable[[], Connection]
TAKE_LOCK_SECONDS: Final = 1.0
POOL_WAIT_SECONDS: Final = 10.0


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
        elif isinstance(source, ConnectionPool):
            check_pool_size(source, size)
            self._pool = source
        else:
            self._factory = source

    def _make_pool(self, dsn: str, size: int, application_name: str) -> ConnectionPool[Connection]:
        keywords = {"autocommit": True, "application_name": application_name}
        return ConnectionPool(
            dsn, min_size=min(size, 2), max_size=size, kwargs=keywords, configure=self._configure,
            timeout=POOL_WAIT_SECONDS, reconnect_timeout=60.0, open=True, name="onceward",
        )  # fmt: skip

    def _configure(self, conn: Connection) -> None:
        conn.execute(self._session)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A configured connection outside any transaction; on the way out whatever is open is rolled back."""
        if self._pool is None:
            with self._from_factory() as conn:
                yield conn
        elif self._own:
            with self._pool.connection() as conn:
                yield conn
        else:
            with self._pool.connection() as conn, self._borrowed(conn):
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
        self._configure(conn)
        try:
            yield
        finally:
            if not conn.closed and not conn.broken:
                _roll_back(conn)
                conn.execute("RESET ALL")
                conn.autocommit = autocommit

    def forget_broken(self) -> None:
        """After an outage: connections that died with the server are replaced now, not at their next use."""
        if self._pool is not None and self._own:
            self._pool.check()

    def close(self) -> None:
        if self._pool is not None and self._own:
            self._pool.close(timeout=5.0)


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


def _roll_back(conn: Connection) -> None:
    if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        conn.execute("ROLLBACK")


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
