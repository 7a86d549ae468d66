"""The same service on Onceward: each decision is a row in a Postgres transaction.

outbox row with the order         the event is sent if, and only if, the order is committed
inbox row with the writes         a redelivery finds it, and is turned away
intent row before the call        a retry sends the same key, inside the provider's window; past it, it looks up
"""

from __future__ import annotations

from datetime import timedelta

from psycopg import Connection

from onceward import STRIPE_V1, Backoff, Consumer, Message, Once, ProviderProfile, publish
from payments.card import TIMEOUT_SECONDS, Card, Order

PROVIDER = STRIPE_V1.with_timeout(timeout_seconds=TIMEOUT_SECONDS)


def place(conn: Connection, order: Order) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order["id"], order["amount"]))
        conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order["id"],))
        publish(conn, Message(type="order.placed", subject=order["id"], data=order))


def charges(card: Card, *, lease_seconds: float = 30.0, provider: ProviderProfile = PROVIDER) -> Consumer:
    consumer = Consumer(
        "payments.charge",
        window=timedelta(days=30),
        lease_seconds=lease_seconds,
        backoff=Backoff(first_seconds=0.2, seconds_max=5.0),
    )

    @consumer.effectful("order.placed")
    def charge(message: Message, once: Once) -> None:
        order: Order = message.json()
        paid = once.effect("charge", card.create, request=Card.request(order), provider=provider, lookup=card.find)
        with once.transaction() as tx:
            tx.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
            publish(tx, Message(type="order.paid", subject=order["id"], data=order))

    return consumer


def ledger(*, lease_seconds: float = 30.0) -> Consumer:
    consumer = Consumer("ledger", lease_seconds=lease_seconds, backoff=Backoff(first_seconds=0.2, seconds_max=5.0))

    @consumer.transactional("order.paid")
    def book(message: Message, tx: Connection) -> None:
        order: Order = message.json()
        tx.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))

    return consumer
