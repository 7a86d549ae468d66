"""Fail, park, poison, redrive: attempts are counted and parked in one transaction, and only by who may."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_a_zombie_fails_nothing, check_a_zombie_parks_nothing
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import Recorder
from tests.support.shop import SHAPES, charging, of_shape, transactional
from tests.support.waiting import Background, until_any_blocked

from onceward.consumer import OpenConsumer
from onceward.decisions import redrive
from onceward.errors import Defer, Reject
from onceward.inbox import Inbox
from onceward.message import Message
from onceward.retry import Backoff
from onceward.transport import ACK, LEAVE

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def raising(*errors: BaseException) -> Callable[[Message], None]:
    """Raises these, one a run; then nothing."""
    left = list(errors)

    def handle(_: Message) -> None:
        if left:
            raise left.pop(0)

    return handle


# ---- fail --------------------------------------------------------------------------------------------------------------


@both_shapes
def test_a_failed_attempt_is_counted_and_released_with_backoff(shape: str, opened: Opened, db: Db) -> None:
    message, seen = order(), Recorder()
    backoff = Backoff(first_seconds=8, seconds_max=60)
    consumer = opened(of_shape(shape, raising(RuntimeError("one"), RuntimeError("two")), backoff=backoff), seen)
    first, second = (consumer.deliver(delivery(message)) for _ in range(2))
    assert first.action == second.action == "release"
    assert 4 <= first.delay_seconds <= 8 <= second.delay_seconds <= 16
    assert (rows.attempts(db, message), seen.count("consumer.failed")) == (2, 2)
    assert rows.scalar(db, "SELECT split_part(error, E'\\n', 1) FROM onceward.attempts") == "RuntimeError: two"


@both_shapes
def test_a_retry_after_a_failure_is_not_a_duplicate_of_itself(shape: str, opened: Opened, db: Db) -> None:
    message, seen = order(), Recorder()
    consumer = opened(of_shape(shape, raising(RuntimeError("once"))), seen)
    assert consumer.deliver(delivery(message)).action == "release"
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert seen.count("consumer.duplicate") == 0
    assert rows.effects(db, message) == 1
    assert rows.state(db, message) == "done"


@both_shapes
def test_attempts_that_run_out_are_counted_and_parked_together(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape(shape, raising(*[RuntimeError(str(n)) for n in range(9)]), attempts_max=3))
    assert [consumer.deliver(delivery(message)).action for _ in range(4)] == ["release", "release", "ack", "ack"]
    books = rows.books(db, message)
    assert (books.state, books.attempts, books.parked, books.effects) == ("parked", 3, ["attempts ran out"], 0)
    [entry] = rows.parked(db)
    assert (entry.attempts, entry.body, entry.source) == (3, message.body, "test")
    assert entry.detail.startswith("RuntimeError: 2\n\nTraceback")
    assert entry.detail.endswith("raise left.pop(0)\nRuntimeError: 2")
    assert entry.headers["type"] == "order.placed"


@both_shapes
def test_a_park_that_fails_takes_its_attempt_along(shape: str, opened: Opened, db: Db) -> None:
    """One transaction: while `parked` cannot be written, the last attempt is not counted either, and nothing is lost."""
    message = order()
    db.execute("ALTER TABLE onceward.parked ADD CONSTRAINT is_full CHECK (false) NOT VALID")
    consumer = opened(of_shape(shape, raising(RuntimeError("1"), RuntimeError("2")), attempts_max=1))
    assert consumer.deliver(delivery(message)) is LEAVE
    assert (rows.attempts(db, message), rows.parked(db)) == (0, [])
    db.execute("ALTER TABLE onceward.parked DROP CONSTRAINT is_full")
    if shape == "effectful":
        rows.lapse(db, message)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (rows.attempts(db, message), rows.state(db, message)) == (1, "parked")


@both_shapes
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), RecursionError(), AssertionError("x")], ids=repr)
def test_whatever_a_handler_raises_on_a_workers_thread_is_a_failed_attempt(
    shape: str, error: BaseException, opened: Opened, db: Db, background: Background
) -> None:
    message = order()
    consumer = opened(of_shape(shape, raising(error)))
    assert background(consumer.deliver, delivery(message)).result().action == "release"
    assert rows.attempts(db, message) == 1
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.effects(db, message) == 1


@both_shapes
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_program_that_is_asked_to_exit_on_its_main_thread_exits(
    shape: str, error: BaseException, opened: Opened, db: Db
) -> None:
    """The message has neither finished nor failed: its redelivery does it."""
    message = order()
    consumer = opened(of_shape(shape, raising(error)))
    with pytest.raises(type(error)):
        consumer.deliver(delivery(message))
    assert (rows.attempts(db, message), rows.effects(db, message)) == (0, 0)
    if shape == "effectful":
        rows.lapse(db, message)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.effects(db, message) == 1


def test_a_program_that_is_asked_to_exit_inside_a_call_exits_and_the_call_is_repeated(opened: Opened, db: Db) -> None:
    provider, message = Provider(), order()
    provider.after = [KeyboardInterrupt()]
    consumer = opened(charging(provider))
    with pytest.raises(KeyboardInterrupt):
        consumer.deliver(delivery(message))
    assert (rows.attempts(db, message), rows.intents(db, message)[0].state) == (0, "pending")
    rows.lapse(db, message)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (provider.calls, len(provider.charges), rows.effects(db, message)) == (2, 1, 1)


@both_shapes
@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), concurrent.futures.CancelledError()], ids=["asyncio", "futures"]
)
def test_a_cancelled_handler_has_neither_finished_nor_failed(
    shape: str, error: BaseException, opened: Opened, db: Db
) -> None:
    """On a shutdown: no ack, and with one attempt left, no parking either. As after a crash, the redelivery does it."""
    message = order()
    consumer = opened(of_shape(shape, raising(error), attempts_max=1))
    assert consumer.deliver(delivery(message)) is LEAVE
    assert (rows.attempts(db, message), rows.effects(db, message), rows.parked(db)) == (0, 0, [])
    if shape == "effectful":
        rows.lapse(db, message)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(
        state="done", token=1 + (shape == "effectful"), attempts=0, parked=[], effects=1
    )


@both_shapes
def test_a_handler_that_is_cancelled_each_time_is_poison(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape(shape, raising(*[asyncio.CancelledError()] * 9), deliveries_max=2))
    for times in range(1, 4):
        settlement = consumer.deliver(delivery(message, times=times))
        if shape == "effectful" and settlement is LEAVE:
            rows.lapse(db, message)
    assert settlement == ACK
    assert [entry.reason for entry in rows.parked(db)] == ["poison"]


@both_shapes
def test_a_deferred_message_costs_no_attempt_and_is_not_poison(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape(shape, raising(*[Defer(7) for _ in range(5)]), attempts_max=1, deliveries_max=2))
    for _ in range(5):
        settlement = consumer.deliver(delivery(message))
        assert (settlement.action, settlement.delay_seconds) == ("release", 7)
    assert rows.attempts(db, message) == 0
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.effects(db, message) == 1


@both_shapes
def test_a_rejected_message_is_parked_at_once(shape: str, opened: Opened, db: Db) -> None:
    message = order(subject="order-7")
    assert opened(of_shape(shape, raising(Reject("no such customer")))).deliver(delivery(message)) == ACK
    [entry] = rows.parked(db)
    assert (entry.reason, entry.detail, entry.attempts) == ("rejected", "no such customer", 0)
    assert rows.state(db, message) == "parked"


def test_a_failed_attempt_of_a_message_that_another_has_done_by_now_is_not_counted(
    opened: Opened, db: Db, background: Background
) -> None:
    """Between the rollback of a failed handler and its bookkeeping, the redelivery waiting behind its row is done."""

    def handle(_: Message, tx: Db) -> None:
        if not runs:
            runs.append(1)
            other.append(background(consumer.deliver, delivery(message, times=2)))
            until_any_blocked(db)
            tx.execute("ROLLBACK; BEGIN; SELECT set_config('onceward.delivery', 'x', true)")
            assert other[0].result() == ACK
            tx.execute("SELECT 1/0")

    runs: list[int] = []
    other: list[Any] = []
    message = order()
    consumer = opened(transactional(handle))
    assert consumer.deliver(delivery(message)) is LEAVE
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=0)


# ---- fences ------------------------------------------------------------------------------------------------------------


def test_a_zombies_failure_writes_nothing(opened: Opened, db: Db) -> None:
    check_a_zombie_fails_nothing(opened, db)


def test_a_zombies_park_writes_nothing(opened: Opened, db: Db) -> None:
    check_a_zombie_parks_nothing(opened, db)


def test_a_failure_that_was_not_counted_is_not_announced_as_one(opened: Opened, db: Db) -> None:
    def fail(message: Message) -> None:
        rows.claim_by_another(db, message)
        raise RuntimeError("a zombie's")

    seen = Recorder()
    assert opened(of_shape("effectful", fail), seen).deliver(delivery(order())) is LEAVE
    assert seen.count("consumer.failed") == 0


# ---- poison ------------------------------------------------------------------------------------------------------------


def test_an_effectful_message_is_poison_by_its_takes(opened: Opened, db: Db) -> None:
    """Each take is a crash: claimed, and never heard of again. The queue's own count plays no part."""
    message = order()
    for _ in range(3):
        Inbox(rows.CONSUMER, worker="crashed").claim(db, message)
        rows.lapse(db, message)
    consumer = opened(of_shape("effectful", deliveries_max=3))
    assert consumer.deliver(delivery(message, times=1)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=4, attempts=0, parked=["poison"], effects=0)


def test_takes_up_to_the_limit_are_served(opened: Opened, db: Db) -> None:
    message = order()
    for _ in range(3):
        Inbox(rows.CONSUMER, worker="crashed").claim(db, message)
        rows.lapse(db, message)
    assert opened(of_shape("effectful", deliveries_max=4)).deliver(delivery(message, times=900)) == ACK
    assert rows.state(db, message) == "done"


def test_a_transactional_message_is_poison_by_the_queues_count(opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape("transactional", deliveries_max=3))
    assert consumer.deliver(delivery(message, times=4)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["poison"], effects=0)


@both_shapes
def test_poison_is_looked_for_only_after_the_take(shape: str, opened: Opened, db: Db) -> None:
    """A finished message that the queue delivers for the hundredth time is a duplicate, no poison."""
    message, seen = order(), Recorder()
    consumer = opened(of_shape(shape, deliveries_max=3), seen)
    consumer.deliver(delivery(message))
    assert consumer.deliver(delivery(message, times=100)) == ACK
    assert seen.count("consumer.duplicate") == 1
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


@both_shapes
def test_a_queue_that_does_not_count_deliveries_makes_nothing_poison(shape: str, opened: Opened, db: Db) -> None:
    assert opened(of_shape(shape, deliveries_max=1)).deliver(delivery(order(), times=0)) == ACK
    assert rows.parked(db) == []


def test_failed_attempts_do_not_count_as_takes(opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape("effectful", raising(*[RuntimeError()] * 4), deliveries_max=2))
    for _ in range(4):
        assert consumer.deliver(delivery(message)).action == "release"
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=5, attempts=4, parked=[], effects=1)


@pytest.mark.parametrize("what", ["deferred", "in flight"])
def test_deliveries_in_which_nothing_went_wrong_do_not_make_a_message_poison(
    what: str, opened: Opened, db: Db, connect: Callable[..., Db]
) -> None:
    """The queue counts them like crashes: a transactional message leaves no row in which a take could be forgiven."""
    message, deliveries_max = order(), 2
    deferring = raising(*[Defer(7) for _ in range(5 if what == "deferred" else 0)])
    consumer = opened(of_shape("transactional", deferring, deliveries_max=deliveries_max))
    with connect(autocommit=False) as slow:
        if what == "in flight":
            Inbox(rows.CONSUMER).take(slow, message)
        assert {consumer.deliver(delivery(message, times=n)).action for n in range(1, 6)} == {"release"}
        slow.rollback()
    assert consumer.deliver(delivery(message, times=6)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_crashes_between_deferrals_are_poison_all_the_same(opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape("transactional", raising(Defer(7), Defer(7)), deliveries_max=2))
    assert [consumer.deliver(delivery(message, times=n)).action for n in (1, 2)] == ["release", "release"]
    assert consumer.deliver(delivery(message, times=5)) == ACK, "the third to fifth have left nothing: they were crashes"
    assert rows.books(db, message).parked == ["poison"]


# ---- redrive -----------------------------------------------------------------------------------------------------------


@both_shapes
def test_a_redriven_message_starts_with_no_attempts_and_no_takes(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    errors = [RuntimeError(str(n)) for n in range(4)]
    consumer = opened(of_shape(shape, raising(*errors), attempts_max=2, deliveries_max=2))
    for _ in range(2):
        consumer.deliver(delivery(message))
    for _ in range(2):
        redriven = redrive(db, message.id, consumer=rows.CONSUMER)
        assert redriven.stands
        assert (rows.attempts(db, message), rows.parked(db), rows.inbox_row(db, message).token) == (0, [], redriven.token)
        first = consumer.deliver(delivery(message))
        if first == ACK:
            break
        assert (first.action, rows.attempts(db, message)) == ("release", 1)
        assert consumer.deliver(delivery(message)) == ACK
    assert rows.state(db, message) == "done"
    assert {row.id for row in rows.outbox(db)} == {message.id}


@both_shapes
def test_a_redrive_that_fails_again_is_counted_under_the_old_row(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape(shape, raising(Reject("no"), RuntimeError("again"))))
    consumer.deliver(delivery(message))
    redrive(db, message.id, consumer=rows.CONSUMER)
    assert consumer.deliver(delivery(message)).action == "release"
    assert (rows.state(db, message), rows.attempts(db, message)) == ("pending", 1)
    assert consumer.deliver(delivery(message)) == ACK
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)


def test_what_was_parked_without_an_inbox_row_cannot_be_redriven(opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape("transactional"))
    consumer.deliver(delivery(message))
    consumer.deliver(delivery(order({"amount": 5}, id=message.id)))
    assert redrive(db, message.id, consumer=rows.CONSUMER).why_not
    assert rows.state(db, message) == "done"


def test_effects_answered_before_a_park_are_replayed_after_the_redrive(opened: Opened, db: Db) -> None:
    message, provider = order(), Provider()
    consumer = opened(charging(provider, attempts_max=1))
    db.execute("ALTER TABLE effects ADD CONSTRAINT is_full CHECK (false) NOT VALID")
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.state(db, message) == "parked"
    db.execute("ALTER TABLE effects DROP CONSTRAINT is_full")
    redrive(db, message.id, consumer=rows.CONSUMER)
    assert consumer.deliver(delivery(message)) == ACK
    assert (provider.calls, rows.state(db, message), rows.effects(db, message)) == (1, "done", 1)
