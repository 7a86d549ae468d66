"""Scenario 19: a redrive after the dedup window. What is not finished outlives it; what is forgotten never runs again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order_aged
from tests.support.queues import ListSink, drain
from tests.support.shop import charging

from onceward.consumer import OpenConsumer
from onceward.day_partitions import attached, make_partition_for, partition_name, upkeep
from onceward.decisions import redrive
from onceward.message import Message
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
SCHEMA = "onceward"
AGE = timedelta(days=10)
WINDOW = timedelta(days=7)


def message_of_ten_days_ago(db: Db) -> Message:
    """With the partitions of its day."""
    message = order_aged(db, AGE.total_seconds())
    make_partition_for(db, message.id, schema=SCHEMA)
    return message


def day_of(message: Message) -> date:
    return datetime.fromtimestamp((UUID(message.id).int >> 80) / 1000, UTC).date()


def names_of(day: date) -> set[str]:
    return {partition_name(table, day) for table in ("inbox", "intents")}


def partitions(db: Db) -> set[str]:
    return {name for name, _ in attached(db, schema=SCHEMA)}


def test_what_was_parked_before_the_window_is_kept_and_its_redrive_looks_up(opened: Opened, db: Db, dsn: str) -> None:
    """It charged ten days ago, and nobody heard: its rows let it past the window, and its age forbids another call."""
    message, provider, sink = message_of_ten_days_ago(db), Provider(), ListSink()
    provider.after.append(ConnectionError("cut after it charged"))
    assert opened(charging(provider, window=2 * AGE, attempts_max=1)).deliver(delivery(message)) == ACK
    rows.age_intents(db, message, AGE)
    assert (rows.intents(db, message)[0].state, rows.parked(db)[0].reason) == ("pending", "attempts ran out")

    consumer = opened(charging(provider, window=WINDOW, lookup=True))
    rows.age_windows(db, WINDOW)
    done = upkeep(db, schema=SCHEMA)
    assert (done.dropped, done.unfinished) == ([], {day_of(message).isoformat(): 2})
    assert not redrive(db, message.id, consumer=rows.CONSUMER).why_not
    drain(dsn, sink)
    for times, sent in enumerate(sink.messages * 2, 1):
        assert consumer.deliver(delivery(sent, times=times)) == ACK

    assert (sink.ids, provider.calls, len(provider.lookups)) == ([message.id], 1, 1)
    assert [(intent.n, intent.state) for intent in rows.intents(db, message)] == [(1, "done")]
    assert rows.books(db, message) == rows.Books("done", 3, 0, [], 1)
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(day_of(message))


def test_what_was_done_and_is_forgotten_is_parked_and_cannot_be_redriven(opened: Opened, db: Db) -> None:
    message, provider = message_of_ten_days_ago(db), Provider()
    assert opened(charging(provider, window=2 * AGE)).deliver(delivery(message)) == ACK
    consumer = opened(charging(provider, window=WINDOW, lookup=True))
    rows.age_windows(db, WINDOW)
    assert set(upkeep(db, schema=SCHEMA).dropped) == names_of(day_of(message))
    for times in (2, 3):
        assert consumer.deliver(delivery(message, times=times)) == ACK
        assert "without an inbox row" in redrive(db, message.id, consumer=rows.CONSUMER).why_not
    assert (provider.calls, provider.lookups, rows.outbox(db)) == (1, [], [])
    assert rows.books(db, message) == rows.Books(None, None, 0, ["outside window"], 1)
    assert not names_of(day_of(message)) & partitions(db)
