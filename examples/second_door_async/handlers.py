"""Both shapes of a handler, for asyncio. Each answers with what the queue is to be told."""

from __future__ import annotations

from typing import Any, assert_never

from psycopg import AsyncConnection

from onceward import (
    ACK,
    STRIPE_V1,
    Intent,
    IntentResult,
    LeaseLost,
    Message,
    RecordResult,
    Settlement,
    Take,
    TakeResult,
)
from onceward.aio import Inbox, Intents, publish
from second_door.card import CardDeclined, CardProvider
from second_door.handlers import WINDOW, SetAside, settlement_of

LEDGER = Inbox("shop.ledger", window=WINDOW)
# No heartbeat extends a claim here: the lease must outlast all of the calls and the transaction behind them.
CHARGES = Inbox("shop.charges", window=WINDOW, lease_seconds=120)
INTENTS = Intents("shop.charges")


async def book(conn: AsyncConnection[Any], message: Message) -> Settlement:
    """The account is credited in the transaction in which the message becomes done."""
    order = message.json()
    async with conn.transaction():
        take = await LEDGER.take(conn, message)
        if take.result is TakeResult.TAKEN:
            await conn.execute(
                "UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"])
            )
    return settlement_of(take)


async def charge(conn: AsyncConnection[Any], message: Message, card: AsyncCards) -> Settlement:
    """The card is charged under a claim; then the order is paid, in the transaction in which the message becomes done."""
    take = await CHARGES.claim(conn, message)
    if take.result is not TakeResult.TAKEN:
        return settlement_of(take)
    try:
        answer, refused = await ask(conn, message, take, card)
        await finish(conn, message, take, answer, refused=refused)
    except Exception:
        # Without this, the redelivery would wait for the lease to run out; as it does after a crash, and after a task that
        # was cancelled.
        await CHARGES.give_back(conn, message, take=take)
        raise
    return ACK


async def ask(
    conn: AsyncConnection[Any], message: Message, take: Take, card: AsyncCards, *, checked: bool = False
) -> tuple[Any, bool]:
    """The provider's answer, and whether it refused: asked for now, or recorded by an earlier attempt."""
    order = message.json()
    request = {"amount": order["amount"], "currency": "eur"}
    intent = await INTENTS.intend(
        conn, message, take=take, n=1, name="charge", request=request, provider=STRIPE_V1, checked=checked
    )
    match intent.result:
        case IntentResult.CALL:
            answer, refused = await call(card, request, intent.key)
        case IntentResult.CHECK:
            # Somebody decided that it had not happened, and may be wrong: it is looked up before the call.
            found = await find(card, intent)
            if found is None:
                return await ask(conn, message, take, card, checked=True)
            answer, refused = found, False
        case IntentResult.ANSWERED:
            return intent.answer, intent.refused
        case IntentResult.LOOK_UP:
            found = await find(card, intent)
            if found is None:
                raise SetAside("nobody knows whether the card was charged: look it up, and record the answer")
            answer, refused = found, False
        case IntentResult.CHANGED:
            raise SetAside(intent.detail)
        case IntentResult.LEASE_LOST:
            raise LeaseLost("another worker has this message")
        case _:
            assert_never(intent.result)
    record = await INTENTS.record(conn, message, n=1, answer=answer, refused=refused)
    if record.result is not RecordResult.RECORDED:
        raise SetAside(record.detail)
    return answer, refused


class AsyncCards:
    """The provider of `second_door`, as a client of asyncio has it."""

    def __init__(self, provider: CardProvider) -> None:
        self._provider = provider

    async def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        """The charge under this key, made if there was none. Raises `CardDeclined`."""
        return self._provider.charge(request, key)

    async def find(self, key: str) -> dict[str, Any] | None:
        """The charge that was made under this key, if there is one."""
        return self._provider.find(key)


async def call(card: AsyncCards, request: dict[str, Any], key: str) -> tuple[Any, bool]:
    """What the provider says now, and whether it refused."""
    try:
        return await card.charge(request, key), False
    except CardDeclined as error:
        return {"reason": str(error)}, True


async def find(card: AsyncCards, intent: Intent) -> Any:
    """What the provider knows of the effect, under whichever key it was called; None: nothing."""
    for key in intent.keys:
        if (answer := await card.find(key)) is not None:
            return answer
    return None


async def finish(conn: AsyncConnection[Any], message: Message, take: Take, answer: Any, *, refused: bool) -> None:
    """The message is done, with these writes, or none of it."""
    order = message.json()
    async with conn.transaction():
        # First of all: its row lock shuts out whoever would take the message over.
        if not await CHARGES.finish(conn, message, take=take):
            raise LeaseLost("another worker has this message")
        if refused:
            await conn.execute("UPDATE orders SET status = 'declined' WHERE id = %s", (order["id"],))
        else:
            await conn.execute(
                "UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (answer["id"], order["id"])
            )
            await publish(conn, Message(type="order.paid", subject=order["id"], data=order))
