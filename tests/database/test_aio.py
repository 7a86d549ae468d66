"""What only the door for asyncio can meet: the other kind of connection, and a task that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import order
from tests.support.waiting import until_any_blocked

from onceward import aio
from onceward.errors import UsageError
from onceward.inbox import Take, TakeResult
from onceward.message import Message
from onceward.provider import STRIPE_V1

Db = psycopg.Connection[Any]
INBOX, INTENTS = aio.Inbox(rows.CONSUMER), aio.Intents(rows.CONSUMER)
TAKE = Take(TakeResult.TAKEN, token=1)
CALLS: dict[str, Callable[[Any, Message], Awaitable[object]]] = {
    "register": lambda conn, _: INBOX.register(conn),
    "make_partition": INBOX.make_partition,
    "take": INBOX.take,
    "claim": INBOX.claim,
    "finish": lambda conn, message: INBOX.finish(conn, message, take=TAKE),
    "give_back": lambda conn, message: INBOX.give_back(conn, message, take=TAKE),
    "intend": lambda conn, message: INTENTS.intend(
        conn, message, take=TAKE, n=1, name="charge", request=1, provider=STRIPE_V1
    ),
    "record": lambda conn, message: INTENTS.record(conn, message, n=1, answer=1),
    "publish": aio.publish,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_synchronous_connection_is_refused(call: Callable[[Any, Message], Awaitable[object]], db: Db) -> None:
    async def try_it() -> None:
        with pytest.raises(UsageError, match="AsyncConnection is needed"):
            await call(db, order())

    asyncio.run(try_it())


def test_a_task_that_is_cancelled_in_a_take_leaves_nothing(dsn: str, db: Db) -> None:
    message = order()

    async def cancelled_while_it_waits() -> TakeResult:
        async with (
            await psycopg.AsyncConnection.connect(dsn) as holder,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as waiting,
        ):
            await holder.execute("LOCK TABLE onceward.inbox")
            claiming = asyncio.create_task(INBOX.claim(waiting, message))
            await asyncio.to_thread(until_any_blocked, db)
            claiming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await claiming
            await holder.rollback()
            assert rows.state(db, message) is None
            return (await INBOX.claim(waiting, message)).result

    assert asyncio.run(cancelled_while_it_waits()) is TakeResult.TAKEN


def test_two_tasks_on_two_connections_take_a_message_once(dsn: str, db: Db) -> None:
    message = order()

    async def take() -> TakeResult:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            taking = await INBOX.take(conn, message)
            if taking.result is TakeResult.TAKEN:
                await conn.execute("INSERT INTO effects (message_id) VALUES (%s)", (message.id,))
            return taking.result

    async def both() -> list[TakeResult]:
        return [*await asyncio.gather(take(), take())]

    results = asyncio.run(both())
    assert sorted(result.name for result in results) == ["DUPLICATE", "TAKEN"]
    assert rows.effects(db, message) == 1
