"""Places orders, delivers every message twice, and counts what happened. Any Postgres will do; the tables are made."""

from __future__ import annotations

import argparse
import asyncio
import sys

import psycopg

from second_door.__main__ import place, prepare, send_twice
from second_door.card import CardProvider
from second_door_async.handlers import AsyncCards
from second_door_async.loop import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="second_door_async", description=__doc__)
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
            handled += asyncio.run(run(arguments.database, AsyncCards(card), until_empty=True))
        [(paid, balance)] = conn.execute(
            "SELECT count(*) FILTER (WHERE status = 'paid'), sum(balance)::bigint"
            " FROM orders JOIN accounts ON order_id = id WHERE id = ANY(%s)",
            (placed,),
        ).fetchall()
    sys.stdout.write(f"{len(placed)} orders, {handled} deliveries: every message came twice\n")
    sys.stdout.write(f"{paid} orders are paid, {len(card.charges)} cards were charged, {balance} is booked\n")


if __name__ == "__main__":
    main()
