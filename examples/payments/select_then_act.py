"""The payment service that looks first: "have I seen this message? then skip it".

SELECT, then act             two workers look at the same time, both see nothing, both act
remembered after the call    a crash after the charge: nothing is remembered, the redelivery charges again
publish after commit         as in `naive.py`: the event can be lost

What it gets wrong: between the look and the act is a gap. Only an INSERT can look and take in one step.
"""

from __future__ import annotations

import json

from psycopg import Connection

from onceward.transport import ACK, Delivery, Sink, Source
from payments.card import Card, Order
from payments.naive import announce


def charge(conn: Connection, sink: Sink, card: Card, message_id: str, order: Order) -> None:
    if is_processed(conn, message_id):
        return
    paid = card.create(Card.request(order), key=None)
    with conn.transaction():
        conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
        conn.execute("INSERT INTO processed (message_id) VALUES (%s)", (message_id,))
    announce(sink, "order.paid", order)


def book(conn: Connection, message_id: str, order: Order) -> None:
    if is_processed(conn, message_id):
        return
    with conn.transaction():
        conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))
        conn.execute("INSERT INTO processed (message_id) VALUES (%s)", (message_id,))


def is_processed(conn: Connection, message_id: str) -> bool:
    return conn.execute("SELECT 1 FROM processed WHERE message_id = %s", (message_id,)).fetchone() is not None


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


def id_of(delivery: Delivery) -> str:
    return delivery.headers["id"]
