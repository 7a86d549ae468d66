"""Places orders, delivers every message twice, and counts what happened. Any Postgres will do; the tables are made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import Connection

from onceward import Message, migrate, publish, relay
from second_door.card import CardProvider
from second_door.jobs import JobSink
from second_door.loop import run


def prepare(conn: Connection[Any]) -> None:
    """Onceward's tables and the service's own exist."""
    migrate(conn)
    conn.execute((Path(__file__).parent / "schema.sql").read_bytes())


def place(conn: Connection[Any], amount: int) -> str:
    """An order, and the message that says so, in one transaction: both or neither. Its id."""
    order_id = str(uuid4())
    with conn.transaction():
        conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order_id, amount))
        conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order_id,))
        publish(conn, Message(type="order.placed", subject=order_id, data={"id": order_id, "amount": amount}))
    return order_id


def send_twice(conn: Connection[Any], dsn: str) -> None:
    """What is in the outbox is in the queue, every message twice: as after a confirmation that was lost."""
    relay(sink=lambda: JobSink(dsn), database=dsn, until_empty=True)
    conn.execute("INSERT INTO jobs (headers, body) SELECT headers, body FROM jobs WHERE deliveries = 0")


def main() -> None:
    parser = argparse.ArgumentParser(prog="second_door", description=__doc__)
    parser.add_argument("--database", metavar="DSN", required=True)
    parser.add_argument("--orders", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    card = CardProvider()
    with psycopg.connect(arguments.database, autocommit=True) as conn:
        prepare(conn)
        placed = [place(conn, amount=100) for _ in range(arguments.orders)]
        handled = 0
        for _ in ("order.placed", "order.paid"):
            send_twice(conn, arguments.database)
            handled += run(conn, card, until_empty=True)
        [(paid, balance)] = conn.execute(
            "SELECT count(*) FILTER (WHERE status = 'paid'), sum(balance)::bigint"
            " FROM orders JOIN accounts ON order_id = id WHERE id = ANY(%s)",
            (placed,),
        ).fetchall()
    sys.stdout.write(f"{len(placed)} orders, {handled} deliveries: every message came twice\n")
    sys.stdout.write(f"{paid} orders are paid, {len(card.charges)} cards were charged, {balance} is booked\n")


if __name__ == "__main__":
    main()
