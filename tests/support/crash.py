"""A child process that runs a consumer, or a relay, and kills itself by SIGKILL at a named point.

Children are forked from a server process that holds no thread and no connection (multiprocessing's forkserver).
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from typing import Any

import psycopg
from tests.support.points import Killer, Recorder
from tests.support.rows import CONSUMER, write_effect
from tests.support.shop import AT_ONCE
from tests.support.waiting import until

from onceward.consumer import Consumer, OpenConsumer
from onceward.consumer_loop import run
from onceward.message import Message
from onceward.outbox import publish
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.relay_loop import relay
from onceward.transport import Outcome
from onceward.transports import pgmq

QUEUE = "orders"
LEASE_SECONDS = 30.0
CHARGES = "CREATE TABLE charges (key text PRIMARY KEY, requests int NOT NULL DEFAULT 1)"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["onceward.consumer_loop", "onceward.relay_loop", "onceward.transports.pgmq", "psycopg_pool"]
)


def charge_at(dsn: str) -> Any:
    """A provider that charges once per key, and whose ledger outlives the caller: another database session."""

    def charge(_request: object, key: str) -> dict[str, str]:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(
                "INSERT INTO charges AS c (key) VALUES (%s) ON CONFLICT (key) DO UPDATE SET requests = c.requests + 1",
                (key,),
            )
        return {"id": f"ch_{key}"}

    return charge


def consumer(dsn: str, shape: str, first_fails: str = "") -> Consumer:
    """Writes one effect and publishes one message; the effectful one charges before. `first_fails`: it then raises."""
    attempts_max = 1 if first_fails == "park" else 10
    made = Consumer(
        CONSUMER, backoff=AT_ONCE, lease_seconds=LEASE_SECONDS, attempts_max=attempts_max, untimed_ids=True
    )  # fmt: skip
    charge = charge_at(dsn)

    def write(message: Message, tx: psycopg.Connection[Any]) -> None:
        write_effect(tx, message)
        publish(tx, Message(type="order.paid", subject=message.subject, data={"order": message.id}))
        if first_fails:
            raise RuntimeError(first_fails)

    def finish(message: Message, once: Once) -> None:
        once.effect("charge", charge, request=message.json(), provider=STRIPE_V1)
        with once.transaction() as tx:
            write(message, tx)

    if shape == "transactional":
        made.transactional("order.placed")(write)
    else:
        made.effectful("order.placed")(finish)
    return made


def start(target: Any, *args: Any) -> Any:
    child = _context.Process(target=target, args=args, daemon=True)
    child.start()
    return child


def died_by_sigkill(child: Any) -> bool:
    child.join(timeout=20)
    return bool(child.exitcode == -signal.SIGKILL)


def consume_until_killed(dsn: str, shape: str, point: str, passage: int = 1, first_fails: str = "") -> None:
    """In the child: `run`, with a Killer at the point."""
    logging.disable(logging.CRITICAL)
    source = lambda: pgmq.Source(QUEUE, dsn, visibility_seconds=60)  # noqa: E731
    run(consumer(dsn, shape, first_fails), source=source, database=dsn, threads=1, listeners=[Killer(point, passage)])


def relay_until_killed(dsn: str, point: str, attempts_max: int = 100) -> None:
    """In the child: `relay`, with a Killer at the point."""
    logging.disable(logging.CRITICAL)
    relay(
        sink=lambda: pgmq.Sink(QUEUE, dsn), database=dsn, poll_seconds=0.02, attempts_max=attempts_max,
        listeners=[Killer(point)],
    )  # fmt: skip


def consume_slowly(dsn: str, lock: int) -> None:
    """In the child: `run` on the main thread; each handler waits for an advisory lock that the test holds."""

    def handle(message: Message, tx: psycopg.Connection[Any]) -> None:
        tx.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
        write_effect(tx, message)

    made = Consumer(CONSUMER)
    made.transactional("order.placed")(handle)
    run(made, source=lambda: pgmq.Source(QUEUE, dsn, visibility_seconds=60), database=dsn, threads=1, prefetch=5)


def recover(dsn: str, shape: str, deliveries: int) -> Recorder:
    """A fresh consumer, here and in its own loop, until it has settled so many deliveries."""
    seen, settled = Recorder(), 0
    source = pgmq.Source(QUEUE, dsn, visibility_seconds=60)
    with OpenConsumer(consumer(dsn, shape), dsn, listeners=[seen], source=source) as opened:
        while settled < deliveries:
            for delivery in until(lambda: source.receive(10, 1.0).deliveries, "a delivery"):
                assert list(source.settle([(delivery, opened.deliver(delivery))])) == [Outcome.SETTLED]
                settled += 1
    source.close()
    return seen
