"""A session that a handler loses costs no attempt, but is counted; one that died while it was idle costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.shop import SHAPES, effectful, of_shape, transactional
from tests.support.waiting import until

from onceward.consumer import Consumer, OpenConsumer
from onceward.decisions import redrive
from onceward.message import Message
from onceward.perform import Once
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def losing_its_session(db: Db) -> Callable[[Message, Db], None]:
    """Its backend is ended, as by an administrator or by a limit of the server."""

    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        db.execute("SELECT pg_terminate_backend(%s, 5000)", (tx.info.backend_pid,))
        rows.write_effect(tx, message)

    return work


def closing_its_session(message: Message, tx: Db) -> None:
    rows.write_effect(tx, message)
    tx.close()


def inside_its_transaction(shape: str, work: Callable[[Message, Db], None], **options: Any) -> Consumer:
    def finish(message: Message, once: Once) -> None:
        with once.transaction() as tx:
            work(message, tx)

    return transactional(work, **options) if shape == "transactional" else effectful(finish, **options)


@both_shapes
@pytest.mark.parametrize("how", ["ended", "closed"])
def test_a_message_that_loses_its_session_every_time_is_counted_and_parked(
    shape: str, how: str, opened: Opened, db: Db
) -> None:
    """It costs no attempt, but it does not go on for ever: also where no queue counts its deliveries."""
    message = order()
    work = losing_its_session(db) if how == "ended" else closing_its_session
    consumer = opened(inside_its_transaction(shape, work, attempts_max=2, deliveries_max=3))
    actions = [consumer.deliver(delivery(message, times=0)).action for _ in range(4)]
    assert actions == ["release", "release", "ack", "ack"]
    books = rows.books(db, message)
    assert (books.state, books.attempts, books.parked, books.effects) == ("parked", 0, ["sessions lost"], 0)
    assert "session was lost" in rows.parked(db)[0].detail


@both_shapes
def test_idling_in_the_handlers_transaction_beyond_its_limit_is_a_lost_session(shape: str, opened: Opened, db: Db) -> None:
    def idle(message: Message, tx: Db) -> None:
        until(lambda: not rows.scalar(db, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (tx.info.backend_pid,)))
        rows.write_effect(tx, message)

    message = order()
    consumer = opened(inside_its_transaction(shape, idle, handler_seconds_max=0.2, deliveries_max=2))
    assert [consumer.deliver(delivery(message)).action for _ in range(2)] == ["release", "ack"]
    assert rows.books(db, message).parked == ["sessions lost"]


@both_shapes
def test_a_redrive_forgets_the_lost_sessions(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    lose = losing_its_session(db)
    left = [lose, lose]

    def work(message: Message, tx: Db) -> None:
        if left:
            left.pop()(message, tx)
        rows.write_effect(tx, message)

    consumer = opened(inside_its_transaction(shape, work, deliveries_max=2))
    assert [consumer.deliver(delivery(message)).action for _ in range(2)] == ["release", "ack"]
    assert redrive(db, message.id, consumer=rows.CONSUMER).why_not == ""
    assert rows.sessions_lost(db, message) == 0
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.state(db, message) == "done"


def test_a_take_on_a_connection_that_died_while_it_was_idle_is_made_on_another(opened: Opened, db: Db) -> None:
    """Else every message of a quiet hour would wait for its redelivery, and meet the next one."""
    for shape in SHAPES:
        consumer, message = opened(of_shape(shape), threads=1), order()
        db.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'onceward %' AND datname = current_database()"
        )
        assert consumer.deliver(delivery(message)) == ACK
        assert rows.effects(db, message) == 1
