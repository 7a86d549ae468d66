"""The payment service as one writes it first. It works, until something dies at the wrong moment.

publish after commit         a crash or a failed publish in between: the event is lost
no check for duplicates      a redelivery charges, and books, again
a new key for every call     so the provider cannot tell a retry from a second order
"""

from __future__ import annotations

import json
import logging

from psycopg import Connection

from onceward.message import Message
from onceward.transport import ACK, Sink, Source
from payments.card import Card, Order

log = logging.getLogger("payments.naive")


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


def book(conn: Connection, order: Order) -> None:
    with conn.transaction():
        conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))


def announce(sink: Sink, message_type: str, order: Order) -> None:
    """The order stands; if the event cannot be sent, all that is left is a line in the log."""
    for error in sink.publish([Message(type=message_type, subject=order["id"], data=order)]):
        if error is not None:
            log.error("could not publish %s of %s: %s", message_type, order["id"], error)


def consume_charges(source: Source, conn: Connection, sink: Sink, card: Card) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            charge(conn, sink, card, json.loads(delivery.body))
            source.settle([(delivery, ACK)])  # after the work, as every tutorial says


def consume_bookings(source: Source, conn: Connection) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            book(conn, json.loads(delivery.body))
            source.settle([(delivery, ACK)])
