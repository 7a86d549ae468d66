"""A row that failed too often is set aside: no relay takes it, and it holds nothing up, unless its subject must hold."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import order
from tests.support.points import Recorder
from tests.support.queues import ListSink, drain, relaying, relaying_weakened
from tests.support.waiting import Background, until

from onceward.errors import UsageError
from onceward.message import Message
from onceward.outbox import check_numbering, publish
from onceward.protocol.relay import Patience
from onceward.relay_loop import relay
from onceward.statements import statements

Db = psycopg.Connection[Any]
SUBJECT = "order-1"


def put(db: Db, *messages: Message) -> None:
    with db.transaction():
        for message in messages:
            publish(db, message)


def of_subject(sink: ListSink) -> list[str]:
    return [message.id for message in list(sink.messages) if message.subject == SUBJECT]


def set_aside(db: Db) -> list[str]:
    return [row.id for row in rows.outbox(db) if row.set_aside_at is not None]


def refusing(*messages: Message) -> ListSink:
    sink = ListSink()
    sink.refuse |= {message.id for message in messages}
    return sink


def test_a_row_that_failed_too_often_is_set_aside_with_its_error_and_its_attempts(
    dsn: str, db: Db, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    refused, other, seen = order(subject=SUBJECT), order(), Recorder()
    sink = refusing(refused)
    put(db, refused, other)
    with relaying(background, dsn, sink, seen, attempts_max=3):
        seen.wait_for("relay.set_aside")
    [row] = rows.outbox(db)
    assert (row.id, row.attempts, row.error, row.retry_at) == (refused.id, 3, "TransportError: refused", None)
    assert row.set_aside_at is not None
    assert sink.ids == [other.id]
    assert [event.message_id for event in seen.of("relay.set_aside")] == [refused.id]
    assert seen.count("relay.postponed") == 2
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert f"`onceward outbox show {row.position}`" in line
    assert all(part in line for part in (refused.id, f"'{SUBJECT}'", "attempt 3", "refused", "are sent without it"))


def check_the_later_rows_flow(dsn: str, db: Db, background: Background, weakened: dict[str, Any]) -> None:
    """Those that were there, and those that come later, in their order; the row itself is not taken again."""
    refused, later = order(subject=SUBJECT), [order(subject=SUBJECT) for _ in range(4)]
    sink = refusing(refused)
    put(db, refused, *later[:2])
    with relaying_weakened(background, dsn, sink, weakened, patience=Patience(attempts_max=2)):
        until(lambda: set_aside(db) == [refused.id])
        sink.refuse.clear()
        put(db, *later[2:])
        until(lambda: len(rows.outbox(db)) == 1, "only the row that is set aside being left", seconds=5)
    assert of_subject(sink) == [message.id for message in later]
    assert set_aside(db) == [refused.id]


def test_the_later_rows_of_its_subject_are_sent_in_their_order(dsn: str, db: Db, background: Background) -> None:
    check_the_later_rows_flow(dsn, db, background, {})


CLAUSES = {
    "the head": ("outbox_lock_heads", " WHERE o.set_aside_at IS NULL\n   AND", " WHERE"),
    "before the head": ("outbox_lock_heads", " AND e.set_aside_at IS NULL", ""),
}


@pytest.mark.parametrize("clause", CLAUSES)
def test_without_one_of_the_clauses_the_row_is_taken_or_holds_its_subject(
    clause: str, dsn: str, db: Db, background: Background
) -> None:
    name, part, replacement = CLAUSES[clause]
    assert part in statements()[name]
    weakened = {name: statements()[name].replace(part, replacement)}
    with pytest.raises(AssertionError):
        check_the_later_rows_flow(dsn, db, background, weakened)


@pytest.mark.parametrize("sabotage", [False, True])
def test_a_row_in_the_middle_of_its_subject_is_left_out_of_the_batch(
    sabotage: bool, dsn: str, db: Db, background: Background
) -> None:
    messages, sink = [order(subject=SUBJECT) for _ in range(3)], ListSink()
    put(db, *messages)
    db.execute("UPDATE onceward.outbox SET set_aside_at = clock_timestamp() WHERE id = %s", (messages[1].id,))
    part, text = " AND f.set_aside_at IS NULL", statements()["outbox_followers"]
    assert part in text
    weakened = {"outbox_followers": text.replace(part, "")} if sabotage else {}
    with relaying_weakened(background, dsn, sink, weakened):
        until(lambda: messages[2].id in sink.ids)
        until(lambda: messages[2].id not in [row.id for row in rows.outbox(db)])
    assert (of_subject(sink) == [messages[0].id, messages[2].id]) == (not sabotage)


def test_a_subject_that_must_hold_waits_however_often_its_head_fails(dsn: str, db: Db, background: Background) -> None:
    held, free = [order(subject=SUBJECT) for _ in range(2)], [order(), order()]
    sink = refusing(held[0], free[0])
    put(db, *held, *free)
    with relaying(background, dsn, sink, attempts_max=2, hold_subjects=True):
        until(lambda: set_aside(db) == [free[0].id])
        until(lambda: rows.outbox(db)[0].attempts >= 4)
        assert of_subject(sink) == []
        assert free[1].id in sink.ids
        sink.refuse.clear()
        until(lambda: [row.id for row in rows.outbox(db)] == [free[0].id])
    assert of_subject(sink) == [message.id for message in held]


def test_a_sink_that_is_away_sets_nothing_aside(dsn: str, db: Db, background: Background) -> None:
    sink = ListSink()
    sink.down = True
    put(db, order(), order(subject=SUBJECT))
    with relaying(background, dsn, sink, attempts_max=1):
        until(lambda: sink.calls >= 4)
        assert set_aside(db) == []
        sink.down = False
        until(lambda: not rows.outbox(db))


def test_a_row_that_is_set_aside_counts_for_the_numbering_and_stays_set_aside(
    dsn: str, db: Db, connect: Callable[..., Db]
) -> None:
    message = order(subject=SUBJECT)
    put(db, order(), order(), message)
    db.execute("DELETE FROM onceward.outbox WHERE id <> %s", (message.id,))
    db.execute("UPDATE onceward.outbox SET set_aside_at = clock_timestamp()")
    db.execute("ALTER SEQUENCE onceward.outbox_position_seq RESTART")
    with pytest.raises(UsageError, match="position 3") as caught:
        check_numbering(db)
    renumbering = str(caught.value).partition("BEGIN;")[2]
    connect().execute(f"BEGIN;{renumbering}".encode())
    check_numbering(db)
    assert set_aside(db) == [message.id]
    drain(dsn, ListSink())
    assert set_aside(db) == [message.id]


def test_a_relay_that_never_tries_is_refused(dsn: str) -> None:
    with pytest.raises(UsageError, match="attempts_max must be at least 1"):
        relay(sink=ListSink(), database=dsn, attempts_max=0)
