"""`onceward bench local`: a transactional handler on Onceward beside the raw psycopg loop that does the same statements.

Side by side in one run: the two take turns, several rounds, and the median of the pairs' ratios is what counts. Absolute
rates are of this machine and this moment.

    memory   deliveries come from memory on both sides: what is left is the take, the handler's write and the commit
    pgmq     deliveries are read from, and archived in, a pgmq queue on both sides (the raw loop in batches of eight)
"""

from __future__ import annotations

import json as jsonlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from onceward import Consumer, Message, migrate, run
from onceward.message import uuid7
from onceward.testing.postgres import Cluster
from onceward.transport import Delivery, Outcome, Received, Settlement, Traits
from onceward.transports import pgmq

THREADS: Final = 8
ROUNDS: Final = 5
WARM_SECONDS: Final = 0.4
BATCH: Final = 8
BODY: Final = b'{"id": "O-1", "amount": 1200, "note": "' + b"x" * 160 + b'"}'
BUSINESS: Final = "INSERT INTO bookings (message_id, payload) VALUES (%s, %s)"
RAW_INBOX: Final = (
    "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) VALUES ('raw', %s, %s, 'done')"
    " ON CONFLICT (consumer, message_id) DO NOTHING RETURNING token"
)


class MemorySource:
    """Deliveries without end, from memory; settling costs nothing."""

    name = "memory"
    traits = Traits(lease_seconds=60.0, settle_fenced=True, counts_deliveries=True)

    def __init__(self) -> None:
        self._numbers = count(1)

    def receive(self, limit: int, wait_seconds: float) -> Received:  # noqa: ARG002 - the contract's signature
        return Received([self._delivery() for _ in range(limit)])

    def _delivery(self) -> Delivery:
        headers, body = Message(type="order.paid", body=BODY, subject="O-1").to_wire()
        return Delivery(id=str(next(self._numbers)), source=self.name, headers=headers, body=body, count=1)

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        return [Outcome.SETTLED] * len(entries)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:  # noqa: ARG002 - as above
        return [Outcome.SETTLED] * len(deliveries)

    def close(self) -> None:
        """Nothing is open."""


class Counter:
    """Handled messages, counted per thread so that counting is no lock to wait for."""

    def __init__(self) -> None:
        self._mine: dict[int, int] = {}

    def add(self) -> None:
        thread = threading.get_ident()
        self._mine[thread] = self._mine.get(thread, 0) + 1

    def total(self) -> int:
        return sum(list(self._mine.values()))


Start = Callable[[Counter, threading.Event], threading.Thread]


def measure(start: Start, seconds: float) -> float:
    """Messages per second, after a warm-up, over `seconds`."""
    counter, stop = Counter(), threading.Event()
    thread = start(counter, stop)
    while not counter.total():
        if not thread.is_alive():
            raise RuntimeError("the loop ended before it handled anything")
        time.sleep(0.01)
    time.sleep(WARM_SECONDS)
    first, began = counter.total(), time.perf_counter()
    time.sleep(seconds)
    rate = (counter.total() - first) / (time.perf_counter() - began)
    stop.set()
    thread.join()
    return rate


def ours(dsn: str, source: Callable[[], Any]) -> Start:
    """Our loop: a transactional handler that does one INSERT."""

    def start(counter: Counter, stop: threading.Event) -> threading.Thread:
        consumer = Consumer("ours")

        @consumer.transactional("order.paid")
        def book(message: Message, tx: psycopg.Connection) -> None:
            tx.execute(BUSINESS, (message.id, message.body))
            counter.add()

        options: dict[str, Any] = {"source": source, "database": dsn, "threads": THREADS, "stop": stop}
        thread = threading.Thread(target=run, args=(consumer,), kwargs=options)
        thread.start()
        return thread

    return start


def raw(dsn: str, feed: Callable[[str], Iterator[Delivery]]) -> Start:
    """The loop one would write by hand: the same inbox row, the same INSERT, one transaction, per thread one connection."""

    def start(counter: Counter, stop: threading.Event) -> threading.Thread:
        def work() -> None:
            with psycopg.connect(dsn, autocommit=True) as conn:
                for delivery in feed(dsn):
                    if stop.is_set():
                        return
                    message = Message.from_wire(delivery.headers, delivery.body)
                    with conn.transaction():
                        if conn.execute(RAW_INBOX, (message.id, message.fingerprint())).fetchone():
                            conn.execute(BUSINESS, (message.id, message.body))
                    counter.add()

        def all_threads() -> None:
            threads = [threading.Thread(target=work) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        thread = threading.Thread(target=all_threads)
        thread.start()
        return thread

    return start


def memory_feed(_dsn: str) -> Iterator[Delivery]:
    source = MemorySource()
    while True:
        yield from source.receive(BATCH, 0).deliveries


def pgmq_feed(dsn: str) -> Iterator[Delivery]:
    """Read a batch, hand it out, archive it together: what a careful hand-written loop does."""
    source = pgmq.Source("bench", dsn, archive=True)
    try:
        while True:
            deliveries = source.receive(BATCH, 1.0).deliveries
            yield from deliveries
            source.settle([(delivery, Settlement("ack")) for delivery in deliveries])
    finally:
        source.close()


def fill(dsn: str, messages: int) -> None:
    """The queue holds this many fresh messages, and nothing else."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE pgmq.q_bench, pgmq.a_bench, bookings")
        copy = "COPY pgmq.q_bench (vt, message, headers) FROM STDIN"
        with conn.cursor() as cursor, cursor.copy(copy) as rows:
            for _ in range(messages):
                headers, _ = Message(type="order.paid", body=BODY, subject="O-1", id=uuid7()).to_wire()
                rows.write_row(("2000-01-01", Jsonb({"data_base64": "e30="}), Jsonb(headers)))
        conn.execute("VACUUM ANALYZE pgmq.q_bench")


def compare(name: str, seconds: float, before: Callable[[], None], sides: dict[str, Start]) -> dict[str, Any]:
    """Rounds of both sides in turn, the first to go changing; medians, and the ratio pair by pair."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(ROUNDS + 1):
        for side in sorted(sides, reverse=bool(number % 2)):
            before()
            rate = measure(sides[side], seconds)
            if number:  # the first round warms caches and plans
                rates[side].append(rate)
    ratios = [a / b for a, b in zip(rates["ours"], rates["raw"], strict=True)]
    return {
        "name": name,
        "ours_per_second": round(statistics.median(rates["ours"])),
        "raw_per_second": round(statistics.median(rates["raw"])),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


@contextmanager
def database() -> Iterator[str]:
    with Cluster.start(name="bench") as cluster:
        with psycopg.connect(cluster.dsn, autocommit=True) as conn:
            migrate(conn)
            pgmq.install(conn)
            pgmq.create_queue(conn, "bench")
            conn.execute("CREATE TABLE bookings (message_id uuid NOT NULL, payload bytea NOT NULL)")
        yield cluster.dsn


def main(json: Path | None = None, seconds: float = 1.5) -> int:
    """Run both cases, `seconds` per side and round; print the ratios, and write them as JSON where asked."""
    with database() as dsn:

        def empty() -> None:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("TRUNCATE bookings, onceward.inbox")

        def filled() -> None:
            empty()
            fill(dsn, int(6000 * (seconds + WARM_SECONDS)))

        memory_sides = {"ours": ours(dsn, MemorySource), "raw": raw(dsn, memory_feed)}
        pgmq_sides = {"ours": ours(dsn, lambda: pgmq.Source("bench", dsn, archive=True)), "raw": raw(dsn, pgmq_feed)}
        cases = [compare("memory", seconds, empty, memory_sides), compare("pgmq", seconds, filled, pgmq_sides)]
    for case in cases:
        low, high = case["spread"]
        print(
            f"{case['name']:>7}: ours {case['ours_per_second']:,}/s, raw {case['raw_per_second']:,}/s, "
            f"ratio {case['ratio']:.2f} (pairs from {low:.2f} to {high:.2f}; {THREADS} threads, {ROUNDS} rounds in turn)"
        )
    if json is not None:
        json.write_text(jsonlib.dumps({"cases": cases}, indent=2) + "\n", encoding="utf-8")
    return 0
