"""The payment service with an inbox row in the handler's own transaction, and the card charged inside of it.

INSERT first                 right: two workers cannot both take the message, the second waits and is turned away
a fresh key for every call   a crash after the charge rolls the row back; the redelivery charges again, and no provider can
                             tell: the SDK makes a key up for each call unless it is given one
publish after commit         as in `naive.py`: the event can be lost

What it gets wrong: the database rolls back, the provider does not. (It also holds a transaction open while it waits for
somebody else's server.)
"""

from __future__ import annotations

import json

from psycopg import Connection

from onceward.transport import ACK, Sink, Source
from payments.card import Card, Order
from payments.naive import announce
from payments.select_then_act import id_of
from payments.textbook import book


def charge(conn: Connection, sink: Sink, card: Card, message_id: str, order: Order) -> None:
    with conn.transaction():
        taken = conn.execute("INSERT INTO processed (message_id) VALUES (%s) ON CONFLICT DO NOTHING", (message_id,))
        if taken.rowcount == 0:
            return
        paid = card.create(Card.request(order), key=None)
        conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
    announce(sink, "order.paid", order)


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
