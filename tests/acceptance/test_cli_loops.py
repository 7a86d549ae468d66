"""`onceward run` and `onceward relay`, black-box: from the outbox to done, and an end that loses nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.acceptance.processes import environment, onceward, refused, running
from tests.support import rows
from tests.support.deliveries import order
from tests.support.pgbouncer import bouncing
from tests.support.waiting import until

from onceward.message import Message
from onceward.outbox import publish
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
SHOP = """
    import os

    from onceward import Consumer, publish, Message
    from onceward.transports import pgmq

    orders = Consumer("payments")
    not_a_consumer = 42

    @orders.transactional("order.placed")
    def note(message, tx):
        tx.execute("INSERT INTO effects (message_id) VALUES (%s)", (message.id,))
        if message.json().get("hold"):
            tx.execute("SELECT pg_advisory_xact_lock(7)")
        publish(tx, Message(type="order.noted", data={}))

    def listen(event):
        with open("events", "a") as file:
            print(event.point, file=file)

    def source():
        return pgmq.Source("orders", os.environ["ONCEWARD_DATABASE"])

    def sink():
        return pgmq.Sink("orders", os.environ["ONCEWARD_DATABASE"])

    if "ONCEWARD_DATABASE" in os.environ:
        made_source, made_sink = source(), sink()
"""


@pytest.fixture
def shop(tmp_path: Path, db: Db) -> Path:
    """A folder with a module of the user's, and its queue."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))
    pgmq.create_queue(db, "orders")
    return tmp_path


def placed(dsn: str, data: Any = None) -> Message:
    message = order(data)
    with psycopg.connect(dsn) as conn:
        publish(conn, message)
    return message


def queued(db: Db) -> int:
    return int(rows.scalar(db, "SELECT count(*) FROM pgmq.q_orders"))


def test_from_the_outbox_to_done_and_a_clean_end(dsn: str, db: Db, shop: Path) -> None:
    relay = running("relay", "--queues", "order.placed=orders", "order.noted=orders", "--poll", "0.05", "--database", dsn)
    run = running("run", "shop:orders", "--queue", "orders", "--threads", "2", "--database", dsn, cwd=shop)
    with relay as relaying, run as consuming:
        message = placed(dsn)
        until(lambda: rows.state(db, message) == "done", "the message being done")
        until(lambda: len(rows.parked(db)) == 1, "the type without a handler being parked")
        assert relaying.stop(signal.SIGTERM) == 0
        assert consuming.stop(signal.SIGTERM) == 0
        assert "payments consumes orders" in consuming.said
    assert rows.books(db, message) == ("done", 1, 0, ["unknown type"], 1)
    assert (queued(db), rows.outbox(db)) == (0, [])


def test_a_role_that_may_not_make_partitions_is_shown_what_to_run_and_runs_without_upkeep(
    dsn: str, db: Db, shop: Path
) -> None:
    role = f"shop_{db.info.dbname}"
    db.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA onceward, pgmq TO {role}".encode())
    db.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA onceward, pgmq, public TO {role}".encode())
    try:
        started = ("run", "shop:orders", "--queue", "orders", "--database", make_conninfo(dsn, user=role))
        done = onceward(*started, cwd=shop)
        assert (done.returncode, "--no-upkeep" in done.stderr, "GRANT" in done.stderr) == (2, True, True), done
        with running(*started, "--no-upkeep", cwd=shop) as consuming:
            sink = pgmq.Sink("orders", dsn)
            message = order()
            sink.publish([message])
            sink.close()
            until(lambda: rows.state(db, message) == "done", "the message being done")
            assert consuming.stop(signal.SIGTERM) == 0
    finally:
        db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_sigterm_lets_what_runs_end(dsn: str, db: Db, shop: Path) -> None:
    with (
        psycopg.connect(dsn) as holder,
        running("run", "shop:orders", "--source", "shop:source", cwd=shop, ONCEWARD_DATABASE=dsn) as run,
    ):
        holder.execute("SELECT pg_advisory_lock(7)")
        message = placed(dsn, {"hold": True})
        assert onceward("relay", "--sink", "shop:sink", "--until-empty", cwd=shop, ONCEWARD_DATABASE=dsn).returncode == 0
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: rows.scalar(db, waiting) == 1, "the handler waiting")
        run.process.send_signal(signal.SIGTERM)
        holder.execute("SELECT pg_advisory_unlock(7)")
        assert run.process.wait(30) == 0
    assert rows.state(db, message) == "done"
    assert queued(db) == 0


def test_a_source_and_a_sink_may_be_made_already(dsn: str, db: Db, shop: Path) -> None:
    message = placed(dsn)
    # Before the consumer starts: what its handler publishes would not be empty.
    done = onceward("relay", "--sink", "shop:made_sink", "--until-empty", cwd=shop, ONCEWARD_DATABASE=dsn)
    assert done.returncode == 0, done
    with running("run", "shop:orders", "--source", "shop:made_source", cwd=shop, ONCEWARD_DATABASE=dsn) as run:
        until(lambda: rows.state(db, message) == "done", "the message being done")
        assert run.stop() == 0


def test_a_drain_is_bounded_and_what_still_ran_comes_again(dsn: str, db: Db, shop: Path) -> None:
    with psycopg.connect(dsn) as holder:
        holder.execute("SELECT pg_advisory_lock(7)")
        with running("run", "shop:orders", "--queue", "orders", "--drain", "0.2", "--database", dsn, cwd=shop) as run:
            message = placed(dsn, {"hold": True})
            onceward("relay", "--queues", "orders", "--until-empty", "--database", dsn)
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(lambda: rows.scalar(db, waiting) == 1, "the handler waiting")
            assert run.stop(signal.SIGINT) == 0
            assert "still run" in run.said
    assert rows.state(db, message) is None
    assert queued(db) == 1


def test_an_outbox_that_could_not_be_emptied_is_said(dsn: str, db: Db, shop: Path) -> None:
    placed(dsn)
    done = onceward("relay", "--queues", "order.paid=orders", "--until-empty", "--database", dsn)
    assert done.returncode == 1
    assert "no queue is named for messages of type 'order.placed'" in done.stderr
    assert "the outbox is not empty" in done.stderr
    assert len(rows.outbox(db)) == 1


def events(shop: Path) -> list[str]:
    file = shop / "events"
    return file.read_text().splitlines() if file.exists() else []


def test_a_log_for_programs_is_one_json_object_a_line(dsn: str, db: Db, shop: Path) -> None:
    options = ("--log-format", "json", "--log-level", "info")
    with (
        running("run", "shop:orders", "--queue", "orders", *options, "--database", dsn, cwd=shop) as run,
        running("relay", "--queues", "orders", *options, "--database", dsn, cwd=shop) as relay,
    ):
        message = placed(dsn)
        until(lambda: len(rows.parked(db)) == 1, "the type without a handler being parked")
        assert (run.stop(), relay.stop()) == (0, 0)
        lines = [json.loads(line) for line in (run.said + relay.said).splitlines()]
    assert rows.state(db, message) == "done"
    assert lines[0]["message"] == "payments consumes orders with 8 threads; Ctrl-C drains and ends"
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert "error" in {line["level"] for line in lines}, "the park"


def test_listeners_of_ones_own_see_every_event_of_both_loops(dsn: str, db: Db, shop: Path) -> None:
    listeners = ("--listeners", "shop:listen")
    with running("run", "shop:orders", "--queue", "orders", *listeners, "--database", dsn, cwd=shop) as run:
        placed(dsn)
        onceward("relay", "--queues", "orders", "--until-empty", *listeners, "--database", dsn, cwd=shop)
        until(lambda: {"relay.deleted", "consumer.settled"} <= set(events(shop)), "both loops being seen")
        assert run.stop() == 0


def test_health_is_a_file_or_a_port_and_gone_at_the_end(dsn: str, db: Db, shop: Path) -> None:
    file = shop / "health"
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with (
        running("run", "shop:orders", "--queue", "orders", "--health", "health", "--database", dsn, cwd=shop) as run,
        running("relay", "--queues", "orders", "--health", f":{port}", "--database", dsn) as relay,
    ):
        until(lambda: file.exists() and json.loads(file.read_text())["ready"], "the consumer being ready")
        until(ready, "the relay being ready")
        message = placed(dsn)
        until(lambda: rows.state(db, message) == "done", "the message being done")
        until(lambda: json.loads(file.read_text())["last_progress_seconds"] is not None, "progress being shown")
        assert (run.stop(), relay.stop()) == (0, 0)
    assert not file.exists()
    assert not ready()


def test_a_consumer_whose_standard_error_has_gone_goes_on(dsn: str, db: Db, shop: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "onceward", "run", "shop:orders", "--queue", "orders", "--database", dsn],
        stderr=subprocess.PIPE, text=True, cwd=shop, env=environment(),
    )  # fmt: skip
    try:
        assert run.stderr is not None
        assert "payments consumes orders" in run.stderr.readline()
        run.stderr.close()
        first = placed(dsn)
        onceward("relay", "--queues", "orders", "--until-empty", "--database", dsn)
        until(lambda: rows.state(db, first) == "done", "the message being done")
        second = placed(dsn)
        onceward("relay", "--queues", "orders", "--until-empty", "--database", dsn)
        until(lambda: len(rows.parked(db)) >= 1, "a line that nobody reads having been logged")
        until(lambda: rows.state(db, second) == "done", "the message behind it being done")
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 0
    finally:
        run.kill()
        run.wait()


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("shop", "MODULE:NAME"),
        ("shop:", "MODULE:NAME"),
        ("nowhere:orders", "no module 'nowhere'"),
        ("nowhere.deep:orders", "no module 'nowhere.deep'"),
        ("shop:nothing", "has no 'nothing'"),
        ("shop:not_a_consumer", "is a int, not a Consumer"),
        ("broken:orders", "cannot be imported: NameError: name 'undefined' is not defined"),
        ("needy:orders", "needs 'not_installed'"),
    ],
)
def test_a_consumer_that_cannot_be_found_is_one_line(shop: Path, target: str, word: str) -> None:
    (shop / "broken.py").write_text("undefined\n")
    (shop / "needy.py").write_text("import not_installed\n")
    refused(onceward("run", target, "--queue", "orders", cwd=shop), word)


def test_a_queue_that_is_not_there_is_one_line(dsn: str, shop: Path) -> None:
    refused(
        onceward("run", "shop:orders", "--queue", "nowhere", "--database", dsn, cwd=shop), "`onceward queue create nowhere`"
    )
    refused(onceward("relay", "--queues", "a=nowhere", "--database", dsn), "no pgmq queue 'nowhere'")
    refused(
        onceward("run", "shop:orders", "--source", "shop:not_a_consumer", "--database", dsn, cwd=shop), "gives a Source"
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--health", "nowhere/health"], "nowhere/health cannot be written"),
        (["--health", "8080"], "a port of this machine is written :8080"),
        (["--health", ":70000"], "there is no port 70000"),
        (["--listeners", "shop:listen,nothing"], "has no 'nothing'"),
        (["--listeners", "shop:not_a_consumer"], "is a int, not a function that takes an Event"),
        (["--listeners", "shop"], "MODULE:NAME"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_what_cannot_be_watched_is_one_line(options: list[str], word: str, dsn: str, shop: Path) -> None:
    refused(onceward("run", "shop:orders", "--queue", "orders", *options, "--database", dsn, cwd=shop), word)
    refused(onceward("relay", "--queues", "orders", *options, "--database", dsn, cwd=shop), word)


def test_a_health_port_that_is_taken_is_one_line(dsn: str, shop: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        health = f":{taken.getsockname()[1]}"
        refused(
            onceward("run", "shop:orders", "--queue", "orders", "--health", health, "--database", dsn, cwd=shop),
            "cannot listen at 127.0.0.1",
        )


def test_a_schema_that_is_not_migrated_is_one_line(empty_dsn: str, shop: Path) -> None:
    for command in (["run", "shop:orders", "--queue", "orders"], ["relay", "--queues", "orders"]):
        refused(onceward(*command, "--database", empty_dsn, cwd=shop), "onceward migrate")


def test_a_database_without_pgmq_says_where_it_comes_from(empty_dsn: str, shop: Path) -> None:
    onceward("migrate", "--database", empty_dsn)
    refused(onceward("relay", "--queues", "orders", "--database", empty_dsn, cwd=shop), "`onceward queue create orders`")


def test_a_pooler_that_keeps_no_session_is_one_line(dsn: str, shop: Path) -> None:
    with bouncing(dsn) as bouncer:
        pooled, session = bouncer.dsn("transaction"), bouncer.dsn("session")
        for command in (["run", "shop:orders", "--queue", "orders"], ["relay", "--queues", "orders"], ["upkeep"]):
            refused(onceward(*command, "--database", pooled, cwd=shop), "--database", "session mode")
        refused(
            onceward("relay", "--queues", "orders", "--queue-database", pooled, "--database", dsn, cwd=shop),
            "--queue-database", "session mode",
        )  # fmt: skip
        assert onceward("upkeep", "--database", session).returncode == 0


TOGETHER = """
    import os, sys
    from onceward import Consumer, UsageError

    def made(name):
        consumer = Consumer(name)

        @consumer.transactional("order.placed")
        def write(message, tx):
            if message.json().get("hold"):
                tx.execute("SELECT pg_advisory_xact_lock(7)")
            tx.execute("INSERT INTO effects (message_id, note) VALUES (%s, %s)", (message.id, name))

        return consumer

    charges, ledger = made("charges"), made("ledger")

    class Gone:
        def __init__(self):
            from onceward.transports import pgmq
            inner = pgmq.Source("orders", os.environ["ONCEWARD_DATABASE"])
            self.name, self.traits = "gone", inner.traits
            self.settle, self.extend, self.close = inner.settle, inner.extend, inner.close

        def receive(self, limit, wait_seconds):
            raise UsageError("this queue will never be there")
"""


@pytest.fixture
def together(shop: Path, db: Db) -> Path:
    (shop / "two.py").write_text(textwrap.dedent(TOGETHER))
    pgmq.create_queue(db, "bookings")
    return shop


def sent(dsn: str, queue: str, data: Any = None) -> Message:
    message, sink = order(data), pgmq.Sink(queue, dsn)
    sink.publish([message])
    sink.close()
    return message


@pytest.mark.parametrize(
    "words",
    [
        ["two:charges=orders", "two:ledger=pgmq:bookings"],
        ["two:charges", "two:ledger", "--queue", "orders", "--queue", "bookings"],
        ["two:charges", "two:ledger=bookings", "--queue", "orders"],
    ],
    ids=" ".join,
)
def test_several_consumers_run_and_drain_in_one_process(words: list[str], dsn: str, db: Db, together: Path) -> None:
    options = ("--threads", "2", "--health", "health", "--database", dsn)
    with psycopg.connect(dsn) as holder, running("run", *words, *options, cwd=together) as run:
        holder.execute("SELECT pg_advisory_lock(7)")
        placed, booked = sent(dsn, "orders", {"hold": True}), sent(dsn, "bookings")
        until(lambda: rows.state(db, booked, "ledger") == "done", "the other consumer's message being done")
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: rows.scalar(db, waiting) == 1, "the handler waiting")
        both = {"1 charges", "2 ledger"}
        until(lambda: {*json.loads((together / "health").read_text()).get("consumers", {})} == both, "both being shown")
        run.process.send_signal(signal.SIGTERM)
        holder.execute("SELECT pg_advisory_unlock(7)")
        assert run.process.wait(30) == 0
        assert "charges consumes orders" in run.said
        assert "bookings with 2 threads" in run.said
    assert rows.state(db, placed, "charges") == "done"


def test_one_consumer_that_can_never_go_on_ends_all_with_its_error(dsn: str, db: Db, together: Path) -> None:
    with running(
        "run", "two:ledger=bookings", "two:charges", "--source", "two:Gone", cwd=together, ONCEWARD_DATABASE=dsn
    ) as run:
        assert run.process.wait(30) == 2
        assert "onceward: this queue will never be there" in run.said


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["two:charges", "two:ledger=bookings"], "--queue or --source is given 0 times"),
        (["two:charges", "two:ledger", "--queue", "orders"], "2 of the consumers have no queue"),
        (["two:charges=orders", "--queue", "orders"], "name the consumer's queue once"),
        (["two:charges", "--queue", "orders", "--source", "two:Gone"], "name the consumer's queue once"),
        (["two:charges="], "name the queue behind the ="),
        (["two:charges=orders", "two:ledger=nowhere"], "nowhere"),
        (["two:charges=orders", "two:nothing=bookings"], "has no 'nothing'"),
    ],
)
def test_consumers_without_a_queue_are_one_line(words: list[str], word: str, dsn: str, together: Path) -> None:
    refused(onceward("run", *words, "--database", dsn, cwd=together), word)
