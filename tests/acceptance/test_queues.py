"""One consumer module, unchanged, on every queue: what differs is the word behind --queue."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import onceward, refused, running
from tests.support import rows
from tests.support.brokers import fresh
from tests.support.deliveries import order
from tests.support.waiting import until

from onceward.outbox import publish

Db = psycopg.Connection[Any]
SHOP = """
    from onceward import Consumer, Message, publish

    orders = Consumer("payments")

    @orders.transactional("order.placed")
    def note(message, tx):
        tx.execute("INSERT INTO effects (message_id) VALUES (%s)", (message.id,))
        publish(tx, Message(type="order.noted", subject=message.subject, data=message.json()))

    ledger = Consumer("ledger")

    @ledger.transactional("order.noted")
    def book(message, tx):
        tx.execute("INSERT INTO effects (message_id, note) VALUES (%s, 'booked')", (message.id,))
"""
# What boto3 wants to know, whatever the server.
AWS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))
    return tmp_path


@pytest.fixture(params=["pgmq", "sqs", "sqs-fifo", "rabbitmq", "kafka"])
def queues(request: pytest.FixtureRequest) -> tuple[str, str, dict[str, str]]:
    """The URLs of two queues that do not exist yet, and what their client reads from the environment."""
    names = fresh("orders"), fresh("noted")
    match request.param:
        case "pgmq":
            return f"pgmq:{names[0]}".replace("-", "_"), f"pgmq:{names[1]}".replace("-", "_"), {}
        case "sqs" | "sqs-fifo":
            suffix = ".fifo" if request.param == "sqs-fifo" else ""
            endpoint = request.getfixturevalue("sqs_endpoint")
            return f"sqs://{names[0]}{suffix}", f"sqs://{names[1]}{suffix}", AWS | {"ONCEWARD_SQS_ENDPOINT": endpoint}
        case "rabbitmq":
            url = request.getfixturevalue("rabbitmq_url")
            return f"{url}?queue={names[0]}", f"{url}?queue={names[1]}", {}
        case _:
            url = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
            return f"{url}/{names[0]}", f"{url}/{names[1]}", {}


def test_the_same_module_consumes_from_every_queue(
    dsn: str, db: Db, shop: Path, queues: tuple[str, str, dict[str, str]]
) -> None:
    orders, noted, more = queues
    created = onceward("queue", "create", orders, noted, "--database", dsn, cwd=shop, **more)
    assert created.returncode == 0, created
    assert created.stdout.count("is made") == 2, created.stdout
    targets = f"order.placed={orders}", f"order.noted={noted}"
    relay = running("relay", "--queues", *targets, "--poll", "0.05", "--database", dsn, cwd=shop, **more)
    charging = running("run", "shop:orders", "--queue", orders, "--database", dsn, cwd=shop, **more)
    booking = running("run", "shop:ledger", "--queue", noted, "--database", dsn, cwd=shop, **more)
    with relay as relaying, charging as first, booking as second:
        placed = [order(subject=f"O-{n % 3}") for n in range(6)]
        for message in placed:
            with psycopg.connect(dsn) as conn:
                publish(conn, message)
        until(
            lambda: rows.scalar(db, "SELECT count(*) FROM effects WHERE note = 'booked'") == 6, "six bookings", seconds=40
        )
        assert [process.stop(signal.SIGTERM) for process in (relaying, first, second)] == [0, 0, 0]
    assert [rows.effects(db, message) for message in placed] == [1] * 6
    assert rows.parked(db) == []


@pytest.mark.parametrize("verb", ["run", "relay"])
def test_a_queue_that_does_not_exist_is_an_error_at_start(
    dsn: str, shop: Path, verb: str, queues: tuple[str, str, dict[str, str]]
) -> None:
    queue, _, more = queues
    arguments = (
        ("run", "shop:orders", "--queue", queue) if verb == "run" else ("relay", "--queues", f"order.placed={queue}")
    )
    name = queue.rpartition("=")[2] if "amqp" in queue else queue.replace(":", "/").rpartition("/")[2]
    refused(onceward(*arguments, "--database", dsn, cwd=shop, **more), name)


@pytest.mark.parametrize(
    ("queue", "client"),
    [
        ("sqs://orders", "http://127.0.0.1:1"),
        ("amqp://127.0.0.1:1/?queue=orders", "127.0.0.1:1"),
        ("kafka://127.0.0.1:1/orders", "127.0.0.1:1"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line(dsn: str, shop: Path, queue: str, client: str) -> None:
    more = AWS | {"ONCEWARD_SQS_ENDPOINT": "http://127.0.0.1:1"}
    refused(onceward("run", "shop:orders", "--queue", queue, "--database", dsn, cwd=shop, **more), client)


def test_what_no_client_can_read_is_one_line(dsn: str, shop: Path) -> None:
    refused(onceward("run", "shop:orders", "--queue", "redis://x", "--database", dsn, cwd=shop), "redis", "sqs://NAME")
