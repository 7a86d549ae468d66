"""The payment service on SQS, in boto3's own idiom, as its tutorials write it: no Onceward anywhere.

publish after commit         a crash or a failed send in between: the event is lost
delete after the work        right; but a crash before it, or work that outlives the visibility timeout, and it comes again
no check for duplicates      so what comes again is charged, and booked, again
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from psycopg import Connection

from payments.card import Card, Order


def place(conn: Connection, sqs: Any, queues: Mapping[str, str], order: Order) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order["id"], order["amount"]))
        conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order["id"],))
    send(sqs, queues["order.placed"], order)


def consume_charges(conn: Connection, sqs: Any, queues: Mapping[str, str], card: Card) -> None:
    for order, receipt in receive(sqs, queues["order.placed"]):
        paid = card.create(Card.request(order), key=None)
        with conn.transaction():
            conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
        send(sqs, queues["order.paid"], order)
        sqs.delete_message(QueueUrl=queues["order.placed"], ReceiptHandle=receipt)


def consume_bookings(conn: Connection, sqs: Any, queues: Mapping[str, str]) -> None:
    for order, receipt in receive(sqs, queues["order.paid"]):
        with conn.transaction():
            conn.execute("UPDATE accounts SET balance = balance + %s WHERE order_id = %s", (order["amount"], order["id"]))
        sqs.delete_message(QueueUrl=queues["order.paid"], ReceiptHandle=receipt)


def send(sqs: Any, queue_url: str, order: Order) -> None:
    extra = {}
    if queue_url.endswith(".fifo"):
        extra = {"MessageGroupId": order["id"], "MessageDeduplicationId": f"{queue_url.rpartition('/')[2]}-{order['id']}"}
    sqs.send_message(QueueUrl=queue_url, MessageBody=json.dumps(order), **extra)


def receive(sqs: Any, queue_url: str) -> Iterator[tuple[Order, str]]:
    """Each order with its receipt handle, for ever."""
    while True:
        response = sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=1, WaitTimeSeconds=1)
        for message in response.get("Messages", []):
            yield json.loads(message["Body"]), message["ReceiptHandle"]
