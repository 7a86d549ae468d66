"""The payment service on Kafka, in confluent-kafka's own idiom, as its tutorials write it: no Onceward anywhere.

publish after commit         a crash in between: the event is lost
commit after the work        right; but a crash before it, or a rebalance amid the work, and it comes again
no check for duplicates      so what comes again is charged, and booked, again. An idempotent producer, or a transaction of
                             Kafka's, changes nothing about that: neither the card nor the database takes part in it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer, KafkaException, Message, Producer
from psycopg import Connection

from payments.card import Card, Order


def place(conn: Connection, producer: Producer, topics: Mapping[str, str], order: Order) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order["id"], order["amount"]))
        conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order["id"],))
    send(producer, topics["order.placed"], order)


def consume_charges(
    conn: Connection, consumer: Consumer, producer: Producer, topics: Mapping[str, str], card: Card
) -> None:
    consumer.subscribe([topics["order.placed"]])
    for order, message in receive(consumer):
        paid = card.create(Card.request(order), key=None)
        with conn.transaction():
            conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
        send(producer, topics["order.paid"], order)
        consumer.commit(message=message, asynchronous=False)


def consume_bookings(conn: Connection, consumer: Consumer, topics: Mapping[str, str]) -> None:
    consumer.subscribe([topics["order.paid"]])
    for order, message in receive(consumer):
        with conn.transaction():
            conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))
        consumer.commit(message=message, asynchronous=False)


def send(producer: Producer, topic: str, order: Order) -> None:
    producer.produce(topic, key=order["id"], value=json.dumps(order))
    producer.flush()


def receive(consumer: Consumer) -> Iterator[tuple[Order, Message]]:
    """Each order with its record, for ever."""
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        error = message.error()
        if error is not None:
            raise KafkaException(error)
        yield json.loads(message.value() or b"null"), message
