"""Both shapes of a handler at the second door. Each answers with what the queue is to be told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_never

from psycopg import Connection

from onceward import (
    ACK,
    STRIPE_V1,
    Inbox,
    Intent,
    IntentResult,
    Intents,
    LeaseLost,
    Message,
    RecordResult,
    Settlement,
    Take,
    TakeResult,
    publish,
    release,
)
from second_door.card import CardDeclined, CardProvider

WINDOW = timedelta(days=30)
LEDGER = Inbox("shop.ledger", window=WINDOW)
# No heartbeat extends a claim here: the lease must outlast all of the calls and the transaction behind them.
CHARGES = Inbox("shop.charges", window=WINDOW, lease_seconds=120)
INTENTS = Intents("shop.charges")


class SetAside(Exception):
    """No retry can help: a person must look at the message. The text is the reason."""


def settlement_of(take: Take) -> Settlement:
    """What the queue is told after a take. Raises `SetAside`."""
    match take.result:
        case TakeResult.TAKEN | TakeResult.DUPLICATE:
            return ACK
        case TakeResult.IN_FLIGHT:
            return release(take.retry_after_seconds)
        case TakeResult.CONFLICT | TakeResult.OUTSIDE_WINDOW:
            raise SetAside(f"{take.result.value}: {take.detail}")
        case _:
            assert_never(take.result)


def book(conn: Connection[Any], message: Message) -> Settlement:
    """The account is credited in the transaction in which the message becomes done."""
    order = message.json()
    with conn.transaction():
        take = LEDGER.take(conn, message)
        if take.result is TakeResult.TAKEN:
            conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))
    return settlement_of(take)


def charge(conn: Connection[Any], message: Message, card: CardProvider) -> Settlement:
    """The card is charged under a claim; then the order is paid, in the transaction in which the message becomes done."""
    take = CHARGES.claim(conn, message)
    if take.result is not TakeResult.TAKEN:
        return settlement_of(take)
    try:
        answer, refused = ask(conn, message, take, card)
        finish(conn, message, take, answer, refused=refused)
    except Exception:
        # Without this, the redelivery would wait for the lease to run out.
        CHARGES.give_back(conn, message, take=take)
        raise
    return ACK


def ask(conn: Connection[Any], message: Message, take: Take, card: CardProvider) -> tuple[Any, bool]:
    """The provider's answer, and whether it refused: asked for now, or recorded by an earlier attempt."""
    order = message.json()
    request = {"amount": order["amount"], "currency": "eur"}
    intent = INTENTS.intend(conn, message, take=take, n=1, name="charge", request=request, provider=STRIPE_V1)
    match intent.result:
        case IntentResult.CALL:
            answer, refused = call(card, request, intent.key)
        case IntentResult.CHECK:
            # Somebody decided that it had not happened, and may be wrong: it is looked up once more before the call.
            found = find(card, intent)
            answer, refused = (found, False) if found is not None else call(card, request, intent.key)
        case IntentResult.ANSWERED:
            return intent.answer, intent.refused
        case IntentResult.LOOK_UP:
            found = find(card, intent)
            if found is None:
                raise SetAside("nobody knows whether the card was charged: look it up, and record the answer")
            answer, refused = found, False
        case IntentResult.CHANGED:
            raise SetAside(intent.detail)
        case IntentResult.LEASE_LOST:
            raise LeaseLost("another worker has this message")
        case _:
            assert_never(intent.result)
    record = INTENTS.record(conn, message, n=1, answer=answer, refused=refused)
    if record.result is not RecordResult.RECORDED:
        raise SetAside(record.detail)
    return answer, refused


def find(card: CardProvider, intent: Intent) -> Any:
    """What the provider knows of the effect, under any key that it may have happened under; None: nothing."""
    return next((found for key in intent.keys_to_look_up if (found := card.find(key)) is not None), None)


def call(card: CardProvider, request: dict[str, Any], key: str) -> tuple[Any, bool]:
    """What the provider says now, and whether it refused."""
    try:
        return card.charge(request, key), False
    except CardDeclined as error:
        return {"reason": str(error)}, True


def finish(conn: Connection[Any], message: Message, take: Take, answer: Any, *, refused: bool) -> None:
    """The message is done, with these writes, or none of it."""
    order = message.json()
    with conn.transaction():
        # First of all: its row lock shuts out whoever would take the message over.
        if not CHARGES.finish(conn, message, take=take):
            raise LeaseLost("another worker has this message")
        if refused:
            conn.execute("UPDATE orders SET status = 'declined' WHERE id = %s", (order["id"],))
        else:
            conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (answer["id"], order["id"]))
            publish(conn, Message(type="order.paid", subject=order["id"], data=order))
