"""What a worker does in a demonstration, and in no variant of the proof."""

from __future__ import annotations

import json

from psycopg import Connection

from onceward.transport import ACK
from onceward_proof.workers.worker import Worker
from payments import naive
from payments.card import Card, Order


def blind_charge(worker: Worker) -> None:
    """Sends the message's id as the key, as it should, and retries for as long as it takes, as it should not."""
    source, conn, sink, card = worker.source("order.placed"), worker.connect(), worker.sink(), worker.card()
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            order = json.loads(delivery.body)
            charge = card.create(Card.request(order), key=delivery.headers["id"])
            conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (charge["id"], order["id"]))
            naive.announce(sink, "order.paid", order)
            source.settle([(delivery, ACK)])


def store(conn: Connection, order: Order) -> None:
    """The order and its account are in the database; nothing is sent."""
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%(id)s, %(amount)s)", order)
        conn.execute("INSERT INTO accounts (order_id) VALUES (%(id)s)", order)
