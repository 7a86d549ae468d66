"""The watched source does what the setting of its queue says, and reports what it does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest

from onceward.message import Message
from onceward.transport import ACK, Outcome
from onceward.transports import pgmq
from onceward_proof.brokers.pgmq import Pgmq
from onceward_proof.workers.line import Line
from onceward_proof.workers.setting import QUEUES, Setting
from onceward_proof.workers.watched import WatchedSource

Db = psycopg.Connection[Any]
QUEUE = QUEUES["order.placed"]
# Per statement: also one that finds nothing to remove.
COUNTED = """
CREATE TABLE removals (number bigint GENERATED ALWAYS AS IDENTITY);
CREATE FUNCTION count_removal() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO removals DEFAULT VALUES; RETURN NULL; END $$;
CREATE TRIGGER counted AFTER DELETE ON pgmq.q_charges FOR EACH STATEMENT EXECUTE FUNCTION count_removal();
"""
Acked = Callable[..., list[Outcome]]


@pytest.fixture
def acked(db: Db, dsn: str, closing: Callable[[Any], Any]) -> Acked:
    """One message is received and acknowledged under a setting; what its ack was answered."""

    def ack(**setting: Any) -> list[Outcome]:
        pgmq.create_queue(db, QUEUE)
        db.execute(COUNTED)
        closing(pgmq.Sink(QUEUE, dsn)).publish([Message(type="order.placed", data={})])
        ours, _ = map(closing, socket.socketpair())
        chosen = Setting(variant="naive", database=dsn, queue_address=dsn, provider_url="", **setting)
        source = closing(
            WatchedSource(Pgmq().source(chosen, "order.placed", "charge-0"), Line(ours, lambda _: False), chosen)
        )
        return list(source.settle([(delivery, ACK) for delivery in source.receive(1, 1.0).deliveries]))

    return ack


def count(db: Db, table: LiteralString) -> int:
    row = db.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


def test_an_ack_removes_the_message_once(acked: Acked, db: Db) -> None:
    assert acked() == [Outcome.SETTLED]
    assert [count(db, "pgmq.q_charges"), count(db, "removals"), count(db, "pgmq.a_charges")] == [0, 1, 0]


def test_with_the_archive_an_ack_moves_the_message_there(acked: Acked, db: Db) -> None:
    assert acked(archive=True) == [Outcome.SETTLED]
    assert [count(db, "pgmq.q_charges"), count(db, "pgmq.a_charges")] == [0, 1]


def test_an_ack_that_is_sent_twice_reaches_the_queue_twice(acked: Acked, db: Db) -> None:
    assert acked(double_settle=True) == [Outcome.SETTLED], "by the first: the second finds nothing"
    assert [count(db, "pgmq.q_charges"), count(db, "removals")] == [0, 2]


def test_the_lease_of_the_queue_hides_a_delivery_for_so_long(db: Db, dsn: str, closing: Callable[[Any], Any]) -> None:
    pgmq.create_queue(db, QUEUE)
    setting = Setting(variant="naive", database=dsn, queue_address=dsn, provider_url="", visibility_seconds=60)
    ours, _ = map(closing, socket.socketpair())
    source = Pgmq().source(setting, "order.placed", "charge-0")
    assert closing(WatchedSource(source, Line(ours, lambda _: False), setting)).traits.lease_seconds == 60
