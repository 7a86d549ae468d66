"""The payment service on RabbitMQ, in pika's own idiom, as its tutorials write it: no Onceward anywhere.

publish after commit         a crash or a lost connection in between: the event is lost. Tutorials publish without confirms,
                             so a publish that never arrived is not even noticed
acknowledge after the work   right; but a crash before it, or a channel that the broker closes, and it comes again
no check for duplicates      so what comes again is charged, and booked, again
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pika
from psycopg import Connection

from payments.card import Card, Order


def place(conn: Connection, channel: Any, queues: Mapping[str, str], order: Order) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order["id"], order["amount"]))
        conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order["id"],))
    send(channel, queues["order.placed"], order)


def consume_charges(conn: Connection, channel: Any, queues: Mapping[str, str], card: Card) -> None:
    for order, tag in receive(channel, queues["order.placed"]):
        paid = card.create(Card.request(order), key=None)
        with conn.transaction():
            conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
        send(channel, queues["order.paid"], order)
        channel.basic_ack(tag)


def consume_bookings(conn: Connection, channel: Any, queues: Mapping[str, str]) -> None:
    for order, tag in receive(channel, queues["order.paid"]):
        with conn.transaction():
            conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))
        channel.basic_ack(tag)


def send(channel: Any, queue: str, order: Order) -> None:
    durable = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish(exchange="", routing_key=queue, body=json.dumps(order).encode(), properties=durable)


def receive(channel: Any, queue: str) -> Iterator[tuple[Order, int]]:
    """Each order with its delivery tag, for ever."""
    channel.basic_qos(prefetch_count=1)
    for method, _properties, body in channel.consume(queue):
        yield json.loads(body), method.delivery_tag
