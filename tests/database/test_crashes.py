"""Scenario 1: SIGKILL at every named point, in a process of its own; then a fresh one. One effect, and nothing lost."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg
import pytest
from tests.support import crash, rows
from tests.support.deliveries import order
from tests.support.points import Recorder
from tests.support.queues import ListSink, drain
from tests.support.waiting import until

from onceward.decisions import redrive
from onceward.events import POINTS
from onceward.message import Message, row_key
from onceward.outbox import publish
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
PASSED_BY_BOTH = ["consumer.received", "consumer.finishing", "consumer.handled", "consumer.committed"]
PASSED_BY_BOTH += ["consumer.settling", "consumer.settled"]
PASSED = {
    "transactional": ["consumer.taken", *[point for point in PASSED_BY_BOTH if point != "consumer.finishing"]],
    "effectful": ["consumer.claimed", "effect.intended", "effect.answered", "effect.recorded", *PASSED_BY_BOTH],
}
CASES = [(shape, point) for shape, points in PASSED.items() for point in points]
# Points that no plain delivery passes: each has its own way there (below), or kills no consumer.
ELSEWHERE = {"effect.replayed", "consumer.duplicate", "consumer.in_flight", "consumer.failed", "consumer.parked"}
ELSEWHERE |= {point for point in POINTS if point.startswith("relay.")} - {"relay.looked"}
LEAD_NOWHERE = {"effect.looked_up", "consumer.lease_lost", "consumer.raised_late", "upkeep.partition_late"}
LEAD_NOWHERE |= {"relay.looked"}


@pytest.fixture
def queued(db: Db, dsn: str) -> Message:
    """A queue with one order in it, and a provider's ledger."""
    return put_into_queue(db, dsn, order(subject="order-1"))


def put_into_queue(db: Db, dsn: str, message: Message) -> Message:
    pgmq.create_queue(db, crash.QUEUE)
    db.execute(crash.CHARGES)
    sink = pgmq.Sink(crash.QUEUE, dsn)
    assert list(sink.publish([message])) == [None]
    sink.close()
    return message


def deliver_again(db: Db, message: Message, *, lapse: bool = True) -> int:
    """As if the queue's timeout and the inbox's lease were over. How many messages the queue has."""
    sessions = "FROM pg_stat_activity WHERE application_name LIKE 'onceward %'"
    # A server that polls for a client notices only at the end of its poll that nobody is there any more.
    db.execute(f"SELECT pg_terminate_backend(pid) {sessions}".encode())
    until(lambda: rows.scalar(db, f"SELECT count(*) {sessions}") == 0, "the dead one's sessions being gone")
    if lapse:
        db.execute("UPDATE onceward.inbox SET lease_until = NULL WHERE message_id = %s", (row_key(message.id),))
    return db.execute(f"UPDATE pgmq.q_{crash.QUEUE} SET vt = clock_timestamp()".encode()).rowcount


def check_one_effect_and_nothing_lost(db: Db, message: Message, shape: str, state: str = "done") -> None:
    assert rows.state(db, message) == state
    assert rows.effects(db, message) == 1
    assert [row.type for row in rows.outbox(db)] == ["order.paid"]
    assert rows.scalar(db, f"SELECT count(*) FROM pgmq.q_{crash.QUEUE}") == 0
    assert rows.scalar(db, "SELECT count(*) FROM charges") == (1 if shape == "effectful" else 0)


@pytest.mark.parametrize(("shape", "point"), CASES)
def test_a_kill_at_every_point_leaves_one_effect_and_loses_nothing(
    shape: str, point: str, queued: Message, db: Db, dsn: str
) -> None:
    assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, shape, point))
    there = deliver_again(db, queued)
    assert there == (0 if point == "consumer.settled" else 1)
    crash.recover(dsn, shape, there)
    check_one_effect_and_nothing_lost(db, queued, shape)
    assert rows.attempts(db, queued) == 0


@pytest.mark.parametrize("point", ["effect.answered", "effect.recorded"])
def test_a_kill_after_the_charge_is_one_object_at_the_provider(point: str, queued: Message, db: Db, dsn: str) -> None:
    assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, "effectful", point))
    assert rows.intents(db, queued)[0].state == ("pending" if point == "effect.answered" else "done")
    seen = crash.recover(dsn, "effectful", deliver_again(db, queued))
    assert seen.count("effect.replayed") == int(point == "effect.recorded")
    assert rows.scalar(db, "SELECT requests FROM charges") == (2 if point == "effect.answered" else 1)
    check_one_effect_and_nothing_lost(db, queued, "effectful")


def test_a_second_kill_at_the_replayed_answer_changes_nothing(queued: Message, db: Db, dsn: str) -> None:
    for point in ("effect.recorded", "effect.replayed"):
        assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, "effectful", point))
        deliver_again(db, queued)
    crash.recover(dsn, "effectful", 1)
    assert rows.scalar(db, "SELECT requests FROM charges") == 1
    check_one_effect_and_nothing_lost(db, queued, "effectful")


@pytest.mark.parametrize("shape", PASSED)
@pytest.mark.parametrize("point", ["consumer.duplicate", "consumer.settling"])
def test_a_kill_while_a_duplicate_is_turned_away_changes_nothing(
    shape: str, point: str, queued: Message, db: Db, dsn: str
) -> None:
    for where in ("consumer.committed", point):
        assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, shape, where))
        deliver_again(db, queued)
    seen = crash.recover(dsn, shape, 1)
    assert seen.count("consumer.duplicate") == 1
    check_one_effect_and_nothing_lost(db, queued, shape)


def test_a_kill_while_another_holds_it_changes_nothing(queued: Message, db: Db, dsn: str) -> None:
    for point in ("consumer.claimed", "consumer.in_flight"):
        assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, "effectful", point))
        deliver_again(db, queued, lapse=point == "consumer.in_flight")
    crash.recover(dsn, "effectful", 1)
    check_one_effect_and_nothing_lost(db, queued, "effectful")


@pytest.mark.parametrize("shape", PASSED)
def test_a_kill_after_a_failed_attempt_is_a_retry(shape: str, queued: Message, db: Db, dsn: str) -> None:
    assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, shape, "consumer.failed", 1, "fails"))
    assert rows.attempts(db, queued) == 1
    crash.recover(dsn, shape, deliver_again(db, queued))
    check_one_effect_and_nothing_lost(db, queued, shape)


@pytest.mark.parametrize("shape", PASSED)
def test_a_kill_after_a_park_is_parked_and_can_be_redriven(shape: str, queued: Message, db: Db, dsn: str) -> None:
    assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, shape, "consumer.parked", 1, "park"))
    assert (rows.state(db, queued), rows.effects(db, queued), len(rows.parked(db))) == ("parked", 0, 1)
    crash.recover(dsn, shape, deliver_again(db, queued))
    assert (rows.state(db, queued), rows.effects(db, queued), len(rows.parked(db))) == ("parked", 0, 1)
    assert not redrive(db, queued.id, consumer=rows.CONSUMER).why_not
    drain(dsn, pgmq.Sink(crash.QUEUE, dsn))
    crash.recover(dsn, shape, 1)
    check_one_effect_and_nothing_lost(db, queued, shape)


@pytest.mark.parametrize("point", ["relay.taken", "relay.published", "relay.deleted"])
def test_a_killed_relay_loses_nothing_and_its_doubles_bear_the_same_ids(point: str, db: Db, dsn: str) -> None:
    pgmq.create_queue(db, crash.QUEUE)
    messages = [order(subject=str(n % 2)) for n in range(6)]
    with db.transaction():
        for message in messages:
            publish(db, message)
    assert crash.died_by_sigkill(crash.start(crash.relay_until_killed, dsn, point))
    drain(dsn, pgmq.Sink(crash.QUEUE, dsn))
    assert rows.outbox(db) == []
    sent = [row[0] for row in db.execute(f"SELECT headers->>'id' FROM pgmq.q_{crash.QUEUE} ORDER BY msg_id".encode())]
    assert set(sent) == {message.id for message in messages}
    assert len(sent) == (7 if point == "relay.published" else 6), "what is repeated is the chunk, and the first is one row"


def test_a_relay_killed_while_a_row_is_postponed_sends_it_later(db: Db, dsn: str) -> None:
    message = order()
    with db.transaction():
        publish(db, message)
    assert crash.died_by_sigkill(crash.start(crash.relay_until_killed, dsn, "relay.postponed"))
    [row] = rows.outbox(db)
    assert (row.id, row.attempts) == (message.id, 1)
    db.execute("UPDATE onceward.outbox SET retry_at = NULL")
    sink = ListSink()
    drain(dsn, sink)
    assert sink.ids == [message.id]


def test_a_relay_killed_when_it_has_set_a_row_aside_leaves_it_for_a_person(db: Db, dsn: str) -> None:
    message = order()
    with db.transaction():
        publish(db, message)
    assert crash.died_by_sigkill(crash.start(crash.relay_until_killed, dsn, "relay.set_aside", 1))
    [row] = rows.outbox(db)
    assert (row.id, row.attempts, row.set_aside_at is not None) == (message.id, 1, True)
    sink = ListSink()
    drain(dsn, sink)
    assert sink.ids == []


def test_every_point_is_killed_at_or_said_to_lead_nowhere() -> None:
    killed = {point for _, point in CASES} | ELSEWHERE
    assert killed | LEAD_NOWHERE == set(POINTS)
    assert not killed & LEAD_NOWHERE


def test_sigterm_drains_what_runs_finishes_and_what_waits_is_given_back(queued: Message, db: Db, dsn: str) -> None:
    sink = pgmq.Sink(crash.QUEUE, dsn)
    sink.publish([order() for _ in range(3)])
    sink.close()
    with psycopg.connect(dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(77)")
        child = crash.start(crash.consume_slowly, dsn, 77)
        prefetched = f"SELECT count(*) FROM pgmq.q_{crash.QUEUE} WHERE vt > clock_timestamp()"
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: rows.scalar(db, prefetched) == 4 and rows.scalar(db, waiting) == 1)
        os.kill(child.pid, signal.SIGTERM)
        holder.execute("SELECT pg_advisory_unlock(77)")
        child.join(timeout=20)
    assert child.exitcode == 0
    done = rows.scalar(db, "SELECT count(*) FROM effects")
    assert done >= 1
    left = rows.scalar(db, f"SELECT count(*) FROM pgmq.q_{crash.QUEUE} WHERE vt <= clock_timestamp()")
    assert done + left == 4


def test_a_recorder_refuses_a_point_that_is_none() -> None:
    with pytest.raises(AssertionError):
        Recorder().count("consumer.exploded")
