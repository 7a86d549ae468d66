"""The outbox row: "this message is to be sent", in the transaction of whoever wants it sent."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakSet

from psycopg import Connection
from psycopg.pq import TransactionStatus

from onceward.database import check_connection
from onceward.errors import NotInTransaction, UsageError
from onceward.message import Message, parse_uuid7
from onceward.statements import SCHEMA_DEFAULT, statements

# Connections whose open transaction holds an outbox row: the runtime nudges the relay after their commit.
_published: Final[WeakSet[Connection[Any]]] = WeakSet()


def publish(conn: Connection[Any], message: Message, *, schema: str = SCHEMA_DEFAULT, untimed_ids: bool = False) -> None:
    """Store `message` for sending, inside the transaction open on `conn`, which will commit durably.

    Its id must be a UUIDv7 (the default), because a consumer of ours refuses any other: no time in it says how long a
    duplicate can come. `untimed_ids` lets others through, for consumers that are not ours.

    Crash before commit: nothing is stored, nothing will be sent.
    Crash after commit: the relay finds the row and sends it.

    Raises `NotInTransaction` if `conn` would commit this row on its own; `UsageError` for another id, or for what is not a
    psycopg 3 connection.
    """
    check_in_transaction(conn)
    if not untimed_ids and parse_uuid7(message.id) is None:
        raise UsageError(
            f"the id {message.id[:80]!r} is not a UUIDv7: leave `id` out and keep the one that is made, or pass a UUIDv7 "
            "of your own (`untimed_ids=True` sends it all the same, but a consumer of ours would park it)"
        )
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
    """Raises `NotInTransaction` when the next statement on `conn` would be committed on its own; `UsageError` for what is
    not a psycopg 3 connection."""
    check_connection(conn)
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise NotInTransaction(
            "this connection is in autocommit mode and no transaction is open: use `with conn.transaction():`"
        )
