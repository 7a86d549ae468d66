"""The rows of the take table again, each under a real race of two sessions: who waits, who wins, who is turned away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_a_lease_extended_meanwhile_is_not_taken_over, check_a_take_over_has_one_winner
from tests.support.deliveries import delivery, order
from tests.support.points import Gate
from tests.support.shop import SHAPES, of_shape, transactional
from tests.support.waiting import Background, until_any_blocked, until_blocked

from onceward.consumer import OpenConsumer
from onceward.decisions import redrive
from onceward.inbox import Inbox, InboxRow, InboxTable, TakeResult
from onceward.message import Message
from onceward.protocol.reasons import ParkReason
from onceward.steps import Steps
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


@both_shapes
def test_a_take_that_waits_for_an_insert_that_commits_is_a_duplicate(
    shape: str, opened: Opened, db: Db, connect: Connect, background: Background
) -> None:
    message, first = order(), connect(autocommit=False)
    assert Inbox(rows.CONSUMER).take(first, message).result is TakeResult.TAKEN
    second = background(opened(of_shape(shape)).deliver, delivery(message))
    until_any_blocked(db)
    first.commit()
    assert second.result() == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=0)


@both_shapes
def test_a_take_that_waits_for_an_insert_that_is_rolled_back_is_taken(
    shape: str, opened: Opened, db: Db, connect: Connect, background: Background
) -> None:
    message, first = order(), connect(autocommit=False)
    assert Inbox(rows.CONSUMER).take(first, message).result is TakeResult.TAKEN
    second = background(opened(of_shape(shape)).deliver, delivery(message))
    until_any_blocked(db)
    first.rollback()
    assert second.result() == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


@both_shapes
def test_a_take_that_waits_for_an_insert_of_another_payload_is_a_conflict(
    shape: str, opened: Opened, db: Db, connect: Connect, background: Background
) -> None:
    message, first = order(), connect(autocommit=False)
    Inbox(rows.CONSUMER).take(first, order({"amount": 999}, id=message.id))
    second = background(opened(of_shape(shape)).deliver, delivery(message))
    until_any_blocked(db)
    first.commit()
    assert second.result() == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=["conflict"], effects=0)


@both_shapes
def test_a_take_whose_wait_runs_out_is_in_flight(shape: str, opened: Opened, db: Db, connect: Connect) -> None:
    message, frozen = order(), connect(autocommit=False)
    Inbox(rows.CONSUMER).take(frozen, message)
    settlement = opened(of_shape(shape)).deliver(delivery(message))
    assert (settlement.action, settlement.delay_seconds) == ("release", 1.0)
    frozen.rollback()
    assert rows.books(db, message) == rows.Books(state=None, token=None, attempts=0, parked=[], effects=0)


def test_the_second_door_says_in_flight_too_and_its_transaction_lives_on(db: Db, connect: Connect) -> None:
    message, frozen, mine = order(), connect(autocommit=False), connect(autocommit=False)
    Inbox(rows.CONSUMER).take(frozen, message)
    rows.write_effect(mine, message, "before")
    taking = Inbox(rows.CONSUMER).take(mine, message)
    assert (taking.result, taking.retry_after_seconds) == (TakeResult.IN_FLIGHT, 1.0)
    assert rows.scalar(mine, "SHOW lock_timeout") == "0"
    mine.commit()
    assert rows.effects(db, message) == 1


def test_of_many_that_take_one_new_message_one_is_taken(opened: Opened, db: Db, background: Background) -> None:
    """The first holds its row uncommitted until the others stand behind it."""
    message = order()
    with Gate("consumer.handled") as gate:
        consumer = opened(transactional(), gate, threads=6)
        first = background(consumer.deliver, delivery(message))
        gate.wait()
        others = [background(consumer.deliver, delivery(message)) for _ in range(5)]
        until_any_blocked(db, many=5)
    assert [first.result(), *(other.result() for other in others)] == [ACK] * 6
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_of_many_that_claim_one_new_message_one_is_taken_and_the_rest_are_in_flight(
    opened: Opened, db: Db, background: Background
) -> None:
    message = order()
    gate = Gate("consumer.claimed")
    with gate:
        consumer = opened(of_shape("effectful"), gate, threads=6)
        first = background(consumer.deliver, delivery(message))
        gate.wait()
        others = [background(consumer.deliver, delivery(message)) for _ in range(5)]
        assert {other.result().action for other in others} == {"release"}
    assert first.result() == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


@both_shapes
def test_a_take_over_has_exactly_one_winner(
    shape: str, opened: Opened, db: Db, connect: Connect, background: Background
) -> None:
    check_a_take_over_has_one_winner(opened, db, connect(autocommit=False), background, shape)


@both_shapes
def test_a_take_over_that_races_with_a_heartbeat_finds_the_lease_alive(
    shape: str, opened: Opened, db: Db, connect: Connect, background: Background
) -> None:
    check_a_lease_extended_meanwhile_is_not_taken_over(opened, db, connect(autocommit=False), background, shape)


def test_a_row_that_changes_again_and_again_is_in_flight(db: Db, connect: Connect) -> None:
    """Whoever changes it, between each look and the take-over, is at work on the message: it is no duplicate."""

    class Contended(InboxTable):
        def read_steps(self, params: dict[str, Any]) -> Steps[InboxRow]:
            row = yield from super().read_steps(params)
            other.execute("UPDATE onceward.inbox SET token = token + 1")
            return row

    message, other = order(), connect()
    Inbox(rows.CONSUMER).claim(db, message)
    rows.lapse(db, message)
    contended = Inbox(rows.CONSUMER)
    contended._table = Contended(rows.CONSUMER)
    taking = contended.claim(db, message)
    assert (taking.result, taking.retry_after_seconds) == (TakeResult.IN_FLIGHT, 0.1)
    assert rows.inbox_row(db, message).token > 2
    rows.lapse(db, message)
    assert Inbox(rows.CONSUMER).claim(db, message).result is TakeResult.TAKEN


def test_a_take_over_that_races_with_a_finish_is_a_duplicate(opened: Opened, db: Db, background: Background) -> None:
    """The finish's first statement locks the row: a take-over waits, and then finds it done."""
    message = order()
    gates = Gate("consumer.claimed"), Gate("consumer.handled")
    with gates[0], gates[1]:
        first = background(opened(of_shape("effectful"), *gates).deliver, delivery(message))
        gates[0].wait()
        rows.lapse(db, message)
        gates[0].release()
        gates[1].wait()
        second = background(opened(of_shape("effectful")).deliver, delivery(message))
        until_any_blocked(db)
        gates[1].release()
        assert (first.result(), second.result()) == (ACK, ACK)
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_a_redrive_that_races_with_a_redrive_has_one_winner(opened: Opened, db: Db, background: Background) -> None:
    message = order()
    _parked(db, message)
    outcomes = [background(_redrive, db.info.dsn, message) for _ in range(4)]
    assert sorted(outcome.result() for outcome in outcomes) == [False, False, False, True]
    assert len(rows.outbox(db)) == 1


def test_two_takes_at_the_second_door_wait_for_each_other(db: Db, connect: Connect, background: Background) -> None:
    message, first, second = order(), connect(autocommit=False), connect(autocommit=False)
    inbox = Inbox(rows.CONSUMER)
    assert inbox.take(first, message).result is TakeResult.TAKEN
    waiting = background(inbox.take, second, message)
    until_blocked(db, second)
    first.commit()
    assert waiting.result().result is TakeResult.DUPLICATE


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_above_read_committed_the_loser_of_a_race_gets_a_serialization_failure(
    level: str, db: Db, connect: Connect, background: Background
) -> None:
    """As `onceward.inbox` says: 40001, and the caller's transaction must be run again; then it is a duplicate."""
    message, first, second = order(), connect(autocommit=False), connect(autocommit=False)
    second.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}".encode())
    second.commit()
    inbox = Inbox(rows.CONSUMER)
    inbox.take(first, message)
    waiting = background(inbox.take, second, message)
    until_blocked(db, second)
    first.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        waiting.result()
    second.rollback()
    assert inbox.take(second, message).result is TakeResult.DUPLICATE
    second.rollback()


def _parked(db: Db, message: Message) -> None:
    table, take = InboxTable(rows.CONSUMER), Inbox(rows.CONSUMER).claim(db, message)
    params = table.park_params(message, "test", ParkReason.REJECTED, "") | {"token": take.token, "unknown_n": 0}
    assert db.execute(table.statements["park_held"], params).fetchone()


def _redrive(dsn: str, message: Message) -> bool:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return not redrive(conn, message.id, consumer=rows.CONSUMER).why_not
