"""Every row of the table that a take decides by, one delivery at a time. The races are in `test_take_races.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_a_crashed_claim_is_taken_over
from tests.support.deliveries import delivery, order, order_aged
from tests.support.points import Recorder
from tests.support.queues import ListSink, drain
from tests.support.shop import SHAPES, effectful, of_shape
from tests.support.waiting import until

from onceward.consumer import OpenConsumer
from onceward.day_partitions import make_partition_for
from onceward.decisions import redrive
from onceward.errors import Reject
from onceward.inbox import FUTURE_SECONDS, Inbox, InboxRow, InboxTable, TakeResult
from onceward.message import Message
from onceward.outbox import publish
from onceward.steps import Steps
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


@both_shapes
def test_a_new_message_is_taken_handled_and_done(shape: str, opened: Opened, db: Db) -> None:
    message, seen = order(), Recorder()
    assert opened(of_shape(shape), seen).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)
    assert seen.points[0] == "consumer.received"
    assert seen.points[-1] == "consumer.committed"


@both_shapes
def test_a_second_delivery_changes_nothing(shape: str, opened: Opened, db: Db) -> None:
    message, seen = order(), Recorder()
    consumer = opened(of_shape(shape), seen)
    consumer.deliver(delivery(message))
    before = rows.inbox_row(db, message)._asdict() | {"lease_left": None}
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)
    assert rows.inbox_row(db, message)._asdict() | {"lease_left": None} == before
    assert seen.count("consumer.duplicate") == 1


@both_shapes
def test_a_duplicate_never_reaches_the_handler(shape: str, opened: Opened) -> None:
    runs: list[str] = []
    message = order()
    consumer = opened(of_shape(shape, lambda message: runs.append(message.id)))
    for times in range(1, 4):
        consumer.deliver(delivery(message, times=times))
    assert runs == [message.id]


@both_shapes
def test_two_consumers_both_take_the_same_message(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    other = of_shape(shape)
    other.name = "ledger"
    for consumer in (of_shape(shape), other):
        assert opened(consumer).deliver(delivery(message)) == ACK
    assert rows.effects(db, message) == 2


@both_shapes
def test_a_delivery_of_a_parked_message_is_a_duplicate(shape: str, opened: Opened, db: Db) -> None:
    def reject(_: Message) -> None:
        raise Reject("not ours")

    message = order()
    consumer = opened(of_shape(shape, reject))
    consumer.deliver(delivery(message))
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["rejected"], effects=0)


@both_shapes
@pytest.mark.parametrize("state", ["done", "pending", "parked"])
def test_another_payload_under_a_known_id_is_parked_beside_it(shape: str, state: str, opened: Opened, db: Db) -> None:
    first = order({"amount": 100})
    other = order({"amount": 999}, id=first.id)
    consumer = opened(of_shape(shape))
    consumer.deliver(delivery(first))
    db.execute("UPDATE onceward.inbox SET state = %s", (state,))
    before = rows.inbox_row(db, first).fingerprint, rows.inbox_row(db, first).token
    assert consumer.deliver(delivery(other)) == ACK
    assert (rows.inbox_row(db, first).fingerprint, rows.inbox_row(db, first).token) == before
    assert rows.state(db, first) == state
    [entry] = rows.parked(db)
    assert (entry.message_id, entry.reason, entry.body) == (first.id, "conflict", other.body)
    assert entry.fingerprint == other.fingerprint()
    assert rows.effects(db, first) == 1


@both_shapes
def test_a_conflict_met_again_and_again_is_one_parked_row(shape: str, opened: Opened, db: Db) -> None:
    first = order()
    other = order({"amount": 999}, id=first.id)
    consumer = opened(of_shape(shape))
    consumer.deliver(delivery(first))
    for times in range(1, 4):
        consumer.deliver(delivery(other, times=times))
    assert len(rows.parked(db)) == 1


@both_shapes
def test_a_message_under_a_living_lease_is_given_back_for_the_rest_of_it(shape: str, opened: Opened, db: Db) -> None:
    message, seen = order(), Recorder()
    assert Inbox(rows.CONSUMER, lease_seconds=40, worker="another").claim(db, message).result is TakeResult.TAKEN
    settlement = opened(of_shape(shape), seen).deliver(delivery(message))
    assert settlement.action == "release"
    assert 30 < settlement.delay_seconds <= 40
    assert rows.books(db, message) == rows.Books(state="pending", token=1, attempts=0, parked=[], effects=0)
    assert seen.count("consumer.in_flight") == 1


@both_shapes
def test_a_lapsed_claim_is_taken_over_under_the_next_token(shape: str, opened: Opened, db: Db) -> None:
    check_a_crashed_claim_is_taken_over(opened, db, shape)


@both_shapes
def test_a_redriven_message_is_taken_over_at_once(shape: str, opened: Opened, db: Db) -> None:
    broken = [True]

    def reject_once(_: Message) -> None:
        if broken:
            raise Reject("not today")

    message = order()
    consumer = opened(of_shape(shape, reject_once))
    consumer.deliver(delivery(message))
    broken.clear()
    assert not redrive(db, message.id, consumer=rows.CONSUMER).why_not
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=3, attempts=0, parked=[], effects=1)
    assert [row.id for row in rows.outbox(db)] == [message.id]


def test_a_redriven_message_is_sent_although_its_first_row_is_still_to_be_sent(opened: Opened, db: Db, dsn: str) -> None:
    """Its relay died behind the sink's answer, say. Were an id unique in the outbox, the redrive would send nothing."""

    def reject(_: Message) -> None:
        raise Reject("not today")

    message, sink = order(), ListSink()
    with db.transaction():
        publish(db, message)
    opened(of_shape("transactional", reject)).deliver(delivery(message))
    assert not redrive(db, message.id, consumer=rows.CONSUMER).why_not
    assert [row.id for row in rows.outbox(db)] == [message.id] * 2
    drain(dsn, sink)
    assert sink.ids == [message.id] * 2


@both_shapes
def test_a_row_that_vanishes_between_insert_and_read_is_taken_again(
    shape: str, opened: Opened, db: Db, connect: Callable[[], Db]
) -> None:
    class Pruned(InboxTable):
        def read_steps(self, params: dict[str, Any]) -> Steps[InboxRow]:
            other.execute("DELETE FROM onceward.inbox")
            return (yield from super().read_steps(params))

    message, other = order(), connect()
    Inbox(rows.CONSUMER).claim(db, message)
    pruned = Inbox(rows.CONSUMER)
    pruned._table = Pruned(rows.CONSUMER)
    with db.transaction():
        assert pruned.take(db, message).result is TakeResult.TAKEN


@both_shapes
def test_an_old_id_is_looked_up_and_never_inserted(shape: str, opened: Opened, db: Db) -> None:
    message = order_aged(db, 3 * 86_400)
    consumer = opened(of_shape(shape, window=timedelta(days=2)))
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state=None, token=None, attempts=0, parked=["outside window"], effects=0)


@both_shapes
def test_an_old_id_that_is_known_is_a_plain_duplicate(shape: str, opened: Opened, db: Db) -> None:
    message = order_aged(db, 3600)
    opened(of_shape(shape)).deliver(delivery(message))
    assert opened(of_shape(shape, window=timedelta(minutes=5))).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


@both_shapes
def test_a_redriven_message_passes_the_window_by_its_row(shape: str, opened: Opened, db: Db) -> None:
    message = order_aged(db, 3600)
    Inbox(rows.CONSUMER).claim(db, message)
    rows.lapse(db, message)
    assert opened(of_shape(shape, window=timedelta(minutes=5))).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=0, parked=[], effects=1)


@both_shapes
def test_an_id_from_the_future_is_parked_with_its_row(shape: str, opened: Opened, db: Db) -> None:
    """So that a copy which comes once its time has come is a duplicate, and not done beside the parked one."""
    message, consumer = order_aged(db, -2 * 86_400), opened(of_shape(shape))
    for times in (1, 2):
        assert consumer.deliver(delivery(message, times=times)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["outside window"], effects=0)
    assert "ahead of the database's clock" in rows.parked(db)[0].detail


@both_shapes
def test_a_copy_that_comes_when_the_time_of_its_id_has_come_is_a_duplicate(shape: str, opened: Opened, db: Db) -> None:
    consumer = opened(of_shape(shape))
    message, inbox = order_aged(db, -FUTURE_SECONDS - 1), consumer.runtime.inbox
    consumer.deliver(delivery(message))
    params = inbox.take_params(message, "done", lock_timeout="0") or {}
    until(lambda: inbox.read(db, params)[0] == "current", "its time having come")
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["outside window"], effects=0)


@both_shapes
def test_an_id_from_the_future_can_be_redriven(shape: str, opened: Opened, db: Db) -> None:
    message, consumer = order_aged(db, -2 * 86_400), opened(of_shape(shape))
    consumer.deliver(delivery(message))
    assert redrive(db, message.id, consumer=rows.CONSUMER).why_not == ""
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=3, attempts=0, parked=[], effects=1)


@both_shapes
def test_an_id_from_so_far_ahead_that_no_partition_is_there_is_parked_without_a_row(
    shape: str, opened: Opened, db: Db
) -> None:
    """What redrive then says is true of what stands: nothing at first, and a copy that was handled later."""
    message, consumer = order_aged(db, -30 * 86_400), opened(of_shape(shape))
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state=None, token=None, attempts=0, parked=["outside window"], effects=0)
    assert "never handled" in redrive(db, message.id, consumer=rows.CONSUMER).why_not
    make_partition_for(db, message.id)
    db.execute(
        "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) VALUES (%s, %s, %s, 'done')",
        (rows.CONSUMER, message.id, message.fingerprint()),
    )
    assert "was handled since" in redrive(db, message.id, consumer=rows.CONSUMER).why_not


@both_shapes
@pytest.mark.parametrize("minutes", [-30, 30])
def test_a_producer_whose_clock_is_half_an_hour_off_is_served_like_any_other(
    shape: str, minutes: int, opened: Opened, db: Db
) -> None:
    message = order_aged(db, -60 * minutes)
    consumer = opened(of_shape(shape, window=timedelta(hours=2)))
    for times in (1, 2):
        assert consumer.deliver(delivery(message, times=times)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


def test_the_same_id_in_another_spelling_is_the_same_message(opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(effectful())
    consumer.deliver(delivery(message))
    assert consumer.deliver(delivery(order(id=message.id.upper()))) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)
