"""`onceward bench broker`: a hardened consumer beside the bare at-least-once one, on a real broker, in one run.

    hardened        Onceward as it ships: a transactional handler with one INSERT, 8 threads
    bare            the broker's own client in its own idiom, with the same INSERT, and no deduplication: one thread, as its
                    tutorials write it
    bare-threads    the same in 8 threads, each with a client and a connection of its own

Each side is one process. The sides take turns, several rounds, over equally many messages; what counts is the median of the
rounds' ratios. A rate is taken from the rows that were written, between the first commit and the last. Latency is from
before the publish to the commit of the handler's row, at a fixed rate of messages, one at a time.
"""

from __future__ import annotations

import json as jsonlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg

from onceward import Consumer, Message, migrate, run
from onceward.queue_urls import KafkaTopic, PgmqQueue, QueueUrl, RabbitmqQueue, SqsQueue, parse
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq

THREADS: Final = 8
ROUNDS: Final = 3
MESSAGES: Final = {"pgmq": 6000, "sqs": 1500, "rabbitmq": 6000, "kafka": 6000}
LATENCY_RATE: Final = 50  # messages a second
LATENCY_SECONDS: Final = 8
STALLED_SECONDS: Final = 60
NOTE: Final = "x" * 160
INSERT: Final = "INSERT INTO bookings (sent_at, payload) VALUES (%s, %s)"
Side = Callable[[str, QueueUrl], None]
_names = count(1)


# ---- the sides: each runs in a process of its own, until that is killed ----------------------------------------------


def hardened(dsn: str, queue: QueueUrl) -> None:
    consumer = Consumer("bench")

    @consumer.transactional("order.paid")
    def book(message: Message, tx: psycopg.Connection) -> None:
        tx.execute(INSERT, (message.json()["sent_at"], message.body))

    run(consumer, source=queue.source(consumer=consumer.name), database=dsn, threads=THREADS)


def bare(dsn: str, queue: QueueUrl) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:

        def write(body: bytes | str) -> None:
            conn.execute(INSERT, (jsonlib.loads(body)["sent_at"], body if isinstance(body, bytes) else body.encode()))

        match queue:
            case PgmqQueue():
                bare_pgmq(queue, write)
            case SqsQueue():
                bare_sqs(queue, write)
            case RabbitmqQueue():
                bare_rabbitmq(queue, write)
            case KafkaTopic():
                bare_kafka(queue, write)


def bare_threads(dsn: str, queue: QueueUrl) -> None:
    threads = [threading.Thread(target=bare, args=(dsn, queue)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


Write = Callable[[bytes | str], None]


def bare_pgmq(queue: PgmqQueue, write: Write) -> None:
    import base64  # noqa: PLC0415

    with psycopg.connect(queue.database, autocommit=True) as conn:
        while True:
            rows = conn.execute(
                "SELECT msg_id, message FROM pgmq.read_with_poll(%s, 30, 10, 1, 50)", (queue.name,)
            ).fetchall()
            for _, message in rows:
                write(base64.b64decode(message["data_base64"]))
            if rows:
                conn.execute("SELECT pgmq.delete(%s, %s::bigint[])", (queue.name, [row[0] for row in rows]))


def bare_sqs(queue: SqsQueue, write: Write) -> None:
    import boto3  # noqa: PLC0415

    sqs = boto3.session.Session().client("sqs", endpoint_url=os.environ.get("ONCEWARD_SQS_ENDPOINT") or None)
    url = sqs.get_queue_url(QueueName=queue.name)["QueueUrl"]
    while True:
        messages = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages", [])
        for message in messages:
            write(message["Body"])
        if messages:
            entries = [{"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(messages)]
            sqs.delete_message_batch(QueueUrl=url, Entries=entries)


def bare_rabbitmq(queue: RabbitmqQueue, write: Write) -> None:
    import pika  # noqa: PLC0415

    channel = pika.BlockingConnection(pika.URLParameters(queue.url)).channel()
    channel.basic_qos(prefetch_count=50)
    for method, _properties, body in channel.consume(queue.name):
        write(body)
        channel.basic_ack(method.delivery_tag)


def bare_kafka(queue: KafkaTopic, write: Write) -> None:
    from confluent_kafka import Consumer as KafkaConsumer  # noqa: PLC0415

    config = {"bootstrap.servers": queue.brokers, "group.id": queue.settings["group"], "auto.offset.reset": "earliest"}
    consumer = KafkaConsumer({**config, "enable.auto.commit": False})
    consumer.subscribe([queue.name])
    while True:
        records = [record for record in consumer.consume(100, timeout=1.0) if record.error() is None]
        for record in records:
            write(record.value() or b"null")
        if records:
            consumer.commit(asynchronous=False)


SIDES: Final[dict[str, Side]] = {"hardened": hardened, "bare": bare, "bare-threads": bare_threads}


@contextmanager
def running(side: str, dsn: str, queue: QueueUrl) -> Iterator[None]:
    # Spawned: a client that was used in this process does not survive a fork.
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(side, dsn, queue))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _work(side: str, dsn: str, queue: QueueUrl) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    SIDES[side](dsn, queue)


# ---- measuring -------------------------------------------------------------------------------------------------------


def an_order() -> Message:
    return Message(type="order.paid", data={"sent_at": time.time(), "note": NOTE}, subject=f"O-{next(_names)}")


def fill(queue: QueueUrl, messages: int) -> None:
    sink = queue.sink(queue.name)()
    try:
        sent = 0
        while sent < messages:
            batch = [an_order() for _ in range(min(sink.traits.publish_max, messages - sent))]
            if failed := [error for error in sink.publish(batch) if error is not None]:
                raise failed[0]
            sent += len(batch)
    finally:
        sink.close()


def wait_for(conn: psycopg.Connection[Any], messages: int) -> None:
    seen, moved_at = -1, time.monotonic()
    while seen < messages:
        [(now,)] = conn.execute("SELECT count(*) FROM bookings")
        if now != seen:
            seen, moved_at = now, time.monotonic()
        if time.monotonic() - moved_at > STALLED_SECONDS:
            raise RuntimeError(f"no progress for {STALLED_SECONDS} s: {seen} of {messages} messages were handled")
        time.sleep(0.05)


def throughput(side: str, dsn: str, queue: QueueUrl, messages: int) -> float:
    """Messages a second between the first commit and the last."""
    fill(queue, messages)
    with psycopg.connect(dsn, autocommit=True) as conn, running(side, dsn, queue):
        wait_for(conn, messages)
        [(seconds,)] = conn.execute("SELECT extract(epoch FROM max(at) - min(at))::float8 FROM bookings")
    return (messages - 1) / float(seconds)


def latency(side: str, dsn: str, queue: QueueUrl) -> dict[str, float]:
    """Milliseconds from before the publish to the commit, at a fixed rate."""
    sink = queue.sink(queue.name)()
    messages = LATENCY_RATE * LATENCY_SECONDS
    with psycopg.connect(dsn, autocommit=True) as conn, running(side, dsn, queue):
        try:
            sink.publish([an_order()])
            wait_for(conn, 1)  # it has started, and has joined its group
            conn.execute("TRUNCATE bookings")
            began = time.monotonic()
            for number in range(messages):
                time.sleep(max(0.0, began + number / LATENCY_RATE - time.monotonic()))
                sink.publish([an_order()])
            wait_for(conn, messages)
        finally:
            sink.close()
        rows = conn.execute("SELECT (extract(epoch FROM at) - sent_at) * 1000 FROM bookings ORDER BY 1").fetchall()
    took = [float(row[0]) for row in rows]
    return {"p50_ms": round(statistics.median(took), 1), "p99_ms": round(took[int(len(took) * 0.99) - 1], 1)}


@contextmanager
def fresh(dsn: str, where: str) -> Iterator[QueueUrl]:
    """A queue that nothing is in, and empty tables: each side and round has its own."""
    queue = parse(where.format(name=f"bench_{os.getpid()}_{next(_names)}"), database=dsn)
    queue.create()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE bookings, onceward.inbox")
    yield queue


def where_is(kind: str) -> str:
    """The URL of a queue at the server that the environment names, with a place for its name."""
    match kind:
        case "pgmq":
            return "pgmq:{name}"
        case "sqs":
            return "sqs://{name}"
        case "rabbitmq":
            return os.environ["ONCEWARD_RABBITMQ_URL"] + "?queue={name}"
        case "kafka":
            return f"kafka://{os.environ['ONCEWARD_KAFKA_BOOTSTRAP']}/{{name}}?group=bench&partitions={THREADS}"
        case _:
            raise ValueError(kind)


@contextmanager
def database() -> Iterator[str]:
    with Cluster.start(name="bench") as cluster:
        with psycopg.connect(cluster.dsn, autocommit=True) as conn:
            migrate(conn)
            pgmq.install(conn)
            conn.execute(
                "CREATE TABLE bookings (sent_at double precision NOT NULL, payload bytea NOT NULL,"
                " at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
        yield cluster.dsn


def compare(kind: str, say: Callable[[str], None]) -> dict[str, Any]:
    where, rates = where_is(kind), {side: list[float]() for side in SIDES}
    with database() as dsn:
        for number in range(ROUNDS + 1):
            for side in sorted(SIDES, reverse=bool(number % 2)):
                with fresh(dsn, where) as queue:
                    rate = throughput(side, dsn, queue, MESSAGES[kind] // (1 if number else 4))
                say(f"{kind}: {side} {rate:,.0f}/s" + ("" if number else " (warming up: not counted)"))
                if number:
                    rates[side].append(rate)
        delays = {}
        for side in SIDES:
            with fresh(dsn, where) as queue:
                delays[side] = latency(side, dsn, queue)
    return {
        "queue": kind,
        "messages": MESSAGES[kind],
        "sides": [
            {"side": side, "per_second": round(statistics.median(rates[side])), **delays[side]} for side in SIDES
        ],
        "ratios": {
            side: _ratio(rates["hardened"], rates[side]) for side in SIDES if side != "hardened"
        },
    }  # fmt: skip


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2), "max": round(max(ratios), 2)}


def main(kind: str, json: Path | None = None) -> int:
    """Compare on one broker; print rates, ratios and latencies, and write them as JSON where asked."""
    result = compare(kind, lambda line: print(line, flush=True))
    for side in result["sides"]:
        print(
            f"{kind}: {side['side']:<12} {side['per_second']:>6,}/s;"
            f" at {LATENCY_RATE}/s p50 {side['p50_ms']} ms, p99 {side['p99_ms']} ms"
        )
    for side, ratio in result["ratios"].items():
        print(
            f"{kind}: hardened ÷ {side} = {ratio['median']:.2f}"
            f" (rounds from {ratio['min']:.2f} to {ratio['max']:.2f}; {ROUNDS} rounds in turn)"
        )
    if json is not None:
        json.write_text(jsonlib.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0
