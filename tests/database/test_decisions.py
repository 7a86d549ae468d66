"""What becomes of a decision about a parked message: it is kept, the message goes on, and nothing happens twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.decisions import (
    PAST_THE_WINDOW,
    SETTLED,
    decide,
    decided,
    every_kind,
    key_of,
    park_unknown,
    reasons,
    redeliver,
    reject,
    snapshot,
    state_of_effects,
)
from tests.support.deliveries import Provider, ProviderError, delivery, order
from tests.support.points import Recorder
from tests.support.queues import ListSink, drain
from tests.support.shop import charging, effectful, transactional

from onceward.consumer import OpenConsumer
from onceward.decisions import (
    Decided,
    DecisionKind,
    redrive,
    settle,
)
from onceward.effect_lookup import look_up_effect
from onceward.errors import EffectRefused, Reject, UsageError
from onceward.intents import Intents, RecordResult
from onceward.message import Message
from onceward.parked import show_parked
from onceward.perform import Once
from onceward.provider import NO_KEYS, STRIPE_V1
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
CONSUMER = rows.CONSUMER


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
    assert datetime.fromisoformat(was.pop("parked_at")) == held.parked_at
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
    assert (intent.state, intent.key, intent.generation) == ("pending", key_of(message, 2), 2)
    assert [redeliver(consumer, db, message), consumer.deliver(delivery(message))] == [ACK, ACK]
    assert provider.lookups == ([key_of(message, 2), key_of(message)] if lookup else [])
    assert provider.requests == [key_of(message), key_of(message, 2)]
    assert rows.books(db, message) == rows.Books("done", 4, 0, [], 1)


def test_what_did_happen_after_all_is_found_and_not_called_again(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    consumer = opened(charging(provider, lookup=True))
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    assert redeliver(consumer, db, message) == ACK
    assert (provider.calls, provider.lookups) == (1, [key_of(message, 2), key_of(message)])
    assert rows.books(db, message) == rows.Books("done", 4, 0, [], 1)
    assert rows.scalar(db, "SELECT note FROM effects") == "ch_1"


def test_a_call_under_the_new_key_that_is_cut_off_is_looked_up_under_that_key(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    consumer = park_unknown(opened, db, message, provider, charged=False, lookup=True)
    decide(db, DecisionKind.DID_NOT_HAPPEN, message)
    provider.after.append(ConnectionError("cut after it charged"))
    assert redeliver(consumer, db, message).action == "release"
    assert consumer.deliver(delivery(message)) == ACK
    assert provider.requests[1:] == [key_of(message, 2)]
    assert len(provider.charges) == 1
    assert rows.effects(db, message) == 1


def test_a_look_up_that_fails_calls_nothing(opened: Opened, db: Db) -> None:
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
    assert provider.lookups == [*[key_of(message, 2)] * 3, key_of(message)]
    assert (provider.calls, rows.effects(db, message)) == (2, 1)


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
    assert (provider.calls, provider.lookups) == (1, [key_of(message, 3), key_of(message, 2), key_of(message)])
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
    assert (provider.requests, len(provider.lookups)) == ([key_of(message), key_of(message, 2)], 2 * lookup)
    assert rows.books(db, message) == rows.Books("done", 3, 0, [], 1)


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


def test_an_id_in_capitals_is_looked_up_under_the_keys_that_were_sent(opened: Opened, db: Db) -> None:
    message, provider = order(id=order().id.upper()), Provider()
    park_unknown(opened, db, message, provider, charged=True)
    consumer = opened(charging(provider, lookup=True))
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    assert redeliver(consumer, db, message) == ACK
    assert (provider.calls, rows.effects(db, message)) == (1, 1)


def test_a_refusal_under_a_former_key_closes_nothing_that_was_begun_again(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    park_unknown(opened, db, message, provider, charged=False)
    assert decide(db, DecisionKind.DID_NOT_HAPPEN, message).stands
    intents, declined = Intents(rows.CONSUMER), {"code": "card_declined"}
    late = intents.record(db, message, n=1, answer=declined, refused=True, key=key_of(message))
    assert late.result is RecordResult.SUPERSEDED
    assert rows.intents(db, message)[0].state == "pending"
    now = intents.record(db, message, n=1, answer=declined, refused=True, key=key_of(message, 2))
    assert (now.result, rows.intents(db, message)[0].refused) == (RecordResult.RECORDED, True)
