"""The outbox row: "this message is to be sent", in the transaction of whoever wants it sent."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakSet

from psycopg import Connection
from psycopg.pq import TransactionStatus

from onceward.errors import NotInTransaction
from onceward.message import Message
from onceward.statements import SCHEMA_DEFAULT, statements

# Connections whose open transaction holds an outbox row: the runtime nudges the relay after their commit.
_published: Final[WeakSet[Connection[Any]]] = WeakSet()


def publish(conn: Connection[Any], message: Message, *, schema: str = SCHEMA_DEFAULT) -> None:
    """Store `message` for sending, inside the transaction open on `conn`.

    Crash before commit: nothing is stored, nothing will be sent.
    Crash after commit: the relay finds the row and sends it.

    Raises `NotInTransaction` if `conn` would commit this row on its own.
    """
    check_in_transaction(conn)
    conn.execute(statements(schema)["outbox_insert"], outbox_row(message))
    _published.add(conn)


def outbox_row(message: Message) -> dict[str, Any]:
    """The columns of one outbox row; the aggregate type is the first part of the message's type."""
    return {
        "id": message.id,
        "aggregatetype": message.type.split(".", 1)[0],
        "aggregateid": message.subject,
        "type": message.type,
        "source": message.source,
        "time": message.time,
        "traceparent": message.traceparent,
        "payload": message.body,
    }


def take_published(conn: Connection[Any]) -> bool:
    """Whether something was published on `conn` since the last time that this was asked."""
    if conn in _published:
        _published.discard(conn)
        return True
    return False


def check_in_transaction(conn: Connection[Any]) -> None:
    """Raises `NotInTransaction` when the next statement on `conn` would be committed on its own."""
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise NotInTransaction(
            "this connection is in autocommit mode and no transaction is open: use `with conn.transaction():`"
        )
