"""SQLAlchemy: a session inside a handler's transaction, and `publish` from a session of yours.

Needs SQLAlchemy 2 on psycopg 3 (`pip install 'onceward[sqlalchemy]'`). Nothing else of the library imports this module.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, NoReturn

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.pool import NullPool

from onceward.errors import UsageError
from onceward.message import Message
from onceward.outbox import check_in_transaction, publish
from onceward.statements import SCHEMA_DEFAULT

__all__ = ["HandlerSession", "publish_in", "session_in"]

_OURS: Final = "Onceward commits it, together with the inbox row, when the handler returns"
_COMMIT: Final = (
    f"a session cannot commit the handler's transaction: {_OURS}. Leave out commit(); session.flush() sends what it holds, "
    "and `with session.begin_nested():` is a part that can fail alone"
)
_ROLLBACK: Final = (
    f"a connection cannot roll back the handler's transaction: {_OURS}. session.rollback() undoes what the session did; to "
    "undo everything, let the handler raise"
)
_BEGIN: Final = (
    f"the handler's transaction is begun already: {_OURS}. Leave out begin(); `with session.begin_nested():` is a part "
    "that can fail alone"
)
_CLOSE: Final = (
    "this session is closed at the end of its `with session_in(tx)` block: closed before, it would throw away what it has "
    "done. Leave out close() and reset()"
)


@contextmanager
def session_in(tx: psycopg.Connection[Any], **options: Any) -> Iterator[HandlerSession]:
    """A session whose writes are part of the transaction open on `tx`, a handler's own.

    At the end of the block, what the session holds is flushed; Onceward commits it when the handler returns. If the block
    raises, what the session did is undone. `options` are those of SQLAlchemy's `Session`; objects stay readable after the
    block, unless `expire_on_commit=True` says otherwise. In the block, rows of `tx` are tuples.

    Raises `UsageError` when `tx` is not a psycopg 3 connection, and `NotInTransaction` when no transaction is open on it.
    """
    check_in_transaction(tx)
    before, tx.row_factory = tx.row_factory, tuple_row
    try:
        with _connection_on(tx) as connection:
            session = HandlerSession(
                **{"expire_on_commit": False, **options}, bind=connection, join_transaction_mode="create_savepoint"
            )
            try:
                yield session
                session.end()
            finally:
                Session.close(session)
    finally:
        tx.row_factory = before


def publish_in(
    session: Session | scoped_session[Any] | Connection,
    message: Message,
    *,
    schema: str = SCHEMA_DEFAULT,
    untimed_ids: bool = False,
) -> None:
    """Store `message` for sending, in the transaction of this session (or SQLAlchemy connection).

    It is sent if that commits. As `publish`, which it calls; for an `AsyncSession`, use a synchronous one in a thread.

    Raises `NotInTransaction` when the engine is in AUTOCOMMIT mode; `UsageError` when its driver is not psycopg 3.
    """
    connection = session if isinstance(session, Connection) else session.connection()
    driver: Any = connection.connection.driver_connection
    publish(driver, message, schema=schema, untimed_ids=untimed_ids)


class HandlerSession(Session):
    """A SQLAlchemy session that flushes and undoes, but neither commits nor closes."""

    def commit(self) -> NoReturn:
        """Raises `UsageError`: the transaction is not the session's."""
        raise UsageError(_COMMIT)

    def begin(self, nested: bool = False) -> SessionTransaction:
        """`begin_nested()`, if `nested`; else raises `UsageError`."""
        if nested:
            return super().begin(nested=True)
        raise UsageError(_BEGIN)

    def close(self) -> NoReturn:
        """Raises `UsageError`: the end of its block closes it."""
        raise UsageError(_CLOSE)

    reset = close

    def end(self) -> None:
        """What the session holds is flushed, and its savepoint released. Called at the end of `session_in`."""
        # Of SQLAlchemy's own: to it, this session's transaction is a savepoint. Where a flush has failed and nobody has
        # called rollback(), this raises, so that half a flush is not committed.
        super().commit()


class _HandlerDialect(PGDialect_psycopg):
    """psycopg 3 on a connection whose transaction is another's: it is neither set up, ended nor closed here."""

    supports_statement_cache = True

    def on_connect(self) -> None:
        """Nothing: a connection comes here once for each message, and would collect a notice handler each time."""

    def do_commit(self, dbapi_connection: Any) -> None:  # noqa: ARG002 - the dialect's signature
        raise UsageError(_COMMIT)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Nothing: SQLAlchemy ends every connection so. A handler's own call is refused by an event before."""

    def do_close(self, dbapi_connection: Any) -> None:
        """Nothing: the consumer goes on with it."""


class _Lending(threading.local):
    """The connection that the engine is to take, on the thread that calls it."""

    tx: psycopg.Connection[Any] | None = None


_lending: Final = _Lending()


@cache
def _engine() -> Engine:
    """One for the process: it remembers how statements are compiled."""
    registry.register("postgresql.onceward", __name__, _HandlerDialect.__name__)
    # Without hstore of its own: it would be registered on each connection anew.
    return create_engine(
        "postgresql+onceward://", creator=lambda: _lending.tx, poolclass=NullPool, pool_reset_on_return=None,
        use_native_hstore=False,
    )  # fmt: skip


@contextmanager
def _connection_on(tx: psycopg.Connection[Any]) -> Iterator[Connection]:
    """SQLAlchemy's connection on `tx`, which takes its transaction for begun."""
    _lending.tx = tx
    try:
        connection = _engine().connect()
    finally:
        _lending.tx = None
    with connection:
        connection.begin()
        event.listen(connection, "rollback", _refuse_rollback)
        try:
            yield connection
        finally:
            event.remove(connection, "rollback", _refuse_rollback)


def _refuse_rollback(_connection: Connection) -> NoReturn:
    raise UsageError(_ROLLBACK)
