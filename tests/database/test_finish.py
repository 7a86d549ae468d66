"""The finish of an effectful message: fenced by state and token, one transaction with the handler's writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_a_late_finisher_writes_nothing, check_no_effect_starts_under_a_lapsed_lease
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import At, Gate, Recorder
from tests.support.shop import SHAPES, charging, effectful, transactional
from tests.support.waiting import Background, is_blocked, until

from onceward.consumer import OpenConsumer
from onceward.errors import LeaseLost, UsageError
from onceward.message import Message
from onceward.outbox import publish
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]


def test_a_worker_that_wakes_after_another_has_finished_writes_nothing(
    opened: Opened, db: Db, background: Background
) -> None:
    check_a_late_finisher_writes_nothing(opened, db, background)


def test_a_worker_that_wakes_before_the_other_finishes_cannot_finish_either(
    opened: Opened, db: Db, background: Background
) -> None:
    message, provider = order(), Provider()
    with Gate("effect.recorded") as slow, Gate("effect.replayed") as fast:
        first = background(opened(charging(provider, note="first"), slow).deliver, delivery(message))
        slow.wait()
        rows.lapse(db, message)
        second = background(opened(charging(provider, note="second"), fast).deliver, delivery(message, times=2))
        fast.wait()
        slow.release()
        assert first.result().action == "leave"
        fast.release()
        assert second.result() == ACK
    assert (provider.calls, rows.books(db, message)) == (
        1,
        rows.Books(state="done", token=2, attempts=0, parked=[], effects=1),
    )


def test_a_lapsed_lease_that_nobody_took_over_may_still_finish(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    late = At("effect.recorded", lambda: rows.lapse(db, message))
    assert opened(charging(provider), late).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_an_effect_does_not_start_under_a_lapsed_lease(opened: Opened, db: Db) -> None:
    check_no_effect_starts_under_a_lapsed_lease(opened, db)


def test_the_handler_is_told_that_its_lease_is_lost_at_the_transaction(opened: Opened, db: Db) -> None:
    told: list[type] = []

    def handle(message: Message, once: Once) -> None:
        rows.claim_by_another(db, message)
        with pytest.raises(LeaseLost) as caught, once.transaction():
            pytest.fail("the body must not run")
        told.append(caught.type)

    message, seen = order(), Recorder()
    assert opened(effectful(handle), seen).deliver(delivery(message)).action == "leave"
    assert told == [LeaseLost]
    assert seen.count("consumer.lease_lost") == 1


def test_a_take_over_waits_for_a_finish_that_is_under_way(
    opened: Opened, db: Db, connect: Callable[[], Db], background: Background
) -> None:
    message, other = order(), connect()
    with Gate("consumer.handled") as gate:
        first = background(opened(effectful(), gate).deliver, delivery(message))
        gate.wait()
        taking_over = background(
            other.execute, "UPDATE onceward.inbox SET token = token + 1 WHERE state = 'pending' RETURNING token"
        )
        until(lambda: is_blocked(db, other.info.backend_pid), "the take-over standing behind the finish")
    assert first.result() == ACK
    assert taking_over.result().fetchone() is None


def test_a_handler_that_opens_no_transaction_is_finished_with_no_writes(opened: Opened, db: Db) -> None:
    def handle(_: Message, once: Once) -> None:
        once.effect("charge", Provider().charge, request=1, provider=STRIPE_V1)

    message = order()
    assert opened(effectful(handle)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=0)


@pytest.mark.parametrize("place", ["inside", "after"])
@pytest.mark.parametrize("what", ["effect", "transaction"])
def test_an_effect_or_a_second_transaction_in_or_after_the_transaction_is_refused(
    place: str, what: str, opened: Opened, db: Db
) -> None:
    def ask(once: Once) -> None:
        with pytest.raises(UsageError):  # noqa: PT012 - one of two calls
            if what == "effect":
                once.effect("charge", provider.charge, request=1, provider=STRIPE_V1)
            else:
                once.transaction().__enter__()
        asked.append(what)

    def handle(message: Message, once: Once) -> None:
        with once.transaction() as tx:
            rows.write_effect(tx, message)
            if place == "inside":
                ask(once)
        if place == "after":
            ask(once)

    asked: list[str] = []
    message, provider = order(), Provider()
    assert opened(effectful(handle)).deliver(delivery(message)) == ACK
    assert (asked, provider.calls) == ([what], 0)
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_a_handler_that_raises_after_its_finish_is_done_all_the_same(opened: Opened, db: Db) -> None:
    def handle(message: Message, once: Once) -> None:
        with once.transaction() as tx:
            rows.write_effect(tx, message)
        raise RuntimeError("too late")

    message, seen = order(), Recorder()
    assert opened(effectful(handle), seen).deliver(delivery(message)) == ACK
    assert seen.count("consumer.raised_late") == 1
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_a_body_that_raised_is_a_failed_attempt_even_if_the_handler_goes_on(opened: Opened, db: Db) -> None:
    def handle(message: Message, once: Once) -> None:
        with pytest.raises(ZeroDivisionError), once.transaction() as tx:  # noqa: PT012
            rows.write_effect(tx, message)
            raise ZeroDivisionError
        with pytest.raises(UsageError):
            once.effect("charge", Provider().charge, request=1, provider=STRIPE_V1)

    message = order()
    assert opened(effectful(handle)).deliver(delivery(message)).action == "release"
    assert rows.books(db, message) == rows.Books(state="pending", token=1, attempts=1, parked=[], effects=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_handler_publishes_is_in_its_transaction(shape: str, opened: Opened, db: Db) -> None:
    def write(tx: Db) -> None:
        publish(tx, paid)
        if not tries:
            tries.append(1)
            raise RuntimeError("the first try")

    def finish(_: Message, once: Once) -> None:
        with once.transaction() as tx:
            write(tx)

    tries: list[int] = []
    message, paid = order(), order(subject="order-1")
    consumer = opened(effectful(finish) if shape == "effectful" else transactional(lambda _, tx: write(tx)))
    consumer.deliver(delivery(message))
    assert rows.outbox(db) == []
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert [row.id for row in rows.outbox(db)] == [paid.id]
