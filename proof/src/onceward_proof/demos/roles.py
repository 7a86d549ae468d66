"""What a worker does in a demonstration, and in no variant of the proof."""

from __future__ import annotations

import json
from typing import Any, Final

from psycopg import Connection

from onceward.message import Message
from onceward.provider import ProviderProfile
from onceward.transport import ACK, Sink
from onceward_proof.workers.roles import consume
from onceward_proof.workers.worker import Worker
from payments import hardened, naive
from payments.card import Card, Order

# The provider's promise, an hour told as 0.2 s: the database's clock, which judges an intent's age, is never faked.
HOUR_SECONDS: Final = 0.2
SCALED: Final = ProviderProfile(
    name="stripe-v1, scaled", window_seconds=24 * HOUR_SECONDS, margin_seconds=3.2, call_timeout_seconds=3.0
)


def blind_charge(worker: Worker) -> None:
    """Sends the message's id as the key, as it should, and retries for as long as it takes, as it should not."""
    source, conn, sink, card = worker.source("order.placed"), worker.connect(), worker.sink(), worker.card()
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            _charge_with_key(conn, sink, card, delivery.headers["id"], json.loads(delivery.body))
            source.settle([(delivery, ACK)])


def _charge_with_key(conn: Connection, sink: Sink, card: Any, message_id: str, order: Order) -> None:
    paid = card.create(Card.request(order), key=message_id)
    conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
    naive.announce(sink, "order.paid", order)


def scaled_charge(worker: Worker) -> None:
    """The hardened charge, at a provider that forgets keys in seconds."""
    card = worker.card(SCALED.call_timeout_seconds)
    consume(worker, "charge", hardened.charges(card, lease_seconds=worker.setting.lease_seconds, provider=SCALED))


def resending_producer(worker: Worker) -> None:
    """Sends again until the queue confirms, each time a new message: the id is made per attempt."""
    conn, sink = worker.connect(), worker.sink()
    for order in worker.orders:
        store(conn, order)
        while sink.publish([Message(type="order.placed", subject=order["id"], data=order)])[0] is not None:
            pass


def store(conn: Connection, order: Order) -> None:
    """The order and its account are in the database; nothing is sent."""
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%(id)s, %(amount)s)", order)
        conn.execute("INSERT INTO accounts (order_id) VALUES (%(id)s)", order)
