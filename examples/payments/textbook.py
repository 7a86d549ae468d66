"""The payment service as the pattern is printed: a dedup table, and the message's id as the idempotency key.

    BEGIN; INSERT INTO charges (message_id, status) VALUES (..., 'pending') ON CONFLICT DO NOTHING;
    -- 0 rows inserted: already processed, skip
    COMMIT;
    -- call the provider with Idempotency-Key = message_id
    UPDATE charges SET status = 'done', charge_id = ... WHERE message_id = ...;

0 rows, so skip              a crash between the two commits: the row is there, the work is not done, and nobody does it
publish after commit         as in `naive.py`: the event can be lost

What it gets wrong: a row that says "somebody began" is taken for one that says "somebody finished". It never charges twice;
it loses the charge, or charges and never says so.
"""

from __future__ import annotations

import json

from psycopg import Connection

from onceward.transport import ACK, Sink, Source
from payments.card import Card, Order
from payments.naive import announce
from payments.select_then_act import id_of


def charge(conn: Connection, sink: Sink, card: Card, message_id: str, order: Order) -> None:
    taken = conn.execute(
        "INSERT INTO charges (message_id, status) VALUES (%s, 'pending') ON CONFLICT DO NOTHING", (message_id,)
    )
    if taken.rowcount == 0:
        return  # already processed, it says
    paid = card.create(Card.request(order), key=message_id)
    with conn.transaction():
        conn.execute("UPDATE charges SET status = 'done', charge_id = %s WHERE message_id = %s", (paid["id"], message_id))
        conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
    announce(sink, "order.paid", order)


def book(conn: Connection, message_id: str, order: Order) -> None:
    """One transaction, no outside effect: here the pattern holds."""
    with conn.transaction():
        taken = conn.execute("INSERT INTO processed (message_id) VALUES (%s) ON CONFLICT DO NOTHING", (message_id,))
        if taken.rowcount:
            conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))


def consume_charges(source: Source, conn: Connection, sink: Sink, card: Card) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            charge(conn, sink, card, id_of(delivery), json.loads(delivery.body))
            source.settle([(delivery, ACK)])


def consume_bookings(source: Source, conn: Connection) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            book(conn, id_of(delivery), json.loads(delivery.body))
            source.settle([(delivery, ACK)])
