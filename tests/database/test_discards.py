"""Decisions that are refused and write nothing, two answers, and discards of all that can be parked."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.decisions import (
    ANN,
    KINDS,
    SECOND,
    decide,
    decided,
    every_kind,
    key_of,
    park_unknown,
    park_with_two_answers,
    reasons,
    redeliver,
    reject,
    snapshot,
    state_of_effects,
)
from tests.support.deliveries import Provider, ProviderError, delivery, order, order_aged
from tests.support.points import Recorder
from tests.support.shop import charging, effectful, of_shape, transactional

from onceward.consumer import OpenConsumer
from onceward.decisions import (
    Decider,
    DecisionKind,
    discard_parked,
    list_decisions,
    redrive,
    settle,
)
from onceward.errors import Reject, UsageError
from onceward.inbox import Inbox
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.transport import ACK, Delivery

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
CONSUMER = rows.CONSUMER


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
