"""The payment service that sends again when no confirmation came, "so that no event is ever lost".

send until it is confirmed    right: a publish that failed is not given up
a fresh id for each attempt   the queue may have stored the first: two events, and no consumer can tell that they are one
publish after commit          as in `naive.py`: a crash in between loses the event

What it gets wrong: a lost confirmation looks exactly like a lost event. Whoever sends again must send the same message,
under the id that it was given once.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from psycopg import Connection

from onceward.message import Message
from onceward.transport import ACK, Sink, Source
from payments.card import Card, Order
from payments.naive import book

log = logging.getLogger("payments.resend")
ATTEMPTS: Final = 5


def place(conn: Connection, sink: Sink, order: Order) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order["id"], order["amount"]))
        conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order["id"],))
    announce(sink, "order.placed", order)


def charge(conn: Connection, sink: Sink, card: Card, order: Order) -> None:
    paid = card.create(Card.request(order), key=None)
    with conn.transaction():
        conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
    announce(sink, "order.paid", order)


def announce(sink: Sink, message_type: str, order: Order) -> None:
    """Sent until the queue confirms it, as most clients do by default."""
    for _ in range(ATTEMPTS):
        errors = sink.publish([Message(type=message_type, subject=order["id"], data=order)])
        if not any(errors):
            return
    log.error("could not publish %s of %s: %s", message_type, order["id"], errors[0])


def consume_charges(source: Source, conn: Connection, sink: Sink, card: Card) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            charge(conn, sink, card, json.loads(delivery.body))
            source.settle([(delivery, ACK)])


def consume_bookings(source: Source, conn: Connection) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            book(conn, json.loads(delivery.body))
            source.settle([(delivery, ACK)])
