"""Decisions beside late answers, workers, other people, crashes and upkeep: one stands, and it stands whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.database.test_late_redrive import AGE, SCHEMA, WINDOW, message_of_ten_days_ago, names_of
from tests.database.test_late_redrive import day_of as day_of_message
from tests.support import crash, rows
from tests.support.decisions import (
    KINDS,
    PAST_THE_WINDOW,
    SECOND,
    SETTLED,
    decide,
    decide_and_die,
    decided,
    every_kind,
    inside_a_transaction,
    park_unknown,
    park_with_two_answers,
    reasons,
    redeliver,
    reject,
    snapshot,
    state_of_effects,
)
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import Gate
from tests.support.shop import charging, effectful, transactional
from tests.support.waiting import Background, until_any_blocked

from onceward.consumer import OpenConsumer
from onceward.day_partitions import upkeep
from onceward.decisions import (
    DecisionKind,
    list_decisions,
)
from onceward.errors import ConflictError, Reject
from onceward.inbox import Inbox
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
CONSUMER = rows.CONSUMER


# ---- late answers ------------------------------------------------------------------------------------------------------


def answering_late(opened: Opened, message: Message, meanwhile: Callable[[], object], *, answer: object) -> list[object]:
    """A worker that is frozen inside its call: `meanwhile` happens, and then it is answered. What its handler met."""
    met: list[object] = []

    def call(_request: Any, _key: str) -> object:
        meanwhile()
        return answer

    def handle(message: Message, once: Once) -> None:
        try:
            met.append(once.effect("charge", call, request=message.json(), provider=STRIPE_V1))
        except Exception as error:
            met.append(error)
            raise

    opened(effectful(handle)).deliver(delivery(message))
    return met


def parking_it(opened: Opened, db: Db, message: Message, provider: Provider) -> Callable[[], None]:
    """Its lease lapses, its key expires, and another worker parks it."""

    def park() -> None:
        rows.lapse(db, message)
        rows.age_intents(db, message, PAST_THE_WINDOW)
        opened(charging(provider)).deliver(delivery(message, times=2))
        assert reasons(db) == ["unknown"]

    return park


def test_two_answers_of_a_message_that_is_done_can_only_be_discarded(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()

    def finish_first() -> None:
        rows.lapse(db, message)
        opened(charging(provider)).deliver(delivery(message))

    answering_late(opened, message, finish_first, answer={"id": "ch_late"})
    assert (rows.state(db, message), reasons(db)) == ("done", ["two answers"])
    before = snapshot(db)
    assert "which is done: look into it, then discard it" in decide(db, DecisionKind.SETTLE, message).why_not
    assert snapshot(db) == before
    made = decide(db, DecisionKind.DISCARD, message)
    assert (made.stands, made.expect) == (True, "")
    assert rows.books(db, message) == rows.Books("done", 2, 0, [], 1)
    assert state_of_effects(db, message) == ["done"]
    assert "ch_late" in decided(db).was["detail"]


def test_an_answer_after_a_discard_parks_the_message_again(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park = parking_it(opened, db, message, provider)

    def discard() -> None:
        park()
        assert decide(db, DecisionKind.DISCARD, message).stands

    [met] = answering_late(opened, message, discard, answer={"id": "ch_late"})
    assert isinstance(met, ConflictError)
    assert (rows.state(db, message), state_of_effects(db, message)) == ("discarded", ["discarded"])
    [entry] = rows.parked(db)
    assert entry.reason == "answered after discard"
    assert "ch_late" in entry.detail
    for kind in KINDS[:-1]:
        assert "which is discarded: look into it, then discard it" in decide(db, kind, message).why_not
    assert decide(db, DecisionKind.DISCARD, message, decider=SECOND).stands
    assert [made.decided_by for made in list_decisions(db)] == ["bob", "ann"]
    assert "ch_late" in list_decisions(db)[0].was["detail"]


@pytest.mark.parametrize(("answer", "parked"), [(SETTLED, []), ({"id": "ch_late"}, ["two answers"])])
def test_an_answer_after_a_settle_must_be_the_same(answer: object, parked: list[str], opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park = parking_it(opened, db, message, provider)

    def settle_it() -> None:
        park()
        assert decide(db, DecisionKind.SETTLE, message).stands

    answering_late(opened, message, settle_it, answer=answer)
    assert (rows.state(db, message), reasons(db)) == ("pending", parked)
    assert redeliver(opened(charging(provider)), db, message) == ACK
    assert (rows.state(db, message), provider.calls) == ("done", 0)
    assert rows.scalar(db, "SELECT note FROM effects") == "ch_of_the_dashboard"


def test_an_answer_to_the_former_key_keeps_the_new_one_from_being_called(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park = parking_it(opened, db, message, provider)

    def reopen() -> None:
        park()
        assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands

    answering_late(opened, message, reopen, answer={"id": "ch_late"})
    assert (rows.state(db, message), reasons(db), state_of_effects(db, message)) == ("pending", [], ["done"])
    assert redeliver(opened(charging(provider)), db, message) == ACK
    assert (provider.calls, rows.scalar(db, "SELECT note FROM effects")) == (0, "ch_late")


def test_an_answer_to_the_former_key_after_one_to_the_new_key_is_seen(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park = parking_it(opened, db, message, provider)

    def reopen_and_call() -> None:
        park()
        assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
        assert redeliver(opened(charging(provider)), db, message) == ACK

    [met] = answering_late(opened, message, reopen_and_call, answer={"id": "ch_late"})
    assert isinstance(met, ConflictError)
    assert (rows.books(db, message), provider.calls) == (rows.Books("done", 4, 0, ["two answers"], 1), 1)


# ---- others at the same time -------------------------------------------------------------------------------------------


@every_kind
def test_a_redelivery_in_the_middle_of_a_decision_comes_again_later_and_loses_nothing(
    kind: DecisionKind, opened: Opened, db: Db, connect: Callable[..., Db]
) -> None:
    """It waits no longer than for any other row that is locked; what goes on is sent by the decision's outbox row."""
    message, provider, deciding = order(), Provider(), inside_a_transaction(connect)
    consumer = park_unknown(opened, db, message, provider, charged=False)
    assert decide(deciding, kind, message).stands
    assert consumer.deliver(delivery(message, times=2)).action == "release"
    assert rows.state(db, message) == "parked"
    deciding.commit()
    if kind is DecisionKind.DISCARD:
        assert (rows.outbox(db), rows.effects(db, message)) == ([], 0)
        return
    assert redeliver(consumer, db, message) == ACK
    assert reasons(db) == (["unknown"] if kind is DecisionKind.REDRIVE else [])
    assert provider.calls == (2 if kind is DecisionKind.DID_NOT_HAPPEN else 1)


@every_kind
@pytest.mark.parametrize("second", KINDS, ids=lambda kind: kind.value)
def test_of_two_people_at_once_the_second_hears_what_the_first_has_decided(
    kind: DecisionKind, second: DecisionKind, opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    message, provider, first = order(), Provider(), inside_a_transaction(connect)
    park_unknown(opened, db, message, provider, charged=False)
    assert decide(first, kind, message).stands
    waiting = background(decide, connect(), second, message, decider=SECOND)
    until_any_blocked(db)
    first.commit()
    after = snapshot(db)
    why_not = waiting.result().why_not
    assert why_not.startswith(f"nothing is parked there under this id: ann decided '{kind.value}' at ")
    assert snapshot(db) == after
    assert (decided(db).kind, decided(db).decided_by) == (kind, "ann")


@every_kind
def test_of_two_people_at_once_the_second_decides_where_the_first_took_it_back(
    kind: DecisionKind, opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    message, provider, first = order(), Provider(), inside_a_transaction(connect)
    park_unknown(opened, db, message, provider, charged=False)
    assert decide(first, DecisionKind.SETTLE, message, answer={"id": "wrong"}).stands
    waiting = background(decide, connect(), kind, message, decider=SECOND)
    until_any_blocked(db)
    first.rollback()
    assert waiting.result().stands
    assert (decided(db).kind, decided(db).decided_by) == (kind, "bob")


@every_kind
def test_many_people_at_once_leave_one_decision(
    kind: DecisionKind, opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    message, provider = order(), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False)
    people = [connect() for _ in range(6)]
    others = [*KINDS, kind, kind]
    made = [background(decide, conn, other, message).result for conn, other in zip(people, others, strict=True)]
    [stands] = [one() for one in made if one().stands]
    assert decided(db).kind is stands.kind
    if stands.kind is not DecisionKind.DISCARD:
        redeliver(consumer, db, message)
    assert (len(rows.outbox(db)), provider.calls) == (0, 2 if stands.kind is DecisionKind.DID_NOT_HAPPEN else 1)


@pytest.mark.parametrize("level", [2, 3], ids=["repeatable read", "serializable"])
def test_in_a_stricter_transaction_the_second_gets_the_databases_error(
    level: int, opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    message, provider, first, second = order(), Provider(), inside_a_transaction(connect), connect()
    park_unknown(opened, db, message, provider, charged=False)
    second.isolation_level = psycopg.IsolationLevel(level + 1)
    assert decide(first, DecisionKind.SETTLE, message).stands
    waiting = background(decide, second, DecisionKind.DISCARD, message, decider=SECOND)
    until_any_blocked(db)
    first.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        waiting.result()
    assert decided(db).kind is DecisionKind.SETTLE


def test_a_conflict_beside_a_row_that_is_being_finished_is_decided_without_waiting(
    opened: Opened, db: Db, background: Background
) -> None:
    message = order({"amount": 1})
    with Gate("consumer.claimed") as claimed, Gate("consumer.handled") as handled:
        finishing = background(opened(effectful(), claimed, handled).deliver, delivery(message))
        claimed.wait()
        opened(effectful()).deliver(delivery(order({"amount": 2}, id=message.id)))
        claimed.release()
        handled.wait()
        db.execute("SET lock_timeout TO '1ms'")
        assert decide(db, DecisionKind.DISCARD, message).stands
    assert finishing.result() == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


@pytest.mark.parametrize("kind", [DecisionKind.REDRIVE, DecisionKind.DISCARD], ids=lambda kind: kind.value)
def test_a_foreign_commit_that_is_noticed_after_a_decision_is_parked_beside_its_row(
    kind: DecisionKind, opened: Opened, db: Db, background: Background
) -> None:
    """The first worker's handler rolls back by itself and freezes; another parks the message, and a person decides."""
    message = order()

    def roll_back(_message: Message, tx: Db) -> None:
        tx.execute("ROLLBACK")

    with Gate("consumer.handled") as gate:
        frozen = background(opened(transactional(roll_back), gate).deliver, delivery(message))
        gate.wait()
        opened(transactional(reject)).deliver(delivery(message, times=2))
        assert decide(db, kind, message).stands
        row = rows.inbox_row(db, message)
        gate.release()
        assert frozen.result() == ACK
    after = rows.inbox_row(db, message)
    assert (after.state, after.token, reasons(db)) == (row.state, row.token, ["foreign commit"])
    assert "what it wrote may stand" in decide(db, DecisionKind.SETTLE, message).why_not
    assert decide(db, DecisionKind.DISCARD, message).stands
    assert rows.inbox_row(db, message).state == row.state


def test_a_worker_that_was_taken_over_writes_nothing_into_what_was_decided(opened: Opened, db: Db) -> None:
    """It finishes, fails, or gives back: its token is an old one."""
    message, provider = order(), Provider()
    inbox = Inbox(CONSUMER, worker="zombie")
    take = inbox.claim(db, message)
    rows.lapse(db, message)
    opened(effectful(reject)).deliver(delivery(message))
    for kind in (DecisionKind.REDRIVE, DecisionKind.DISCARD):
        assert decide(db, kind, message).stands
        before = snapshot(db)
        with db.transaction():
            assert not inbox.finish(db, message, take=take)
        assert not inbox.give_back(db, message, take=take)
        assert snapshot(db) == before
        if kind is DecisionKind.REDRIVE:
            redeliver(opened(effectful(reject)), db, message)
    assert provider.calls == 0


def test_workers_and_people_at_the_same_message_never_wait_for_each_other_in_a_circle(
    opened: Opened, db: Db, connect: Callable[..., Db], background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers fail, reject and answer twice; people redrive, settle and discard; all of it on the same few messages."""
    provider, messages = Provider(), [order({"amount": n}) for n in range(3)]
    others = [order({"amount": -1}, id=message.id) for message in messages]
    ends = [Reject("again"), RuntimeError("failed"), None]

    def handle(message: Message, once: Once) -> None:
        answer = {"n": provider.charge(None, str(provider.calls))["id"]}
        once.effect("charge", lambda _request, _key: answer, request=1, provider=STRIPE_V1)
        if (end := ends[provider.calls % 3]) is not None:
            raise end
        with once.transaction() as tx:
            tx.execute("ROLLBACK")

    consumer = opened(effectful(handle, attempts_max=2), threads=4)

    def work() -> None:
        for message in (*messages, *others) * 12:
            consumer.deliver(delivery(message))
            db.execute("UPDATE onceward.inbox SET lease_until = NULL WHERE state = 'pending' AND random() < 0.2")

    def judge(conn: Db) -> None:
        for turn in range(120):
            kind = KINDS[turn % 3] if turn % 13 else DecisionKind.DISCARD
            options: dict[str, Any] = {"force": True} if kind is DecisionKind.DID_NOT_HAPPEN else {}
            decide(conn, kind, messages[turn % 3], **options)

    futures = [background(work) for _ in range(3)] + [background(judge, connect()) for _ in range(3)]
    for future in futures:
        future.result()
    assert "deadlock" not in caplog.text
    db.execute("SELECT pg_stat_force_next_flush()")
    assert rows.scalar(db, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert list_decisions(db, limit=1)


# ---- a transaction of the caller's, and crashes ------------------------------------------------------------------------


@every_kind
def test_inside_a_callers_transaction_a_decision_stands_or_falls_with_it(
    kind: DecisionKind, opened: Opened, db: Db, connect: Callable[..., Db]
) -> None:
    message, provider, caller = order(), Provider(), inside_a_transaction(connect)
    park_unknown(opened, db, message, provider, charged=False)
    before = snapshot(db)
    assert decide(caller, kind, message).stands
    caller.rollback()
    assert snapshot(db) == before
    caller.execute("SELECT 1")
    assert decide(caller, kind, message).stands
    caller.commit()
    assert decided(db).kind is kind


@every_kind
def test_a_refusal_leaves_the_callers_transaction_usable_and_nothing_of_its_own(
    kind: DecisionKind, opened: Opened, db: Db, connect: Callable[..., Db]
) -> None:
    message, caller = order(), inside_a_transaction(connect)
    park_with_two_answers(opened, db, message)
    before = snapshot(db)
    rows.write_effect(caller, message)
    if kind is DecisionKind.DISCARD:
        assert not decide(caller, kind, message, fingerprint="00").stands
    else:
        assert not decide(caller, kind, message).stands
    rows.write_effect(caller, message)
    caller.commit()
    assert (snapshot(db), rows.effects(db, message)) == (before, 2)


@every_kind
def test_a_crash_after_each_statement_leaves_all_of_a_decision_or_nothing(
    kind: DecisionKind, opened: Opened, db: Db, dsn: str
) -> None:
    """Killed after its first statement, after its second, and so on, until one gets through; then the message ends."""
    message, provider = order(), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False)
    before, statements = snapshot(db), 0
    while snapshot(db) == before:
        statements += 1
        assert crash.died_by_sigkill(crash.start(decide_and_die, dsn, kind, message, statements))
    assert statements >= 5
    assert decided(db).kind is kind
    assert (reasons(db), rows.state(db, message)) == ([], "discarded" if kind is DecisionKind.DISCARD else "pending")
    assert "ann decided" in decide(db, kind, message).why_not
    if kind is DecisionKind.DISCARD:
        assert rows.outbox(db) == []
        return
    redeliver(consumer, db, message)
    assert reasons(db) == (["unknown"] if kind is DecisionKind.REDRIVE else [])
    assert provider.calls == (2 if kind is DecisionKind.DID_NOT_HAPPEN else 1)


# ---- upkeep, and what was made by other code ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, *KINDS], ids=lambda kind: "held" if kind is None else kind.value)
def test_a_day_whose_messages_are_decided_and_over_is_dropped(end: DecisionKind | None, opened: Opened, db: Db) -> None:
    message, provider = message_of_ten_days_ago(db), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False, window=2 * AGE)
    opened(charging(provider, window=WINDOW))
    rows.age_windows(db, WINDOW)
    if end is not None:
        assert decide(db, end, message).stands
        if end is not DecisionKind.DISCARD:
            redeliver(consumer, db, message)
    day = day_of_message(message)
    done = upkeep(db, schema=SCHEMA)
    if end in (None, DecisionKind.REDRIVE):
        assert (done.dropped, done.unfinished) == ([], {day.isoformat(): 2})
    else:
        assert (set(done.dropped), done.unfinished) == (names_of(day), {})
        assert decided(db).kind is end
