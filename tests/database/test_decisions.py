"""What a person decides about a parked message: each decision stands whole, is kept, and nothing happens twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.database.test_late_redrive import AGE, SCHEMA, WINDOW, message_of_ten_days_ago, names_of
from tests.database.test_late_redrive import day_of as day_of_message
from tests.support import checks, crash, rows
from tests.support.decisions import (
    ANN,
    KINDS,
    PAST_THE_WINDOW,
    SETTLED,
    decide,
    decide_and_die,
    decided,
    park_unknown,
    reasons,
    redeliver,
    snapshot,
)
from tests.support.deliveries import Provider, ProviderError, delivery, order, order_aged
from tests.support.points import Gate, Recorder
from tests.support.queues import ListSink, drain
from tests.support.shop import charging, effectful, of_shape, transactional
from tests.support.waiting import Background, until_any_blocked

from onceward.consumer import OpenConsumer
from onceward.day_partitions import upkeep
from onceward.decisions import (
    Decided,
    Decider,
    DecisionKind,
    discard_parked,
    list_decisions,
    redrive,
    settle,
)
from onceward.effect_lookup import look_up_effect
from onceward.errors import ConflictError, EffectRefused, Reject, UsageError
from onceward.inbox import Inbox
from onceward.message import Message
from onceward.parked import show_parked
from onceward.perform import Once
from onceward.provider import NO_KEYS, STRIPE_V1, idempotency_key
from onceward.transport import ACK, Delivery

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
CONSUMER = rows.CONSUMER
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
SECOND = Decider(name="bob", reason="I was quicker")


def key_of(message: Message, generation: int = 1) -> str:
    return idempotency_key(CONSUMER, message.id, "charge", generation=generation)


def inside_a_transaction(connect: Callable[..., Db]) -> Db:
    conn = connect(autocommit=False)
    conn.execute("SELECT 1")
    return conn


def reject(_message: Message, _given: Any) -> None:
    raise Reject("not today")


def state_of_effects(db: Db, message: Message) -> list[str]:
    return [intent.state for intent in rows.intents(db, message)]


# ---- what becomes of the rows ----------------------------------------------------------------------------------------


def test_a_redrive_sends_the_message_again_and_keeps_its_effects(opened: Opened, db: Db) -> None:
    message, provider = order(subject="o-1"), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    assert decide(db, DecisionKind.REDRIVE, message) == Decided(
        kind=DecisionKind.REDRIVE, consumer=CONSUMER, message_id=message.id, token=3
    )
    assert rows.books(db, message) == rows.Books("pending", 3, 0, [], 0)
    assert state_of_effects(db, message) == ["unknown"]
    assert [(row.id, row.aggregateid, bytes(row.payload)) for row in rows.outbox(db)] == [(message.id, "o-1", message.body)]


@every_kind
def test_a_decision_is_a_row_with_who_when_why_and_what_was_held(kind: DecisionKind, opened: Opened, db: Db) -> None:
    message, provider = order(subject="o-1"), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    [held] = rows.parked(db)
    before = rows.scalar(db, "SELECT clock_timestamp()")
    assert decide(db, kind, message).stands
    made = decided(db)
    assert (made.about, made.kind, made.consumer, made.message_id, made.position) == (
        "parked", kind, CONSUMER, message.id, None,
    )  # fmt: skip
    assert (made.decided_by, made.reason, made.forced) == ("ann", "asked the provider", False)
    assert made.database_role == rows.scalar(db, "SELECT session_user::text")
    assert before < made.decided_at < rows.scalar(db, "SELECT clock_timestamp()")
    assert made.effect == (None if kind in (DecisionKind.REDRIVE, DecisionKind.DISCARD) else "charge")
    assert made.answer == ('{"id":"ch_of_the_dashboard"}' if kind is DecisionKind.SETTLE else None)
    assert made.former_key == (key_of(message) if kind is DecisionKind.DID_NOT_HAPPEN else None)
    was = dict(made.was)
    assert was.pop("parked_at") == held.parked_at.isoformat()
    assert was == {
        "reason": "unknown", "detail": held.detail, "attempts": 1, "source": "test", "headers": message.to_wire()[0],
    }  # fmt: skip
    body = rows.scalar(db, "SELECT body FROM onceward.decisions")
    assert body == (message.body if kind is DecisionKind.DISCARD else None)
    assert rows.scalar(db, "SELECT fingerprint FROM onceward.decisions") == message.fingerprint()


def test_a_decision_without_a_name_is_the_database_roles(opened: Opened, db: Db) -> None:
    message = order()
    opened(transactional(reject)).deliver(delivery(message))
    assert redrive(db, message.id, consumer=CONSUMER).stands
    assert (decided(db).decided_by, decided(db).reason) == (rows.scalar(db, "SELECT session_user::text"), "")


def test_a_settled_effect_goes_on_with_that_answer_and_without_a_call(opened: Opened, db: Db, dsn: str) -> None:
    message, provider, sink, seen = order(), Provider(), ListSink(), Recorder()
    park_unknown(opened, db, message, provider, charged=True)
    consumer = opened(charging(provider, lookup=True), seen)
    assert decide(db, DecisionKind.SETTLE, message).stands
    [intent] = rows.intents(db, message)
    assert (intent.state, intent.answer, intent.refused, intent.generation) == ("done", SETTLED, False, 1)
    assert intent.answered_at is not None
    drain(dsn, sink)
    assert sink.ids == [message.id]
    assert [consumer.deliver(delivery(sent)) for sent in sink.messages * 2] == [ACK, ACK]
    assert (provider.calls, provider.lookups, seen.count("effect.replayed")) == (1, [], 1)
    assert rows.books(db, message) == rows.Books("done", 4, 0, [], 1)
    assert rows.scalar(db, "SELECT note FROM effects") == "ch_of_the_dashboard"


def test_an_effect_settled_as_refused_is_raised_in_the_handler(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False)
    made = settle(db, message.id, consumer=CONSUMER, effect="charge", answer={"code": "declined"}, refused=True)
    assert "its provider refused 'charge'" in made.expect
    redeliver(consumer, db, message)
    assert reasons(db) == ["refused"]
    assert provider.calls == 1


@pytest.mark.parametrize("lookup", [True, False])
def test_what_did_not_happen_is_called_once_under_a_new_key(lookup: bool, opened: Opened, db: Db) -> None:
    """With a look-up, only after that was asked for the former key."""
    message, provider = order(), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False, lookup=lookup)
    provider.lookups.clear()
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).token == 3
    [intent] = rows.intents(db, message)
    assert (intent.state, intent.key, intent.former_key, intent.generation) == (
        "pending", key_of(message, 2), key_of(message), 2,
    )  # fmt: skip
    assert [redeliver(consumer, db, message), consumer.deliver(delivery(message))] == [ACK, ACK]
    assert provider.lookups == ([key_of(message)] if lookup else [])
    assert provider.requests == [key_of(message), key_of(message, 2)]
    assert rows.books(db, message) == rows.Books("done", 4, 0, [], 1)


def test_what_did_happen_after_all_is_found_and_not_called_again(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    consumer = opened(charging(provider, lookup=True))
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    assert redeliver(consumer, db, message) == ACK
    assert (provider.calls, provider.lookups) == (1, [key_of(message)])
    assert rows.books(db, message) == rows.Books("done", 4, 0, [], 1)
    assert rows.scalar(db, "SELECT note FROM effects") == "ch_1"


def test_a_call_under_the_new_key_that_is_cut_off_is_repeated_under_that_key(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False, lookup=True)
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    provider.after.append(ConnectionError("cut after it charged"))
    assert redeliver(consumer, db, message).action == "release"
    assert consumer.deliver(delivery(message)) == ACK
    assert provider.requests[1:] == [key_of(message, 2)] * 2
    assert len(provider.charges) == 1
    assert rows.effects(db, message) == 1


def test_a_look_up_of_the_former_key_that_fails_calls_nothing(opened: Opened, db: Db) -> None:
    class Failing(Provider):
        def find(self, request: Any, key: str) -> Any:
            super().find(request, key)
            if len(self.lookups) < 3:
                raise ProviderError(503)

    message, provider = order(), Failing()
    park_unknown(opened, db, message, provider, charged=False)
    consumer = opened(charging(provider, lookup=True))
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    assert redeliver(consumer, db, message).action == "release"
    assert (rows.attempts(db, message), provider.calls) == (1, 1)
    assert consumer.deliver(delivery(message)).action == "release"
    assert consumer.deliver(delivery(message)) == ACK
    assert (provider.lookups, provider.calls, rows.effects(db, message)) == ([key_of(message)] * 3, 2, 1)


def test_a_redelivery_past_the_new_keys_window_looks_up_every_key_and_calls_nothing(opened: Opened, db: Db) -> None:
    """Whether the new key was sent is not known any more; and the person may have been wrong about the former one."""
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    consumer = opened(charging(provider, lookup=True))
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    rows.age_intents(db, message, PAST_THE_WINDOW)
    assert redeliver(consumer, db, message) == ACK
    assert (provider.calls, provider.lookups) == (1, [key_of(message, 2), key_of(message)])
    assert rows.books(db, message) == rows.Books("done", 4, 0, [], 1)


def test_a_third_key_is_used_only_after_both_former_ones_were_looked_up(opened: Opened, db: Db) -> None:
    """The person was wrong at the first decision, and nothing was looked up before the second one."""
    message, provider = order(), Provider()
    without = park_unknown(opened, db, message, provider, charged=True)
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    rows.age_intents(db, message, PAST_THE_WINDOW)
    redeliver(without, db, message)
    assert reasons(db) == ["unknown"]
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    consumer = opened(charging(provider, lookup=True))
    assert redeliver(consumer, db, message) == ACK
    assert (provider.calls, provider.lookups) == (1, [key_of(message, 2), key_of(message)])
    assert rows.intents(db, message)[0].generation == 3
    assert rows.effects(db, message) == 1


def test_an_answer_found_under_the_former_key_that_is_not_json_is_found_again_after_the_redrive(
    opened: Opened, db: Db
) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    unreadable: list[object] = [object()]

    class Found(Provider):
        def find(self, _request: Any, key: str) -> Any:
            return unreadable.pop() if unreadable else provider.find(None, key)

    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    shop = Found()
    consumer = opened(charging(shop, lookup=True))
    redeliver(consumer, db, message)
    assert (reasons(db), state_of_effects(db, message)) == (["answer is not JSON"], ["unknown"])
    assert decide(db, DecisionKind.REDRIVE, message).stands
    assert redeliver(consumer, db, message) == ACK
    assert (shop.calls, rows.scalar(db, "SELECT note FROM effects")) == (0, "ch_1")


def test_without_keys_what_did_not_happen_is_called_once_more_and_only_once(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before += [ConnectionError("cut"), ConnectionError("cut again")]
    consumer = opened(charging(provider, profile=NO_KEYS, attempts_max=1))
    consumer.deliver(delivery(message))
    assert reasons(db) == ["attempts ran out"]
    rows.age_intents(db, message, PAST_THE_WINDOW)
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    redeliver(consumer, db, message)
    assert (provider.calls, reasons(db), state_of_effects(db, message)) == (2, ["attempts ran out"], ["unknown"])
    decide(db, DecisionKind.REDRIVE, message)
    redeliver(consumer, db, message)
    assert (provider.calls, reasons(db)) == (2, ["unknown"])
    rows.age_intents(db, message, PAST_THE_WINDOW)
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    redeliver(consumer, db, message)
    assert (provider.calls, len(provider.charges), rows.effects(db, message)) == (3, 1, 1)


def test_without_keys_the_time_in_which_the_provider_may_act_begins_with_the_call(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before += [ConnectionError("cut"), ConnectionError("cut again")]
    consumer = opened(charging(provider, profile=NO_KEYS, attempts_max=1))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, PAST_THE_WINDOW)
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    rows.age_intents(db, message, PAST_THE_WINDOW)
    redeliver(consumer, db, message)
    assert "may still act under the key" in decide(db, DecisionKind.DID_NOT_HAPPEN, message).why_not


# ---- the provider's window -------------------------------------------------------------------------------------------


def park_inside_the_window(opened: Opened, db: Db, message: Message, provider: Provider) -> OpenConsumer:
    """A 5xx was stored under its key: a retry with that key changes nothing."""
    provider.before.append(ProviderError(500, replayed=True))
    consumer = opened(charging(provider))
    assert consumer.deliver(delivery(message)) == ACK
    assert (reasons(db), state_of_effects(db, message)) == (["unknown"], ["unknown"])
    return consumer


def test_inside_the_providers_window_it_is_not_called_under_a_new_key(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_inside_the_window(opened, db, message, provider)
    rows.age_intents(db, message, timedelta(hours=20, minutes=29, seconds=30))
    before = snapshot(db)
    refused = decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    assert "may still act under the key of effect 'charge' (for another 3 h 30 min)" in refused.why_not
    assert "wait until then" in refused.why_not
    assert "--force takes that risk" in refused.why_not
    assert (snapshot(db), refused.stands, refused.token) == (before, False, 0)


def test_who_forces_it_is_on_record(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    consumer = park_inside_the_window(opened, db, message, provider)
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message, force=True).stands
    assert decided(db).forced
    assert redeliver(consumer, db, message) == ACK
    assert (provider.requests[1:], rows.effects(db, message)) == ([key_of(message, 2)], 1)


def test_force_that_was_not_needed_is_not_on_record_as_such(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message, force=True).stands
    assert not decided(db).forced


def test_the_margin_does_not_shorten_the_window(opened: Opened, db: Db) -> None:
    """For an hour the key is not sent any more, but a call that began before may still be under way."""
    message, provider = order(), Provider()
    park_inside_the_window(opened, db, message, provider)
    rows.age_intents(db, message, timedelta(hours=23, minutes=30))
    assert "for another 29 min" in decide(db, DecisionKind.DID_NOT_HAPPEN, message).why_not
    rows.age_intents(db, message, timedelta(hours=24))
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands


def test_a_pending_effect_inside_its_window_is_rather_redriven(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut after it charged"))
    consumer = opened(charging(provider, attempts_max=1))
    consumer.deliver(delivery(message))
    assert (reasons(db), state_of_effects(db, message)) == (["attempts ran out"], ["pending"])
    assert "redrive it: its key is sent again" in decide(db, DecisionKind.DID_NOT_HAPPEN, message).why_not
    assert decide(db, DecisionKind.REDRIVE, message).stands
    assert redeliver(consumer, db, message) == ACK
    assert (len(provider.charges), rows.effects(db, message)) == (1, 1)


def test_of_an_intent_that_is_older_than_the_window_column_nobody_knows(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    db.execute("UPDATE onceward.intents SET window_seconds = NULL")
    refused = decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    assert "nobody knows for how long" in refused.why_not
    assert "wait until then" not in refused.why_not
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message, force=True).stands
    assert decided(db).forced


@pytest.mark.parametrize("lookup", [False, True])
def test_a_refused_effect_can_be_asked_for_again_under_a_new_key(lookup: bool, opened: Opened, db: Db) -> None:
    """At once: a refusal is an answer, so nothing is under way. Also where the look-up finds the refusal itself."""

    class Declining(Provider):
        def find(self, request: Any, key: str) -> Any:
            super().find(request, key)
            raise EffectRefused({"code": "card_declined"})

    message, provider = order(), Declining()
    provider.before.append(EffectRefused({"code": "card_declined"}))
    consumer = opened(charging(provider, lookup=lookup))
    consumer.deliver(delivery(message))
    assert reasons(db) == ["refused"]
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    assert not decided(db).forced
    assert redeliver(consumer, db, message) == ACK
    assert (provider.requests, len(provider.lookups)) == ([key_of(message), key_of(message, 2)], int(lookup))
    assert rows.books(db, message) == rows.Books("done", 3, 0, [], 1)


# ---- refused, and nothing is written -----------------------------------------------------------------------------------


def charged_and_failed(opened: Opened, message: Message) -> Provider:
    """Its answer is recorded, and its handler fails after that."""
    provider = Provider()

    def charge_and_reject(message: Message, once: Once) -> None:
        once.effect("charge", provider.charge, request=message.json(), provider=STRIPE_V1)
        raise Reject("after all")

    opened(effectful(charge_and_reject)).deliver(delivery(message))
    return provider


def test_a_recorded_answer_is_settled_with_itself_and_with_no_other(opened: Opened, db: Db) -> None:
    message = order()
    provider = charged_and_failed(opened, message)
    before = snapshot(db)
    other = decide(db, DecisionKind.SETTLE, message, answer={"id": "ch_9"})
    assert '\'charge\' has an answer already, which is never replaced: {"id":"ch_1"' in other.why_not
    refusal = settle(db, message.id, consumer=CONSUMER, effect="charge", answer=provider.charges[key_of(message)],
                     refused=True)  # fmt: skip
    assert "never replaced" in refusal.why_not
    assert snapshot(db) == before
    same = json.loads(json.dumps(provider.charges[key_of(message)], indent=3))
    assert decide(db, DecisionKind.SETTLE, message, answer=same).stands
    assert redeliver(opened(charging(provider)), db, message) == ACK
    assert (provider.calls, rows.effects(db, message)) == (1, 1)


def test_an_effect_that_has_an_answer_did_happen(opened: Opened, db: Db) -> None:
    message = order()
    charged_and_failed(opened, message)
    before = snapshot(db)
    refused = decide(db, DecisionKind.DID_NOT_HAPPEN, message, force=True)
    assert "did happen: its answer is recorded" in refused.why_not
    assert "redrive the message" in refused.why_not
    assert snapshot(db) == before


@pytest.mark.parametrize("kind", [DecisionKind.SETTLE, DecisionKind.DID_NOT_HAPPEN], ids=lambda kind: kind.value)
def test_an_effect_of_another_name_is_named_with_those_that_there_are(kind: DecisionKind, opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    db.execute("UPDATE onceward.intents SET name = 'capture'")
    before = snapshot(db)
    assert decide(db, kind, message).why_not == "it has no effect 'charge'; recorded are 'capture' (unknown)"
    assert snapshot(db) == before


@pytest.mark.parametrize("kind", [DecisionKind.SETTLE, DecisionKind.DID_NOT_HAPPEN], ids=lambda kind: kind.value)
@pytest.mark.parametrize("shape", ["transactional", "effectful"])
def test_a_message_without_effects_has_nothing_to_settle(kind: DecisionKind, shape: str, opened: Opened, db: Db) -> None:
    message = order()
    opened({"transactional": transactional, "effectful": effectful}[shape](reject)).deliver(delivery(message))
    before = snapshot(db)
    assert "its handler never asked for an effect" in decide(db, kind, message).why_not
    assert snapshot(db) == before


@every_kind
@pytest.mark.parametrize("state", ["unseen", "pending", "done"])
def test_a_message_that_is_not_parked_is_left_alone(state: str, kind: DecisionKind, opened: Opened, db: Db) -> None:
    message = order()
    if state == "pending":
        Inbox(CONSUMER).claim(db, message)
    elif state == "done":
        opened(transactional()).deliver(delivery(message))
    before = snapshot(db)
    assert decide(db, kind, message).why_not == "nothing is parked there under this id"
    assert snapshot(db) == before


@pytest.mark.parametrize("answer", [float("nan"), {1, 2}, b"bytes", {"when": timedelta(1)}], ids=repr)
def test_an_answer_that_is_not_json_is_an_error_of_the_caller(answer: object, opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    before = snapshot(db)
    with pytest.raises(UsageError, match="plain JSON"):
        decide(db, DecisionKind.SETTLE, message, answer=answer)
    assert snapshot(db) == before


@pytest.mark.parametrize("reason", ["", "  \n\t"])
def test_a_discard_without_a_reason_is_an_error_of_the_caller(reason: str, opened: Opened, db: Db) -> None:
    message = order()
    opened(transactional(reject)).deliver(delivery(message))
    before = snapshot(db)
    with pytest.raises(UsageError, match="needs a reason"):
        discard_parked(db, message.id, consumer=CONSUMER, decider=Decider(name="ann", reason=reason))
    assert snapshot(db) == before


def test_a_reason_that_postgres_cannot_hold_is_kept_as_it_can_be(opened: Opened, db: Db) -> None:
    message = order()
    opened(transactional(reject)).deliver(delivery(message))
    decider = Decider(name="a\x00nn", reason="a NUL \x00 and a half \ud800 of a pair")
    assert redrive(db, message.id, consumer=CONSUMER, decider=decider).stands
    assert (decided(db).decided_by, decided(db).reason) == ("a\\x00nn", "a NUL \\x00 and a half \\ud800 of a pair")


# ---- two answers -------------------------------------------------------------------------------------------------------


def park_with_two_answers(opened: Opened, db: Db, message: Message) -> None:
    checks.check_one_answer_is_kept(opened, db, message=message)


def test_two_answers_end_with_the_recorded_one_and_with_no_other(opened: Opened, db: Db) -> None:
    message = order()
    park_with_two_answers(opened, db, message)
    before = snapshot(db)
    assert "settle it with the recorded answer" in decide(db, DecisionKind.REDRIVE, message).why_not
    assert "two answers" in decide(db, DecisionKind.DID_NOT_HAPPEN, message, force=True).why_not
    second = decide(db, DecisionKind.SETTLE, message, answer={"id": "ch_second", "padding": ""})
    assert "has an answer already" in second.why_not
    assert snapshot(db) == before
    assert decide(db, DecisionKind.SETTLE, message, answer={"padding": "", "id": "ch_first"}).stands
    provider = Provider()
    assert redeliver(opened(charging(provider)), db, message) == ACK
    assert (provider.calls, rows.scalar(db, "SELECT note FROM effects")) == (0, "ch_first")
    assert rows.books(db, message) == rows.Books("done", 3, 0, [], 1)


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


# ---- discard -----------------------------------------------------------------------------------------------------------


def test_a_discarded_message_is_over_and_a_redelivery_is_a_duplicate(opened: Opened, db: Db) -> None:
    message, provider, seen = order(), Provider(), Recorder()
    park_unknown(opened, db, message, provider, charged=False)
    made = decide(db, DecisionKind.DISCARD, message)
    assert (made.stands, made.token) == (True, 0)
    assert "nobody knows whether 'charge' happened" in made.expect
    assert rows.books(db, message) == rows.Books("discarded", 3, 1, [], 0)
    assert (state_of_effects(db, message), rows.outbox(db)) == (["discarded"], [])
    assert opened(charging(provider), seen).deliver(delivery(message, times=9)) == ACK
    [duplicate] = seen.of("consumer.duplicate")
    assert duplicate.fields["state"] == "discarded"
    assert (provider.calls, reasons(db)) == (1, [])


def test_a_discard_says_which_effects_it_does_not_undo(opened: Opened, db: Db) -> None:
    message = order()
    charged_and_failed(opened, message)
    made = decide(db, DecisionKind.DISCARD, message)
    assert made.expect == "'charge' did happen at the provider, and is not undone by this"
    assert state_of_effects(db, message) == ["done"]


@pytest.mark.parametrize("shape", ["transactional", "effectful"])
def test_another_body_under_a_discarded_id_is_a_conflict(shape: str, opened: Opened, db: Db) -> None:
    message = order({"amount": 1})
    consumer = opened(of_shape(shape, lambda message: reject(message, None)))
    consumer.deliver(delivery(message))
    decide(db, DecisionKind.DISCARD, message)
    consumer.deliver(delivery(order({"amount": 2}, id=message.id)))
    assert (reasons(db), rows.state(db, message)) == (["conflict"], "discarded")


def test_a_conflict_is_discarded_without_touching_the_message_that_it_is_in_conflict_with(opened: Opened, db: Db) -> None:
    message, other = order({"amount": 1}), {"amount": 2}
    consumer = opened(transactional())
    consumer.deliver(delivery(message))
    consumer.deliver(delivery(order(other, id=message.id)))
    before = rows.inbox_row(db, message)
    for kind in KINDS[:-1]:
        assert "is of another payload" in decide(db, kind, message).why_not
    assert decide(db, DecisionKind.DISCARD, message).stands
    assert (rows.inbox_row(db, message), reasons(db)) == (before, [])
    assert json.loads(rows.scalar(db, "SELECT body FROM onceward.decisions")) == other


def test_of_two_parked_bodies_the_one_that_can_go_on_is_meant(opened: Opened, db: Db) -> None:
    message = order({"amount": 1})
    other = order({"amount": 2}, id=message.id)
    consumer = opened(transactional(reject))
    consumer.deliver(delivery(message))
    consumer.deliver(delivery(other))
    either = decide(db, DecisionKind.DISCARD, message)
    assert "2 bodies are parked under this id" in either.why_not
    assert other.fingerprint().hex()[:12] in either.why_not
    neither = decide(db, DecisionKind.DISCARD, message, fingerprint="ffff00")
    assert neither.why_not.startswith("what is parked under this id has another fingerprint (")
    assert decide(db, DecisionKind.DISCARD, message, fingerprint=other.fingerprint().hex()[:12].upper()).stands
    assert (reasons(db), rows.state(db, message)) == (["rejected"], "parked")
    assert decide(db, DecisionKind.REDRIVE, message).stands


def test_what_has_no_inbox_row_is_discarded_and_parked_again_when_it_comes_again(opened: Opened, db: Db) -> None:
    message = order_aged(db, 40 * 86_400)
    consumer = opened(transactional())
    consumer.deliver(delivery(message))
    for kind in KINDS[:-1]:
        assert "without an inbox row" in decide(db, kind, message).why_not
    assert decide(db, DecisionKind.DISCARD, message).stands
    assert (reasons(db), rows.state(db, message)) == ([], None)
    consumer.deliver(delivery(message, times=2))
    assert reasons(db) == ["outside window"]


@pytest.mark.parametrize(
    "name",
    ["5f0c2a4e-3a39-4b57-9d5c-3a1d0f0f6f10", "order-17", "Größe 17", "'; --", "x" * 1000],
    ids=lambda name: name[:20],
)
def test_an_id_that_is_not_a_uuid7_is_discarded_under_the_id_that_is_listed(name: str, opened: Opened, db: Db) -> None:
    opened(transactional()).deliver(delivery(order(id=name)))
    [entry] = rows.parked(db)
    assert "without an inbox row" in redrive(db, entry.message_id, consumer=CONSUMER).why_not
    assert discard_parked(db, entry.message_id, consumer=CONSUMER, decider=ANN).stands
    assert (reasons(db), decided(db).message_id) == ([], entry.message_id)


def test_what_is_no_message_is_discarded_with_its_headers(opened: Opened, db: Db) -> None:
    headers = {"type": "a\x00b", "from": "\ud800", "time": "never"}
    opened(transactional()).deliver(Delivery(id="d\x00 7", source="bridge", headers=headers, body=b"\x00\xff", count=1))
    [entry] = rows.parked(db)
    assert "it was parked (malformed) for its" in redrive(db, entry.message_id, consumer=CONSUMER).why_not
    assert discard_parked(db, entry.message_id, consumer=CONSUMER, decider=ANN).stands
    assert decided(db).was["headers"] == {"type": "a\\x00b", "from": "\\ud800", "time": "never"}
    assert rows.scalar(db, "SELECT body FROM onceward.decisions") == b"\x00\xff"


@every_kind
@pytest.mark.parametrize("body", [b"no json", b"\x00\xff\xfe", b""], ids=repr)
def test_any_body_goes_through_a_decision_as_it_was(body: bytes, kind: DecisionKind, opened: Opened, db: Db) -> None:
    provider = Provider()
    message = Message(type="order.placed", body=body)

    def charge(message: Message, once: Once) -> None:
        once.effect("charge", provider.charge, request=1, provider=STRIPE_V1)
        with once.transaction() as tx:
            rows.write_effect(tx, message)

    provider.before.append(ProviderError(500, replayed=True))
    consumer = opened(effectful(charge))
    consumer.deliver(delivery(message))
    options: dict[str, Any] = {"force": True} if kind is DecisionKind.DID_NOT_HAPPEN else {}
    assert decide(db, kind, message, **options).stands
    if kind is DecisionKind.DISCARD:
        assert rows.scalar(db, "SELECT body FROM onceward.decisions") == body
    else:
        redeliver(consumer, db, message)


def test_an_answer_with_a_nul_in_it_is_settled(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    answer = {"id": "a\x00b", "half": "\ud800", "large": 10**40, "text": "Größe"}
    assert decide(db, DecisionKind.SETTLE, message, answer=answer).stands
    answers: list[Any] = []

    def keep(message: Message, once: Once) -> None:
        answers.append(once.effect("charge", provider.charge, request=message.json(), provider=STRIPE_V1))

    assert redeliver(opened(effectful(keep)), db, message) == ACK
    assert answers == [answer]
    assert json.loads(decided(db).answer or "") == answer


def test_a_decision_for_one_consumer_is_none_for_another(opened: Opened, db: Db) -> None:
    message = order()
    opened(transactional(reject)).deliver(delivery(message))
    db.execute("UPDATE onceward.inbox SET consumer = 'ledger'")
    db.execute("UPDATE onceward.parked SET consumer = 'ledger'")
    opened(transactional(reject)).deliver(delivery(message))
    assert redrive(db, message.id, consumer="ledger", decider=ANN).stands
    assert (rows.state(db, message), rows.state(db, message, "ledger")) == ("parked", "pending")
    assert decide(db, DecisionKind.DISCARD, message, decider=SECOND).stands
    assert "ann decided 'redrive' at" in redrive(db, message.id, consumer="ledger").why_not
    assert "bob decided 'discard' at" in redrive(db, message.id, consumer=CONSUMER).why_not
    assert "bob decided 'discard' for payments at" in redrive(db, message.id, consumer="").why_not
    assert [made.decided_by for made in list_decisions(db, consumer="ledger", limit=1)] == ["ann"]


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
    assert "look into it, then discard it" in decide(db, DecisionKind.SETTLE, message).why_not
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


# ---- the handler's own look-up -----------------------------------------------------------------------------------------


def looked_up(db: Db, consumer: Any, message: Message) -> Any:
    [held] = show_parked(db, message.id)
    return look_up_effect(db, consumer, held, "charge")


def test_a_look_up_is_asked_under_every_key_that_the_effect_had(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    without = park_unknown(opened, db, message, provider, charged=True)
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    rows.age_intents(db, message, PAST_THE_WINDOW)
    redeliver(without, db, message)
    before = snapshot(db)
    assert looked_up(db, charging(provider, lookup=True), message)["id"] == "ch_1"
    assert provider.lookups == [key_of(message, 2), key_of(message)]
    assert (snapshot(db), provider.calls) == (before, 1)


def test_a_look_up_finds_what_a_clients_object_says_and_what_was_refused(opened: Opened, db: Db) -> None:
    class Charge:
        def to_dict(self) -> dict[str, str]:
            return {"id": "ch_1"}

    class Finding(Provider):
        def find(self, request: Any, key: str) -> Any:
            super().find(request, key)
            if len(self.lookups) > 1:
                raise EffectRefused({"code": "declined"})
            return Charge()

    message, provider = order(), Finding()
    park_unknown(opened, db, message, provider, charged=True)
    assert looked_up(db, charging(provider, lookup=True), message) == {"id": "ch_1"}
    with pytest.raises(EffectRefused):
        looked_up(db, charging(provider, lookup=True), message)


def test_a_look_up_of_another_consumer_is_not_asked(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    ledger = charging(provider, lookup=True)
    ledger.name = "ledger"
    with pytest.raises(UsageError, match="parked for payments"):
        looked_up(db, ledger, message)
    assert provider.lookups == []


def test_a_handler_that_catches_everything_does_not_keep_its_look_up_from_being_asked(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)

    def careless(message: Message, once: Once) -> None:
        try:
            once.effect("charge", provider.charge, request=message.json(), provider=STRIPE_V1, lookup=provider.find)
        except Exception as error:
            raise Reject("anything") from error

    assert looked_up(db, effectful(careless), message)["id"] == "ch_1"
    assert provider.calls == 1
