"""An effect on an outside provider: its intent is committed before the call, its answer before `effect` returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from tests.support import rows
from tests.support.checks import check_one_answer_is_kept
from tests.support.deliveries import Provider, ProviderError, delivery, order
from tests.support.points import At, Recorder
from tests.support.shop import charging, effectful

from onceward.consumer import OpenConsumer
from onceward.decisions import redrive
from onceward.errors import ConflictError, EffectRefused, LeaseLost, UnknownOutcome, UsageError
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import NO_KEYS, STRIPE_V1, idempotency_key
from onceward.transport import ACK, LEAVE

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]


def test_an_effect_is_called_once_and_its_answer_recorded(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    assert opened(charging(provider)).deliver(delivery(message)) == ACK
    [intent] = rows.intents(db, message)
    assert (intent.state, intent.name, intent.n, intent.refused) == ("done", "charge", 1, False)
    assert intent.text == '{"id":"ch_1","request":{"amount":100}}'
    assert provider.requests == [idempotency_key(rows.CONSUMER, message.id, "charge")]
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_the_intent_is_committed_before_the_call_and_no_connection_is_held_in_it(opened: Opened, db: Db, dsn: str) -> None:
    states: list[object] = []

    def charge(_request: Any, _key: str) -> int:
        states.append([intent.state for intent in rows.intents(db, message)])
        states.append(pool.get_stats()["pool_available"])
        return 1

    def handle(_: Message, once: Once) -> None:
        once.effect("charge", charge, request=1, provider=STRIPE_V1)

    message = order()
    with ConnectionPool(dsn, min_size=4, max_size=4, open=True, timeout=5) as pool:
        pool.wait()
        consumer = opened(effectful(handle), database=pool, threads=1)
        consumer.deliver(delivery(message))
        consumer.close()
    assert states == [["pending"], 4]


def test_a_recorded_answer_is_replayed_without_a_call(opened: Opened, db: Db) -> None:
    """The first attempt fails after the effect; the second gets the very same answer, and the provider hears nothing."""
    answers: list[object] = []

    def handle(message: Message, once: Once) -> None:
        answers.append(once.effect("charge", provider.charge, request=message.json(), provider=STRIPE_V1))
        if len(answers) == 1:
            raise RuntimeError("after the effect")

    message, provider, seen = order(), Provider(), Recorder()
    consumer = opened(effectful(handle), seen)
    assert consumer.deliver(delivery(message)).action == "release"
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert answers[0] == answers[1]
    assert provider.calls == 1
    assert seen.count("effect.replayed") == 1


def test_a_pending_intent_is_called_again_with_the_same_key(opened: Opened, db: Db) -> None:
    """The provider charged, and the answer was lost: one object at the provider, two requests with one key."""
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut after it charged"))
    consumer = opened(charging(provider))
    assert consumer.deliver(delivery(message)).action == "release"
    assert rows.intents(db, message)[0].state == "pending"
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert len(provider.requests) == 2
    assert len(set(provider.requests)) == len(provider.charges) == 1
    assert rows.effects(db, message) == 1


def test_the_key_is_the_same_in_every_spelling_of_the_id(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut after it charged"))
    consumer = opened(charging(provider))
    consumer.deliver(delivery(message))
    consumer.deliver(delivery(order(id=message.id.upper().replace("-", "")), times=2))
    assert len(provider.charges) == 1
    assert rows.state(db, message) == "done"


def test_at_23_hours_less_the_margin_the_same_key_is_sent_again(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut"))
    consumer = opened(charging(provider))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=22, minutes=59))
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (len(provider.charges), provider.calls, rows.state(db, message)) == (1, 2, "done")


@pytest.mark.parametrize("hours", [23, 25, 24 * 20])
def test_past_the_window_it_is_held_for_reconciliation(hours: float, opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut"))
    consumer = opened(charging(provider))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=hours, seconds=1))
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert provider.calls == 1
    assert rows.intents(db, message)[0].state == "unknown"
    assert rows.books(db, message) == rows.Books(state="parked", token=2, attempts=1, parked=["unknown"], effects=0)


def test_a_retry_does_not_restart_the_window(opened: Opened, db: Db) -> None:
    """The provider counts from the first request: a retry at 20 hours buys no other 23."""
    message, provider = order(), Provider()
    provider.after += [ConnectionError("cut"), ConnectionError("cut again")]
    consumer = opened(charging(provider))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=20))
    started_at = rows.intents(db, message)[0].started_at
    assert consumer.deliver(delivery(message, times=2)).action == "release"
    [intent] = rows.intents(db, message)
    assert (provider.calls, intent.state, intent.started_at) == (2, "pending", started_at)
    db.execute("UPDATE onceward.intents SET started_at = started_at - interval '5 hours'")
    assert consumer.deliver(delivery(message, times=3)) == ACK
    assert (provider.calls, rows.intents(db, message)[0].state) == (2, "unknown")
    assert rows.books(db, message) == rows.Books(state="parked", token=3, attempts=2, parked=["unknown"], effects=0)


def test_past_the_window_a_lookup_that_finds_it_is_the_answer(opened: Opened, db: Db) -> None:
    message, provider, seen = order(), Provider(), Recorder()
    provider.after.append(ConnectionError("cut"))
    consumer = opened(charging(provider, lookup=True), seen)
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=25))
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (provider.calls, len(provider.lookups), seen.count("effect.looked_up")) == (1, 1, 1)
    assert rows.intents(db, message)[0].state == "done"
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=1, parked=[], effects=1)


def test_past_the_window_a_lookup_that_finds_nothing_parks_and_never_calls(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before.append(ConnectionError("cut before it charged"))
    consumer = opened(charging(provider, lookup=True))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=25))
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (provider.calls, provider.charges) == (1, {})
    assert rows.books(db, message) == rows.Books(state="parked", token=2, attempts=1, parked=["unknown"], effects=0)


def test_a_redrive_looks_up_again_and_records_what_is_there_by_then(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before.append(ConnectionError("cut"))
    consumer = opened(charging(provider, lookup=True))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=25))
    consumer.deliver(delivery(message, times=2))
    provider.charges[provider.requests[0]] = {"id": "ch_by_hand"}
    assert not redrive(db, message.id, consumer=rows.CONSUMER).why_not
    assert consumer.deliver(delivery(message, times=3)) == ACK
    assert (provider.calls, len(provider.lookups)) == (1, 2)
    assert rows.books(db, message) == rows.Books(state="done", token=4, attempts=0, parked=[], effects=1)


def test_a_lookup_that_fails_is_a_failed_attempt(opened: Opened, db: Db) -> None:
    def handle(_: Message, once: Once) -> None:
        once.effect("charge", provider.charge, request=1, provider=NO_KEYS, lookup=broken)

    def broken(_request: Any, _key: str) -> Any:
        raise ConnectionError("the provider is away")

    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut"))
    consumer = opened(effectful(handle))
    for times in (1, 2):
        assert consumer.deliver(delivery(message, times=times)).action == "release"
    assert (provider.calls, rows.attempts(db, message), rows.intents(db, message)[0].state) == (1, 2, "pending")


def test_a_provider_without_keys_is_called_at_most_once_and_then_held(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut"))
    consumer = opened(charging(provider, profile=NO_KEYS))
    consumer.deliver(delivery(message))
    for times in (2, 3):
        assert consumer.deliver(delivery(message, times=times)) == ACK
    assert provider.calls == 1
    assert rows.books(db, message) == rows.Books(state="parked", token=2, attempts=1, parked=["unknown"], effects=0)


@pytest.mark.parametrize(("lookup", "expected"), [(True, "done"), (False, "parked")])
def test_a_replayed_5xx_is_looked_up_at_once(lookup: bool, expected: str, opened: Opened, db: Db) -> None:
    """The provider charged, saved a 500, and replays it: no retry can change that."""
    message, provider = order(), Provider()
    provider.after.append(ProviderError(500, replayed=True))
    assert opened(charging(provider, lookup=lookup)).deliver(delivery(message)) == ACK
    assert (provider.calls, len(provider.lookups)) == (1, int(lookup))
    assert rows.state(db, message) == expected
    assert rows.intents(db, message)[0].state == ("done" if lookup else "unknown")


def test_a_first_5xx_is_tried_again_with_the_same_key(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before.append(ProviderError(500))
    consumer = opened(charging(provider))
    assert consumer.deliver(delivery(message)).action == "release"
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (len(set(provider.requests)), rows.attempts(db, message)) == (1, 1)


@pytest.mark.parametrize("status", [409, 429])
def test_a_key_in_flight_is_later_and_costs_no_attempt(status: int, opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before.append(ProviderError(status))
    consumer = opened(charging(provider, attempts_max=1, deliveries_max=1))
    assert consumer.deliver(delivery(message)).action == "release"
    assert rows.books(db, message) == rows.Books(state="pending", token=1, attempts=0, parked=[], effects=0)
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=0, parked=[], effects=1)


def test_a_key_that_the_provider_knows_with_another_request_is_held(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before.append(ProviderError(400, kind="idempotency_error"))
    assert opened(charging(provider, lookup=True)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["unknown"], effects=0)


def test_a_refusal_is_an_answer_recorded_and_raised_each_time(opened: Opened, db: Db) -> None:
    refusals: list[object] = []

    def handle(message: Message, once: Once) -> None:
        try:
            once.effect("charge", provider.charge, request=message.json(), provider=STRIPE_V1)
        except EffectRefused as refused:
            refusals.append(refused.answer)
        if len(refusals) == 1:
            raise RuntimeError("after the refusal was handled")
        with once.transaction() as tx:
            rows.write_effect(tx, message, "declined")

    message, provider = order(), Provider()
    provider.before.append(ProviderError(402))
    consumer = opened(effectful(handle))
    consumer.deliver(delivery(message))
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (provider.calls, len(refusals), refusals[0]) == (1, 2, refusals[1])
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=1, parked=[], effects=1)


def test_what_one_call_raised_is_not_raised_for_a_later_failure(opened: Opened, db: Db) -> None:
    """A refusal was handled; that the transaction fails inside afterwards is another matter, also in the row."""
    raised: list[BaseException] = []

    def handle(message: Message, once: Once) -> None:
        with suppress(EffectRefused):
            once.effect("charge", provider.charge, request=message.json(), provider=STRIPE_V1)
        try:
            with once.transaction() as tx, suppress(psycopg.Error):
                tx.execute("SELECT 1 / 0")
        except Exception as error:
            raised.append(error)
            raise

    message, provider = order(), Provider()
    provider.before.append(ProviderError(402))
    opened(effectful(handle)).deliver(delivery(message))
    assert [type(error) for error in raised] == [UnknownOutcome]
    assert "ProviderError" not in str(rows.scalar(db, "SELECT error FROM onceward.attempts"))


def test_one_function_may_be_call_and_look_up(opened: Opened, db: Db) -> None:
    """A look-up's None says that the effect did not happen; it is not its answer."""

    def ask(_request: Any, _key: str) -> None:
        if not asked:
            asked.append(1)
            raise RuntimeError("the answer is lost")

    def handle(_: Message, once: Once) -> None:
        once.effect("charge", ask, request=1, provider=NO_KEYS, lookup=ask)

    message, asked = order(), list[int]()
    consumer = opened(effectful(handle))
    consumer.deliver(delivery(message))
    consumer.deliver(delivery(message, times=2))
    assert [entry.reason for entry in rows.parked(db)] == ["unknown"]


def test_a_refusal_that_nobody_handles_is_parked_and_not_retried(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    provider.before.append(ProviderError(402))
    assert opened(charging(provider)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["refused"], effects=0)
    assert rows.intents(db, message)[0].refused


def test_a_request_that_is_not_json_is_refused_before_anything_is_written(opened: Opened, db: Db) -> None:
    def handle(_: Message, once: Once) -> None:
        with pytest.raises(UsageError):
            once.effect("charge", provider.charge, request={1, 2}, provider=STRIPE_V1)

    message, provider = order(), Provider()
    opened(effectful(handle)).deliver(delivery(message))
    assert (provider.calls, rows.intents(db, message)) == (0, [])


def test_two_different_answers_are_parked_with_both(opened: Opened, db: Db) -> None:
    check_one_answer_is_kept(opened, db)


def test_two_long_answers_are_both_there_for_a_person_to_read(opened: Opened, db: Db) -> None:
    check_one_answer_is_kept(opened, db, padding="x" * 6000)


def test_a_zombies_answer_is_recorded_though_its_lease_is_lost(opened: Opened, db: Db, connect: Callable[[], Db]) -> None:
    errors: list[type] = []

    def handle(message: Message, once: Once) -> None:
        assert once.effect("charge", provider.charge, request=1, provider=STRIPE_V1)
        with pytest.raises(LeaseLost) as caught:
            once.effect("mail", provider.charge, request=2, provider=STRIPE_V1)
        errors.append(caught.type)

    message, provider = order(), Provider()
    steal = At("effect.answered", lambda: rows.claim_by_another(db, message))
    assert opened(effectful(handle), steal).deliver(delivery(message)) == LEAVE
    assert [(intent.n, intent.state) for intent in rows.intents(connect(), message)] == [(1, "done")]
    assert (errors, provider.calls) == ([LeaseLost], 1)
    assert rows.books(db, message) == rows.Books(state="pending", token=2, attempts=0, parked=[], effects=0)


@pytest.mark.parametrize("swallowed", [LeaseLost, UnknownOutcome, ConflictError])
def test_once_refuses_everything_after_an_error_that_user_code_swallowed(
    swallowed: type[Exception], opened: Opened, db: Db
) -> None:
    refused: list[str] = []

    def handle(_: Message, once: Once) -> None:
        with pytest.raises(swallowed):
            once.effect("charge", provider.charge, request=1, provider=profile)
        with pytest.raises(swallowed):
            once.effect("mail", provider.charge, request=1, provider=profile)
        refused.append("effect")
        with pytest.raises(swallowed), once.transaction():
            pytest.fail("the body must not run")
        refused.append("transaction")

    message, provider, profile = order(), Provider(), STRIPE_V1
    provoke: dict[type[Exception], At] = {
        LeaseLost: At("consumer.claimed", lambda: rows.claim_by_another(db, message)),
        UnknownOutcome: At("consumer.claimed", lambda: provider.before.append(ProviderError(500, replayed=True))),
        ConflictError: At("effect.answered", lambda: db.execute("UPDATE onceward.intents SET state='done', answer='1'")),
    }
    opened(effectful(handle), provoke[swallowed]).deliver(delivery(message))
    assert refused == ["effect", "transaction"]
    assert provider.calls <= 1
    assert rows.effects(db, message) == 0
