"""The n-th effect must be the recorded n-th: what a deploy has changed is parked before any call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import At
from tests.support.shop import charging, effectful, transactional

from onceward.consumer import OpenConsumer
from onceward.decisions import redrive
from onceward.errors import UsageError
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
Plan = list[tuple[str, object]]
BEFORE: Plan = [("reserve", {"sku": 1}), ("charge", {"amount": 100})]
CHANGED: dict[str, Plan] = {
    "renamed": [("hold", {"sku": 1}), ("charge", {"amount": 100})],
    "reordered": [("charge", {"amount": 100}), ("reserve", {"sku": 1})],
    "another request": [("reserve", {"sku": 2}), ("charge", {"amount": 100})],
    "the first skipped": [("charge", {"amount": 100})],
    "one put before": [("check", {}), ("reserve", {"sku": 1}), ("charge", {"amount": 100})],
}


def performing(plan: Plan, provider: Provider, fails: list[bool]) -> Callable[[Message, Any], None]:
    def handle(message: Message, once: Once) -> None:
        for name, request in plan:
            once.effect(name, provider.charge, request=request, provider=STRIPE_V1)
        if fails.pop(0):
            raise RuntimeError("after its effects")
        with once.transaction() as tx:
            rows.write_effect(tx, message)

    return handle


@pytest.mark.parametrize("change", CHANGED)
def test_changed_effects_are_parked_before_any_call(change: str, opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    opened(effectful(performing(BEFORE, provider, [True]))).deliver(delivery(message))
    assert provider.calls == 2
    assert opened(effectful(performing(CHANGED[change], provider, [False]))).deliver(delivery(message)) == ACK
    assert provider.calls == 2
    assert rows.books(db, message) == rows.Books(state="parked", token=2, attempts=1, parked=["effects changed"], effects=0)


def test_a_handler_that_has_become_transactional_leaves_no_effect_behind(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    opened(effectful(performing(BEFORE, provider, [True]))).deliver(delivery(message))
    assert opened(transactional()).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=1, parked=["effects changed"], effects=0)
    redrive(db, message.id, consumer=rows.CONSUMER)
    assert opened(effectful(performing(BEFORE, provider, [False]))).deliver(delivery(message)) == ACK
    assert (provider.calls, rows.state(db, message), rows.effects(db, message)) == (2, "done", 1)


@pytest.mark.parametrize("plan", [[], BEFORE[:1]], ids=["all", "the last"])
@pytest.mark.parametrize("opens", [True, False])
def test_effects_that_the_handler_does_not_visit_any_more_are_parked_at_the_finish(
    plan: Plan, opens: bool, opened: Opened, db: Db
) -> None:
    def handle(message: Message, once: Once) -> None:
        for name, request in plan:
            once.effect(name, provider.charge, request=request, provider=STRIPE_V1)
        if opens:
            with pytest.raises(UsageError), once.transaction():
                pytest.fail("the body must not run")

    message, provider = order(), Provider()
    opened(effectful(performing(BEFORE, provider, [True]))).deliver(delivery(message))
    assert opened(effectful(handle)).deliver(delivery(message)) == ACK
    assert provider.calls == 2
    assert rows.books(db, message) == rows.Books(state="parked", token=2, attempts=1, parked=["effects changed"], effects=0)


def test_an_effect_whose_answer_is_gone_is_parked_at_the_finish(opened: Opened, db: Db) -> None:
    """Somebody mended the intents by hand, while the handler was at work: what it charged is not recorded any more."""
    forget = "UPDATE onceward.intents SET state = 'pending', answer = NULL"
    message, provider = order(), Provider()
    late = At("effect.recorded", lambda: db.execute(forget))
    assert opened(charging(provider), late).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["effects changed"], effects=0)
    assert "1 without an answer" in rows.parked(db)[0].detail


def test_one_more_effect_behind_the_recorded_ones_is_called(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    opened(effectful(performing(BEFORE, provider, [True]))).deliver(delivery(message))
    longer = [*BEFORE, ("mail", {})]
    assert opened(effectful(performing(longer, provider, [False]))).deliver(delivery(message)) == ACK
    assert provider.calls == 3
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=1, parked=[], effects=1)


def test_a_request_whose_keys_are_written_in_another_order_is_the_same_request(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    opened(effectful(performing([("charge", {"a": 1, "b": 2})], provider, [True]))).deliver(delivery(message))
    plan: Plan = [("charge", {"b": 2, "a": 1})]
    assert opened(effectful(performing(plan, provider, [False]))).deliver(delivery(message)) == ACK
    assert (provider.calls, rows.state(db, message)) == (1, "done")


def test_the_same_name_twice_is_refused_before_the_second_call(opened: Opened, db: Db) -> None:
    """The key is made of consumer, message and name: a second effect of that name would be silently the first."""
    message, provider = order(), Provider()
    plan: Plan = [("charge", {"amount": 1}), ("charge", {"amount": 1})]
    opened(effectful(performing(plan, provider, [False]))).deliver(delivery(message))
    assert [intent.n for intent in rows.intents(db, message)] == [1]
    assert (provider.calls, len(provider.charges)) == (1, 1)
    assert rows.state(db, message) == "pending"
