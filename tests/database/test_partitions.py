"""The partitions of the inbox: a duplicate lands where its original is; an id without a partition is never taken as new."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order, order_aged
from tests.support.points import Recorder
from tests.support.shop import SHAPES, charging, of_shape

from onceward.consumer import OpenConsumer
from onceward.day_partitions import attached, database_now, partition_bounds, partition_name
from onceward.errors import UsageError
from onceward.inbox import Inbox, TakeResult
from onceward.message import Message, uuid7_at
from onceward.provider import idempotency_key
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def drop_partition(db: Db, days_ahead: int = 0) -> None:
    day = database_now(db).date() + timedelta(days=days_ahead)
    for table in ("inbox", "intents"):
        db.execute(f"DROP TABLE onceward.{partition_name(table, day)}".encode())


def around_midnight(db: Db) -> list[Message]:
    """The last id of yesterday, and the first of today."""
    midnight, _ = partition_bounds(database_now(db).date())
    first = midnight.int >> 80
    return [order(id=uuid7_at(first - 1, (1 << 80) - 1)), order(id=uuid7_at(first, 0))]


def homes(db: Db, table: str, messages: list[Message]) -> set[str]:
    """The partitions that these messages' rows lie in."""
    where = f"SELECT tableoid::regclass::text FROM onceward.{table} WHERE message_id = %s"
    return {rows.scalar(db, where, (message.id,)) for message in messages}


def test_there_is_no_default_partition(db: Db) -> None:
    assert not rows.scalar(db, "SELECT count(*) FROM pg_class WHERE relname ~ '^(inbox|intents).*default'")
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        db.execute(
            "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) VALUES ('x', %s, 'x', 'done')",
            (order_aged(db, 20 * 86_400).id,),
        )
    assert caught.value.sqlstate == "23514"
    assert caught.value.diag.constraint_name is None


@both_shapes
def test_a_missing_partition_of_today_is_made_and_the_message_comes_again(shape: str, opened: Opened, db: Db) -> None:
    message, seen = order(), Recorder()
    consumer = opened(of_shape(shape), seen)
    drop_partition(db)
    first = consumer.deliver(delivery(message))
    assert first.action == "release"
    assert first.delay_seconds <= 0.1
    assert seen.count("upkeep.partition_late") == 1
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


@both_shapes
def test_an_old_id_whose_partition_is_gone_is_outside_the_window(shape: str, opened: Opened, db: Db) -> None:
    """It was done, its partition was dropped with it: it must not be taken as new."""
    message = order_aged(db, 40 * 86_400)
    assert opened(of_shape(shape)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(None, None, 0, ["outside window"], 0)


@both_shapes
def test_an_old_id_whose_partition_is_there_still_is_outside_the_window_too(shape: str, opened: Opened, db: Db) -> None:
    message = order_aged(db, 3600)
    assert opened(of_shape(shape, window=timedelta(minutes=30))).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(None, None, 0, ["outside window"], 0)


def test_a_check_of_the_callers_own_is_not_taken_for_a_missing_partition(opened: Opened, db: Db) -> None:
    db.execute("ALTER TABLE onceward.inbox ADD CONSTRAINT mine CHECK (consumer <> 'payments') NOT VALID")
    message, seen = order(), Recorder()
    with db.transaction(), pytest.raises(psycopg.errors.CheckViolation):
        Inbox(rows.CONSUMER).take(db, message)
    opened(of_shape("transactional"), seen).deliver(delivery(message))
    assert seen.count("upkeep.partition_late") == 0


def test_at_the_second_door_a_missing_partition_is_said(db: Db) -> None:
    drop_partition(db)
    with db.transaction(), pytest.raises(UsageError, match="upkeep"):
        Inbox(rows.CONSUMER).take(db, order())


def test_at_the_second_door_an_old_id_is_outside_the_window(db: Db) -> None:
    with db.transaction():
        taking = Inbox(rows.CONSUMER).take(db, order_aged(db, 60 * 86_400))
        assert taking.result is TakeResult.OUTSIDE_WINDOW
        rows.write_effect(db, order())


@both_shapes
def test_the_same_id_is_one_effect_on_both_sides_of_a_partition_boundary(shape: str, opened: Opened, db: Db) -> None:
    """The last id of one day, the first of the next: each is delivered twice, and lands where its original is."""
    messages = around_midnight(db)
    consumer = opened(of_shape(shape))
    for times in (1, 2):
        for message in messages:
            assert consumer.deliver(delivery(message, times=times)) == ACK
    assert [rows.effects(db, message) for message in messages] == [1, 1]
    assert len(homes(db, "inbox", messages)) == 2


def test_an_intent_is_one_charge_on_both_sides_of_a_partition_boundary(opened: Opened, db: Db) -> None:
    """The answer is lost, then the finish fails, then it is done: each retry finds the intent where the first put it."""
    messages, provider = around_midnight(db), Provider()
    provider.after += [ConnectionError("cut after it charged") for _ in messages]
    consumer = opened(charging(provider))

    def deliver_both(times: int) -> list[str]:
        return [consumer.deliver(delivery(message, times=times)).action for message in messages]

    assert deliver_both(1) == ["release", "release"]
    db.execute("ALTER TABLE effects ADD CONSTRAINT is_full CHECK (false) NOT VALID")
    assert deliver_both(2) == ["release", "release"]
    db.execute("ALTER TABLE effects DROP CONSTRAINT is_full")
    assert deliver_both(3) == deliver_both(4) == ["ack", "ack"]
    keys = [idempotency_key(rows.CONSUMER, message.id, "charge") for message in messages]
    assert (provider.requests, list(provider.charges)) == (keys * 2, keys)
    for message in messages:
        assert [(intent.n, intent.state) for intent in rows.intents(db, message)] == [(1, "done")]
        assert rows.books(db, message) == rows.Books("done", 3, 2, [], 1)
    assert len(homes(db, "intents", messages)) == 2


@both_shapes
def test_an_id_of_yesterday_redelivered_today_finds_its_row(shape: str, opened: Opened, db: Db) -> None:
    """The time of delivery plays no part: the partition is the id's."""
    message = order_aged(db, 86_400)
    consumer = opened(of_shape(shape))
    for times in (1, 2, 3):
        assert consumer.deliver(delivery(message, times=times)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


def test_a_partition_holds_one_day_of_ids_in_utc(db: Db) -> None:
    names = {name for name, _ in attached(db, schema="onceward")}
    today = database_now(db).date()
    days = [today + timedelta(days=offset) for offset in range(-1, 4)]
    assert names == {partition_name(table, day) for table in ("inbox", "intents") for day in days}
    low, high = partition_bounds(today)
    assert datetime.fromtimestamp((low.int >> 80) / 1000, UTC).date() == today
    assert (high.int >> 80) - (low.int >> 80) == 86_400_000
