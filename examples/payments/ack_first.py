"""The payment service that acknowledges first, "so that nothing is ever charged twice".

ack before the work          a crash, a timeout, an error in between: the message is gone, the work is not done
publish after commit         as in `naive.py`: the event can be lost

What it gets wrong: it turns each duplicate into a loss. At-most-once is for what nobody misses. And when the ack itself is
lost on its way, it charges twice all the same.
"""

from __future__ import annotations

import json

from psycopg import Connection

from onceward.transport import ACK, Sink, Source
from payments.card import Card
from payments.naive import book, charge


def consume_charges(source: Source, conn: Connection, sink: Sink, card: Card) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            source.settle([(delivery, ACK)])
            charge(conn, sink, card, json.loads(delivery.body))


def consume_bookings(source: Source, conn: Connection) -> None:
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            source.settle([(delivery, ACK)])
            book(conn, json.loads(delivery.body))
