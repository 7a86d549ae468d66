"""`onceward doctor`, black-box: what is wrong is shown with what mends it, and decides the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import onceward, refused, running
from tests.support.waiting import until

from onceward.handler_times import HandlerClock
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
MODULE = """\
import os
from dataclasses import replace
from onceward import Consumer
from onceward.transports import pgmq

charges = Consumer("charges", attempts_max=3)
charges.transactional("order.placed")(lambda message, tx: None)

def keeps_long():
    source = pgmq.Source("orders", os.environ["ONCEWARD_DATABASE"])
    source.traits = replace(source.traits, retention_seconds=31 * 86_400)
    return source
"""
AWS = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a consumer."""
    (tmp_path / "shop.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def dsn(dsn: str, db: Db) -> str:
    """A database with a queue in it."""
    pgmq.create_queue(db, "orders")
    return dsn


def asked(dsn: str, shop: Path, *arguments: str, **more: str) -> tuple[int, dict[str, Any]]:
    done = onceward("doctor", *arguments, "--json", "--database", dsn, cwd=shop, **more)
    assert done.stdout, done
    return done.returncode, json.loads(done.stdout)


def names(found: list[dict[str, str]]) -> set[str]:
    """The checks of the queue; what is said of the database is another test's."""
    return {one["check"] for one in found if not one["check"].startswith("postgres.")}


def test_a_queue_that_is_right_is_shown_as_looked_at(dsn: str, shop: Path) -> None:
    _, said = asked(dsn, shop, "shop:charges", "--queue", "orders")
    assert names(said["findings"]) == set()
    assert names(said["unknown"]) == {"lease"}
    assert names(said["right"]) == {"pgmq.logged", "window"}
    assert said["handlers"] is None


def test_what_is_wrong_is_shown_with_what_mends_it(dsn: str, db: Db, shop: Path) -> None:
    db.execute("ALTER TABLE pgmq.q_orders SET UNLOGGED")
    code, said = asked(dsn, shop, "--queue", "pgmq:orders")
    [finding] = [one for one in said["findings"] if one["check"] == "pgmq.logged"]
    assert code == 1
    assert {key: finding[key] for key in ("leg", "place", "severity", "found", "wanted", "mend")} == {
        "leg": "leg 2", "place": "pgmq:orders", "severity": "error", "found": "UNLOGGED", "wanted": "logged",
        "mend": "psql -c 'ALTER TABLE pgmq.q_orders SET LOGGED'",
    }  # fmt: skip
    text = onceward("doctor", "--queue", "orders", "--database", dsn).stdout
    assert "leg 2: inside the queue\n  ✗ pgmq.logged  pgmq:orders: UNLOGGED; wanted: logged" in text
    assert "→ psql -c 'ALTER TABLE" in text


def test_the_lease_is_held_against_what_the_consumer_has_measured(dsn: str, db: Db, shop: Path) -> None:
    clock = HandlerClock("charges")
    clock.record(10.0)
    clock.write(db)
    code, said = asked(dsn, shop, "shop:charges", "--queue", "orders")
    assert (code, names(said["findings"])) == (1, {"lease"})
    assert (said["handlers"]["handled"], said["handlers"]["average_seconds"]) == (1, 10.0)
    _, said = asked(dsn, shop, "shop:charges", "--queue", "orders", "--visibility", "60")
    assert names(said["findings"]) == set()
    assert "charges: average 10 s" in onceward("status", "--database", dsn).stdout


def test_only_with_strict_does_what_is_unknown_decide_the_exit_code(dsn: str, shop: Path) -> None:
    code, said = asked(dsn, shop, "shop:charges", "--queue", "orders")
    assert code == (1 if said["findings"] else 0)
    code, said = asked(dsn, shop, "shop:charges", "--queue", "orders", "--strict")
    assert (code, names(said["unknown"])) == (1, {"lease"})


def test_a_queue_of_each_broker_is_read(
    dsn: str, shop: Path, sqs_endpoint: str, rabbitmq_url: str, kafka_bootstrap: str
) -> None:
    """By its URL, as `run` takes it: that of a queue which is not there says how to make it."""
    urls = ("sqs://nowhere", rabbitmq_url + "?queue=nowhere", f"kafka://{kafka_bootstrap}/nowhere?group=g")
    for url in urls:
        management = ("--management", "http://127.0.0.1:1") if url.startswith("amqp") else ()
        done = onceward(
            "doctor", "--queue", url, *management, "--database", dsn, cwd=shop, ONCEWARD_SQS_ENDPOINT=sqs_endpoint, **AWS
        )
        if management:
            assert "? rabbitmq.queue_type" in done.stdout  # nobody knows whether it is there
        else:
            refused(done, "there is no", "onceward queue create")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--queue", "nats://orders"], ["nats"]),
        (["--queue", "nowhere"], ["there is no pgmq queue 'nowhere'"]),
        (["shop:nothing"], ["nothing"]),
        (["--queue", "orders", "--dead-letter", "kafka://a:9092/dead"], ["--dead-letter", "different kinds"]),
        (["--queue", "orders", "--dead-letter", "dead"], ["--dead-letter is for Kafka and SQS"]),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(arguments: list[str], words: list[str], dsn: str, shop: Path) -> None:
    refused(onceward("doctor", *arguments, "--database", dsn, cwd=shop), *words)


def test_the_database_of_the_queues_is_judged_as_well(dsn: str, empty_dsn: str, shop: Path) -> None:
    _, said = asked(empty_dsn, shop, "--queue", "orders", "--queue-database", dsn)
    places = {one["place"] for one in [*said["findings"], *said["right"]] if one["check"] == "postgres.fsync"}
    assert len(places) == 2


def test_a_database_that_is_not_migrated_is_judged_all_the_same(empty_dsn: str, shop: Path) -> None:
    _, said = asked(empty_dsn, shop)
    assert "postgres.fsync" in {one["check"] for one in [*said["findings"], *said["right"]]}


def test_run_refuses_a_short_window_unless_it_is_accepted(dsn: str, shop: Path) -> None:
    command = ("run", "shop:charges", "--source", "shop:keeps_long")
    done = onceward(*command, cwd=shop, ONCEWARD_DATABASE=dsn)
    assert done.returncode == 2
    assert "--allow-short-window" in done.stderr.splitlines()[-1]
    with running(*command, "--allow-short-window", cwd=shop, ONCEWARD_DATABASE=dsn) as started:
        until(lambda: "is parked instead of handled" in started.said, "the warning")
