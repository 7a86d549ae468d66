"""The second door: `Inbox`, `Intents` and `publish` on the caller's own connection, in the caller's own loop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from tests.support import rows
from tests.support.days import old_message
from tests.support.deliveries import order, order_aged

from onceward.consumer import Consumer
from onceward.day_partitions import WINDOW_MAX, attached, database_now, partition_name, upkeep
from onceward.errors import NotInTransaction, UsageError
from onceward.inbox import Inbox, Take, TakeResult
from onceward.intents import Intent, IntentResult, Intents, Record, RecordResult
from onceward.message import Message
from onceward.outbox import publish
from onceward.provider import NO_KEYS, STRIPE_V1

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]
INBOX = Inbox(rows.CONSUMER)
INTENTS = Intents(rows.CONSUMER)


def test_a_take_is_done_when_the_caller_commits(db: Db, connect: Connect) -> None:
    message, conn = order(), connect(autocommit=False)
    assert INBOX.take(conn, message).result is TakeResult.TAKEN
    assert rows.state(db, message) is None
    conn.commit()
    assert rows.state(db, message) == "done"
    assert INBOX.take(conn, message).result is TakeResult.DUPLICATE


def test_a_take_leaves_nothing_when_the_caller_rolls_back(db: Db, connect: Connect) -> None:
    message, conn = order(), connect(autocommit=False)
    INBOX.take(conn, message)
    conn.rollback()
    assert INBOX.take(conn, message).result is TakeResult.TAKEN


def test_a_take_that_would_be_committed_on_its_own_is_refused(db: Db) -> None:
    message = order()
    with pytest.raises(NotInTransaction):
        INBOX.take(db, message)
    assert rows.state(db, message) is None


def test_a_take_works_in_an_explicit_transaction_of_an_autocommit_connection(db: Db) -> None:
    message = order()
    with db.transaction():
        assert INBOX.take(db, message).result is TakeResult.TAKEN
    assert rows.state(db, message) == "done"


def test_a_publish_that_would_be_committed_on_its_own_is_refused(db: Db) -> None:
    with pytest.raises(NotInTransaction):
        publish(db, order())
    assert rows.outbox(db) == []


def test_a_publish_lives_and_dies_with_the_callers_transaction(db: Db, connect: Connect) -> None:
    conn, message = connect(autocommit=False), order(subject="order-1", traceparent="00-1-2-01")
    publish(conn, order())
    conn.rollback()
    publish(conn, message)
    conn.commit()
    [row] = rows.outbox(db)
    assert (row.id, row.type, row.aggregateid, row.aggregatetype) == (message.id, "order.placed", "order-1", "order")
    assert (row.payload, row.time, row.traceparent) == (message.body, message.time, message.traceparent)


def test_a_session_that_does_not_commit_durably_is_refused(db: Db, connect: Connect) -> None:
    message, conn = order(), connect()
    conn.execute("SET synchronous_commit TO off")
    with pytest.raises(UsageError, match="synchronous_commit"):
        INBOX.claim(conn, message)
    with conn.transaction(), pytest.raises(UsageError, match="synchronous_commit"):
        INBOX.take(conn, message)
    assert rows.state(db, message) is None
    take = INBOX.claim(db, message)
    with conn.transaction(), pytest.raises(UsageError, match="synchronous_commit"):
        INBOX.finish(conn, message, take=take)
    assert rows.state(db, message) == "pending"


@pytest.mark.parametrize("level", ["local", "remote_write", "on"])
def test_a_session_that_commits_at_least_locally_is_served(level: str, connect: Connect) -> None:
    conn = connect()
    conn.execute(f"SET synchronous_commit TO {level}".encode())
    with conn.transaction():
        assert INBOX.take(conn, order()).result is TakeResult.TAKEN


def test_a_claim_is_committed_when_it_returns(db: Db, connect: Connect) -> None:
    message = order()
    assert INBOX.claim(connect(autocommit=False), message).result is TakeResult.TAKEN
    assert rows.state(db, message) == "pending"


def test_a_claim_inside_an_open_transaction_is_refused(db: Db) -> None:
    with db.transaction(), pytest.raises(UsageError):
        INBOX.claim(db, order())


def test_a_finish_needs_a_transaction_and_a_token_that_is_still_mine(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    with pytest.raises(NotInTransaction):
        INBOX.finish(db, message, take=take)
    rows.claim_by_another(db, message)
    with db.transaction():
        assert not INBOX.finish(db, message, take=take)
    assert (rows.state(db, message), rows.inbox_row(db, message).token) == ("pending", 2)


def test_a_finish_makes_the_row_done_with_the_callers_writes(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    with db.transaction():
        assert INBOX.finish(db, message, take=take)
        rows.write_effect(db, message)
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


def test_a_claim_that_is_given_back_may_be_taken_at_once(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    assert INBOX.give_back(db, message, take=take)
    again = INBOX.claim(db, message)
    assert (again.result, again.token, again.takes) == (TakeResult.TAKEN, 2, 1)
    assert not INBOX.give_back(db, message, take=take)


def test_takes_are_counted_over_crashes(db: Db) -> None:
    message = order()
    INBOX.claim(db, message)
    for takes in (2, 3, 4):
        rows.lapse(db, message)
        assert INBOX.claim(db, message).takes == takes


def test_an_id_without_a_time_is_outside_the_window(db: Db) -> None:
    with db.transaction():
        assert INBOX.take(db, order(id="invoice-7")).result is TakeResult.OUTSIDE_WINDOW


def test_the_callers_rows_may_be_dictionaries(connect: Connect) -> None:
    conn = connect(row_factory=dict_row)
    message = order()
    take = INBOX.claim(conn, message)
    assert _intend(conn, message, take).result is IntentResult.CALL
    assert INTENTS.record(conn, message, n=1, answer={"id": 1}).result is RecordResult.RECORDED
    assert _intend(conn, message, take).answer == {"id": 1}
    with conn.transaction():
        assert INBOX.finish(conn, message, take=take)


@pytest.mark.parametrize("message_id", [None, "order-7"], ids=["taken", "without a time"])
def test_the_callers_lock_timeout_is_its_own_again_after_a_take(message_id: str | None, db: Db) -> None:
    with db.transaction():
        db.execute("SET LOCAL lock_timeout TO '7s'")
        INBOX.take(db, order(id=message_id))
        assert rows.scalar(db, "SHOW lock_timeout") == "7s"


# ---- the window --------------------------------------------------------------------------------------------------------


def test_register_says_the_window_and_makes_the_coming_partitions(db: Db) -> None:
    old, inbox = old_message(db), Inbox("mine", window=timedelta(days=90))
    coming = partition_name("inbox", database_now(db).date() + timedelta(days=3))
    db.execute(f"DROP TABLE onceward.{coming}".encode())
    inbox.register(db)
    assert coming in {name for name, _ in attached(db, schema="onceward")}
    assert upkeep(db, schema="onceward").dropped == []
    with db.transaction():
        assert inbox.take(db, old).result is TakeResult.TAKEN


def test_what_an_error_of_a_missing_partition_says_helps(db: Db) -> None:
    message, inbox = order_aged(db, 20 * 86_400), Inbox("mine")
    with db.transaction(), pytest.raises(UsageError, match=r"inbox\.make_partition\(conn, message\)"):
        inbox.take(db, message)
    with pytest.raises(UsageError, match="make_partition"):
        inbox.claim(db, message)
    inbox.make_partition(db, message)
    assert inbox.claim(db, message).result is TakeResult.TAKEN


def test_a_retired_day_is_outside_the_window_and_no_error(db: Db) -> None:
    message, inbox = old_message(db), Inbox("mine", window=timedelta(days=90))
    upkeep(db, schema="onceward")
    inbox.make_partition(db, message)
    with db.transaction():
        take = inbox.take(db, message)
        assert (take.result, "retired" in take.detail) == (TakeResult.OUTSIDE_WINDOW, True)
        rows.write_effect(db, message)
    assert inbox.claim(db, message).result is TakeResult.OUTSIDE_WINDOW


@pytest.mark.parametrize("call", [Inbox.register, lambda inbox, conn: inbox.make_partition(conn, order())])
def test_partitions_are_not_made_inside_the_callers_transaction(call: Callable[..., None], db: Db) -> None:
    """They would be there for nobody else before it ends, and hold everybody up who makes one."""
    with db.transaction(), pytest.raises(UsageError, match="outside a transaction"):
        call(INBOX, db)


@pytest.mark.parametrize("window", [30, "30 days", None, timedelta(0), timedelta(days=-1), timedelta.max], ids=repr)
def test_a_window_that_cannot_work_is_refused_where_it_is_written(window: Any) -> None:
    for make in (Inbox, Consumer):
        with pytest.raises(UsageError, match="window"):
            make("payments", window=window)


def test_the_longest_window_that_is_allowed_works(db: Db) -> None:
    inbox = Inbox("mine", window=WINDOW_MAX)
    inbox.register(db)
    assert upkeep(db, schema="onceward").dropped == []
    with db.transaction():
        assert inbox.take(db, order()).result is TakeResult.TAKEN


def test_a_window_that_was_written_before_there_was_a_limit_stops_no_upkeep(db: Db) -> None:
    db.execute("INSERT INTO onceward.consumers (name, window_seconds) VALUES ('forever', 86399999999999.999)")
    assert upkeep(db, schema="onceward").retire_skipped is None


# ---- intents -----------------------------------------------------------------------------------------------------------


def _intend(
    conn: Db, message: Message, take: Take, *, name: str = "charge", request: object = 1, provider: Any = STRIPE_V1
) -> Intent:
    return INTENTS.intend(conn, message, take=take, n=1, name=name, request=request, provider=provider)


def test_an_intent_is_committed_and_found_again_with_the_same_key(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    first, again = _intend(db, message, take), _intend(db, message, take)
    assert first == again == Intent(IntentResult.CALL, key=INTENTS.key(message, "charge"))
    [intent] = rows.intents(db, message)
    assert (intent.state, intent.name, intent.key) == ("pending", "charge", first.key)


def test_an_intent_in_an_open_transaction_is_refused(db: Db, connect: Connect) -> None:
    message = order()
    take = INBOX.claim(db, message)
    with db.transaction(), pytest.raises(UsageError):
        _intend(db, message, take)
    with pytest.raises(UsageError):
        _intend(connect(autocommit=False), message, take)


def test_a_request_that_is_not_plain_json_is_refused_before_anything_is_written(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    with pytest.raises(UsageError, match="plain JSON"):
        _intend(db, message, take, request={"amount": object()})
    assert rows.intents(db, message) == []


def test_an_intent_under_a_lapsed_lease_is_refused(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    rows.lapse(db, message)
    assert _intend(db, message, take).result is IntentResult.LEASE_LOST
    assert rows.intents(db, message) == []


def test_an_intent_under_another_workers_token_is_refused(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    rows.claim_by_another(db, message)
    assert _intend(db, message, take).result is IntentResult.LEASE_LOST


def test_another_name_or_request_at_the_same_place_is_changed(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    _intend(db, message, take)
    renamed, changed = _intend(db, message, take, name="refund"), _intend(db, message, take, request=2)
    assert (renamed.result, changed.result) == (IntentResult.CHANGED, IntentResult.CHANGED)
    assert "'charge'" in renamed.detail
    assert "another request" in changed.detail


def test_an_answer_that_is_recorded_is_given_again_without_a_call(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    _intend(db, message, take)
    INTENTS.record(db, message, n=1, answer={"code": "card_declined"}, refused=True)
    again = _intend(db, message, take)
    assert (again.result, again.answer, again.refused) == (IntentResult.ANSWERED, {"code": "card_declined"}, True)


def test_a_key_that_its_provider_may_have_forgotten_is_looked_up(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    _intend(db, message, take)
    rows.age_intents(db, message, timedelta(hours=23.5))
    assert _intend(db, message, take).result is IntentResult.LOOK_UP


def test_a_provider_without_keys_is_never_called_a_second_time(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    assert _intend(db, message, take, provider=NO_KEYS).result is IntentResult.CALL
    assert _intend(db, message, take, provider=NO_KEYS).result is IntentResult.LOOK_UP
    db.execute("UPDATE onceward.intents SET started_at = clock_timestamp() + interval '1 hour'")
    again = _intend(db, message, take, provider=NO_KEYS)
    assert again.result is IntentResult.LOOK_UP, "also when the clock was set back meanwhile"


def test_an_answer_is_write_once_and_not_fenced(db: Db) -> None:
    message = order()
    take = INBOX.claim(db, message)
    _intend(db, message, take)
    rows.claim_by_another(db, message)
    answers = [{"id": "ch_1", "n": 1}, {"n": 1, "id": "ch_1"}, {"id": "ch_2"}]
    first, same, other = [INTENTS.record(db, message, n=1, answer=answer) for answer in answers]
    assert first == same == Record(RecordResult.RECORDED)
    assert other.result is RecordResult.TWO_ANSWERS
    assert "ch_1" in other.detail
    assert "ch_2" in other.detail
    assert rows.intents(db, message)[0].answer == answers[0]


def test_a_refusal_and_an_answer_of_the_same_text_are_two_answers(db: Db) -> None:
    message = order()
    _intend(db, message, INBOX.claim(db, message))
    INTENTS.record(db, message, n=1, answer={"id": 1})
    assert INTENTS.record(db, message, n=1, answer={"id": 1}, refused=True).result is RecordResult.TWO_ANSWERS
