"""The second door: `Inbox`, `Intents` and `publish` on the caller's own connection, in the caller's own loop.

Each test runs twice: on the synchronous door, and on that of `onceward.aio`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from tests.support import rows
from tests.support.days import old_message
from tests.support.deliveries import order, order_aged
from tests.support.doors import Door, asynchronous, synchronous

from onceward.consumer import Consumer
from onceward.day_partitions import WINDOW_MAX, attached, database_now, partition_name, upkeep
from onceward.errors import NotInTransaction, UsageError
from onceward.inbox import Inbox, Take, TakeResult
from onceward.intents import Intent, IntentResult, Intents, Record, RecordResult
from onceward.message import Message
from onceward.provider import NO_KEYS, STRIPE_V1

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]


@pytest.fixture(params=[synchronous, asynchronous], ids=lambda door: door.__name__)
def door(request: pytest.FixtureRequest, dsn: str) -> Iterator[Door]:
    with request.param(dsn) as made:
        yield made


@pytest.fixture
def connect(door: Door) -> Connect:
    """Connections of the door's own kind."""
    return door.connect


@pytest.fixture
def conn(connect: Connect) -> Db:
    """One of them, in autocommit mode."""
    return connect()


@pytest.fixture
def db(dsn: str) -> Iterator[Db]:
    """A connection to look with, synchronous behind either door."""
    with psycopg.connect(dsn, autocommit=True) as looking:
        yield looking


@pytest.fixture
def inbox(door: Door) -> Inbox:
    return door.inbox(rows.CONSUMER)


@pytest.fixture
def intents(door: Door) -> Intents:
    return door.intents(rows.CONSUMER)


def test_a_take_is_done_when_the_caller_commits(db: Db, connect: Connect, inbox: Inbox) -> None:
    message, conn = order(), connect(autocommit=False)
    assert inbox.take(conn, message).result is TakeResult.TAKEN
    assert rows.state(db, message) is None
    conn.commit()
    assert rows.state(db, message) == "done"
    assert inbox.take(conn, message).result is TakeResult.DUPLICATE


def test_a_take_leaves_nothing_when_the_caller_rolls_back(connect: Connect, inbox: Inbox) -> None:
    message, conn = order(), connect(autocommit=False)
    inbox.take(conn, message)
    conn.rollback()
    assert inbox.take(conn, message).result is TakeResult.TAKEN


def test_a_take_that_would_be_committed_on_its_own_is_refused(db: Db, conn: Db, inbox: Inbox) -> None:
    message = order()
    with pytest.raises(NotInTransaction):
        inbox.take(conn, message)
    assert rows.state(db, message) is None


def test_a_take_works_in_an_explicit_transaction_of_an_autocommit_connection(db: Db, conn: Db, inbox: Inbox) -> None:
    message = order()
    with conn.transaction():
        assert inbox.take(conn, message).result is TakeResult.TAKEN
    assert rows.state(db, message) == "done"


def test_a_publish_that_would_be_committed_on_its_own_is_refused(db: Db, door: Door, conn: Db) -> None:
    with pytest.raises(NotInTransaction):
        door.publish(conn, order())
    assert rows.outbox(db) == []


def test_a_publish_lives_and_dies_with_the_callers_transaction(db: Db, connect: Connect, door: Door) -> None:
    conn, message = connect(autocommit=False), order(subject="order-1", traceparent="00-1-2-01")
    door.publish(conn, order())
    conn.rollback()
    door.publish(conn, message)
    conn.commit()
    [row] = rows.outbox(db)
    assert (row.id, row.type, row.aggregateid, row.aggregatetype) == (message.id, "order.placed", "order-1", "order")
    assert (row.payload, row.time, row.traceparent) == (message.body, message.time, message.traceparent)


def test_a_session_that_does_not_commit_durably_is_refused(db: Db, connect: Connect, inbox: Inbox) -> None:
    message, conn = order(), connect()
    conn.execute("SET synchronous_commit TO off")
    with pytest.raises(UsageError, match="synchronous_commit"):
        inbox.claim(conn, message)
    with conn.transaction(), pytest.raises(UsageError, match="synchronous_commit"):
        inbox.take(conn, message)
    assert rows.state(db, message) is None
    take = inbox.claim(connect(), message)
    with conn.transaction(), pytest.raises(UsageError, match="synchronous_commit"):
        inbox.finish(conn, message, take=take)
    assert rows.state(db, message) == "pending"


@pytest.mark.parametrize("level", ["local", "remote_write", "on"])
def test_a_session_that_commits_at_least_locally_is_served(level: str, connect: Connect, inbox: Inbox) -> None:
    conn = connect()
    conn.execute(f"SET synchronous_commit TO {level}".encode())
    with conn.transaction():
        assert inbox.take(conn, order()).result is TakeResult.TAKEN


def test_a_claim_is_committed_when_it_returns(db: Db, connect: Connect, inbox: Inbox) -> None:
    message = order()
    assert inbox.claim(connect(autocommit=False), message).result is TakeResult.TAKEN
    assert rows.state(db, message) == "pending"


def test_a_claim_inside_an_open_transaction_is_refused(conn: Db, inbox: Inbox) -> None:
    with conn.transaction(), pytest.raises(UsageError):
        inbox.claim(conn, order())


def test_a_finish_needs_a_transaction_and_a_token_that_is_still_mine(db: Db, conn: Db, inbox: Inbox) -> None:
    message = order()
    take = inbox.claim(conn, message)
    with pytest.raises(NotInTransaction):
        inbox.finish(conn, message, take=take)
    rows.claim_by_another(db, message)
    with conn.transaction():
        assert not inbox.finish(conn, message, take=take)
    assert (rows.state(db, message), rows.inbox_row(db, message).token) == ("pending", 2)


def test_a_finish_makes_the_row_done_with_the_callers_writes(db: Db, conn: Db, inbox: Inbox) -> None:
    message = order()
    take = inbox.claim(conn, message)
    with conn.transaction():
        assert inbox.finish(conn, message, take=take)
        rows.write_effect(conn, message)
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


def test_a_claim_that_is_given_back_may_be_taken_at_once(conn: Db, inbox: Inbox) -> None:
    message = order()
    take = inbox.claim(conn, message)
    assert inbox.give_back(conn, message, take=take)
    again = inbox.claim(conn, message)
    assert (again.result, again.token, again.takes) == (TakeResult.TAKEN, 2, 1)
    assert not inbox.give_back(conn, message, take=take)


def test_takes_are_counted_over_crashes(db: Db, conn: Db, inbox: Inbox) -> None:
    message = order()
    inbox.claim(conn, message)
    for takes in (2, 3, 4):
        rows.lapse(db, message)
        assert inbox.claim(conn, message).takes == takes


def test_an_id_without_a_time_is_outside_the_window(conn: Db, inbox: Inbox) -> None:
    with conn.transaction():
        assert inbox.take(conn, order(id="invoice-7")).result is TakeResult.OUTSIDE_WINDOW


def test_the_callers_rows_may_be_dictionaries(connect: Connect, inbox: Inbox, intents: Intents) -> None:
    conn = connect(row_factory=dict_row)
    message = order()
    take = inbox.claim(conn, message)
    assert _intend(intents, conn, message, take).result is IntentResult.CALL
    assert intents.record(conn, message, n=1, answer={"id": 1}).result is RecordResult.RECORDED
    assert _intend(intents, conn, message, take).answer == {"id": 1}
    with conn.transaction():
        assert inbox.finish(conn, message, take=take)


@pytest.mark.parametrize("message_id", [None, "order-7"], ids=["taken", "without a time"])
def test_the_callers_lock_timeout_is_its_own_again_after_a_take(message_id: str | None, conn: Db, inbox: Inbox) -> None:
    with conn.transaction():
        conn.execute("SET LOCAL lock_timeout TO '7s'")
        inbox.take(conn, order(id=message_id))
        assert rows.scalar(conn, "SHOW lock_timeout") == "7s"


def test_a_row_that_is_locked_for_long_is_in_flight_and_the_callers_transaction_goes_on(
    db: Db, connect: Connect, inbox: Inbox
) -> None:
    message, first, second = order(), connect(autocommit=False), connect(autocommit=False)
    assert inbox.take(first, message).result is TakeResult.TAKEN
    rows.write_effect(second, message)
    assert inbox.take(second, message).result is TakeResult.IN_FLIGHT
    second.commit()
    first.rollback()
    assert (rows.effects(db, message), rows.state(db, message)) == (1, None)


# ---- the window --------------------------------------------------------------------------------------------------------


def test_register_says_the_window_and_makes_the_coming_partitions(db: Db, door: Door, conn: Db) -> None:
    old, inbox = old_message(db), door.inbox("mine", window=timedelta(days=90))
    coming = partition_name("inbox", database_now(db).date() + timedelta(days=3))
    db.execute(f"DROP TABLE onceward.{coming}".encode())
    inbox.register(conn)
    assert coming in {name for name, _ in attached(db, schema="onceward")}
    assert upkeep(db, schema="onceward").dropped == []
    with conn.transaction():
        assert inbox.take(conn, old).result is TakeResult.TAKEN


def test_what_an_error_of_a_missing_partition_says_helps(db: Db, door: Door, conn: Db) -> None:
    message, inbox = order_aged(db, 20 * 86_400), door.inbox("mine")
    with conn.transaction(), pytest.raises(UsageError, match=r"inbox\.make_partition\(conn, message\)"):
        inbox.take(conn, message)
    with pytest.raises(UsageError, match="make_partition"):
        inbox.claim(conn, message)
    inbox.make_partition(conn, message)
    assert inbox.claim(conn, message).result is TakeResult.TAKEN


def test_a_retired_day_is_outside_the_window_and_no_error(db: Db, door: Door, conn: Db) -> None:
    message, inbox = old_message(db), door.inbox("mine", window=timedelta(days=90))
    upkeep(db, schema="onceward")
    inbox.make_partition(conn, message)
    with conn.transaction():
        take = inbox.take(conn, message)
        assert (take.result, "retired" in take.detail) == (TakeResult.OUTSIDE_WINDOW, True)
        rows.write_effect(conn, message)
    assert inbox.claim(conn, message).result is TakeResult.OUTSIDE_WINDOW


@pytest.mark.parametrize(
    "call", [lambda inbox: inbox.register, lambda inbox: partial(inbox.make_partition, message=order())]
)
def test_partitions_are_not_made_inside_the_callers_transaction(call: Callable[..., Any], conn: Db, inbox: Inbox) -> None:
    """They would be there for nobody else before it ends, and hold everybody up who makes one."""
    with conn.transaction(), pytest.raises(UsageError, match="outside a transaction"):
        call(inbox)(conn)


@pytest.mark.parametrize("window", [30, "30 days", None, timedelta(0), timedelta(days=-1), timedelta.max], ids=repr)
def test_a_window_that_cannot_work_is_refused_where_it_is_written(window: Any) -> None:
    for make in (Inbox, Consumer):
        with pytest.raises(UsageError, match="window"):
            make("payments", window=window)


def test_the_longest_window_that_is_allowed_works(db: Db, door: Door, conn: Db) -> None:
    inbox = door.inbox("mine", window=WINDOW_MAX)
    inbox.register(conn)
    assert upkeep(db, schema="onceward").dropped == []
    with conn.transaction():
        assert inbox.take(conn, order()).result is TakeResult.TAKEN


def test_a_window_that_was_written_before_there_was_a_limit_stops_no_upkeep(db: Db) -> None:
    db.execute("INSERT INTO onceward.consumers (name, window_seconds) VALUES ('forever', 86399999999999.999)")
    assert upkeep(db, schema="onceward").retire_skipped is None


# ---- intents -----------------------------------------------------------------------------------------------------------


def _intend(
    intents: Intents,
    conn: Db,
    message: Message,
    take: Take,
    *,
    name: str = "charge",
    request: object = 1,
    provider: Any = STRIPE_V1,
) -> Intent:
    return intents.intend(conn, message, take=take, n=1, name=name, request=request, provider=provider)


def test_an_intent_is_committed_and_found_again_with_the_same_key(db: Db, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    first, again = _intend(intents, conn, message, take), _intend(intents, conn, message, take)
    assert first == again == Intent(IntentResult.CALL, key=intents.key(message, "charge"))
    [intent] = rows.intents(db, message)
    assert (intent.state, intent.name, intent.key) == ("pending", "charge", first.key)


def test_an_intent_in_an_open_transaction_is_refused(connect: Connect, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    with conn.transaction(), pytest.raises(UsageError):
        _intend(intents, conn, message, take)
    with pytest.raises(UsageError):
        _intend(intents, connect(autocommit=False), message, take)


def test_a_request_that_is_not_plain_json_is_refused_before_anything_is_written(
    db: Db, conn: Db, inbox: Inbox, intents: Intents
) -> None:
    message = order()
    take = inbox.claim(conn, message)
    with pytest.raises(UsageError, match="plain JSON"):
        _intend(intents, conn, message, take, request={"amount": object()})
    assert rows.intents(db, message) == []


def test_an_intent_under_a_lapsed_lease_is_refused(db: Db, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    rows.lapse(db, message)
    assert _intend(intents, conn, message, take).result is IntentResult.LEASE_LOST
    assert rows.intents(db, message) == []


def test_an_intent_under_another_workers_token_is_refused(db: Db, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    rows.claim_by_another(db, message)
    assert _intend(intents, conn, message, take).result is IntentResult.LEASE_LOST


def test_another_name_or_request_at_the_same_place_is_changed(conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    _intend(intents, conn, message, take)
    renamed, changed = (
        _intend(intents, conn, message, take, name="refund"),
        _intend(intents, conn, message, take, request=2),
    )
    assert (renamed.result, changed.result) == (IntentResult.CHANGED, IntentResult.CHANGED)
    assert "'charge'" in renamed.detail
    assert "another request" in changed.detail


def test_an_answer_that_is_recorded_is_given_again_without_a_call(conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    _intend(intents, conn, message, take)
    intents.record(conn, message, n=1, answer={"code": "card_declined"}, refused=True)
    again = _intend(intents, conn, message, take)
    assert (again.result, again.answer, again.refused) == (IntentResult.ANSWERED, {"code": "card_declined"}, True)


def test_a_key_that_its_provider_may_have_forgotten_is_looked_up(db: Db, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    _intend(intents, conn, message, take)
    rows.age_intents(db, message, timedelta(hours=23.5))
    assert _intend(intents, conn, message, take).result is IntentResult.LOOK_UP


def test_a_provider_without_keys_is_never_called_a_second_time(db: Db, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    assert _intend(intents, conn, message, take, provider=NO_KEYS).result is IntentResult.CALL
    assert _intend(intents, conn, message, take, provider=NO_KEYS).result is IntentResult.LOOK_UP
    db.execute("UPDATE onceward.intents SET started_at = clock_timestamp() + interval '1 hour'")
    again = _intend(intents, conn, message, take, provider=NO_KEYS)
    assert again.result is IntentResult.LOOK_UP, "also when the clock was set back meanwhile"


def test_an_answer_is_write_once_and_not_fenced(db: Db, conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    take = inbox.claim(conn, message)
    _intend(intents, conn, message, take)
    rows.claim_by_another(db, message)
    answers = [{"id": "ch_1", "n": 1}, {"n": 1, "id": "ch_1"}, {"id": "ch_2"}]
    first, same, other = [intents.record(conn, message, n=1, answer=answer) for answer in answers]
    assert first == same == Record(RecordResult.RECORDED)
    assert other.result is RecordResult.TWO_ANSWERS
    assert "ch_1" in other.detail
    assert "ch_2" in other.detail
    assert rows.intents(db, message)[0].answer == answers[0]


def test_a_refusal_and_an_answer_of_the_same_text_are_two_answers(conn: Db, inbox: Inbox, intents: Intents) -> None:
    message = order()
    _intend(intents, conn, message, inbox.claim(conn, message))
    intents.record(conn, message, n=1, answer={"id": 1})
    assert intents.record(conn, message, n=1, answer={"id": 1}, refused=True).result is RecordResult.TWO_ANSWERS
