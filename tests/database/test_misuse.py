"""What would be skipped in silence is refused where it is written: other connections, other ids, other threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order
from tests.support.shop import SHAPES, effectful, of_shape, transactional
from tests.support.waiting import Background

from onceward.consumer import Consumer, OpenConsumer
from onceward.decisions import redrive
from onceward.errors import UsageError
from onceward.inbox import Inbox, Take, TakeResult
from onceward.intents import Intents
from onceward.message import Message
from onceward.outbox import publish
from onceward.parked import show_parked
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]


def write(message: Message, tx: Db) -> None:
    rows.write_effect(tx, message)


both_shapes = pytest.mark.parametrize("shape", SHAPES)


# ---- connections that are none ---------------------------------------------------------------------------------------


class Session:
    """As SQLAlchemy's, by name."""

    __module__ = "sqlalchemy.orm.session"

    def get_bind(self) -> None:
        """What tells a session from a connection there."""


class DatabaseWrapper:
    """As Django's, by name."""

    __module__ = "django.db.backends.postgresql.base"


TAKEN = Take(TakeResult.TAKEN)
DOORS: dict[str, Callable[[Any], object]] = {
    "publish": lambda conn: publish(conn, order()),
    "take": lambda conn: Inbox("payments").take(conn, order()),
    "claim": lambda conn: Inbox("payments").claim(conn, order()),
    "finish": lambda conn: Inbox("payments").finish(conn, order(), take=TAKEN),
    "give back": lambda conn: Inbox("payments").give_back(conn, order(), take=TAKEN),
    "intend": lambda conn: Intents("payments").intend(
        conn, order(), take=TAKEN, n=1, name="charge", request={}, provider=STRIPE_V1
    ),
    "record": lambda conn: Intents("payments").record(conn, order(), n=1, answer={}),
}
OTHERS = [
    (Session(), "sqlalchemy.orm.session.Session: give it session.connection().connection.driver_connection"),
    (DatabaseWrapper(), "give it connection.connection, inside transaction.atomic()"),
    ("postgresql://", "not a builtins.str"),
    (None, "not a builtins.NoneType"),
]


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
@pytest.mark.parametrize(("conn", "reason"), OTHERS, ids=["sqlalchemy", "django", "text", "none"])
def test_what_is_not_a_psycopg_connection_is_refused_by_name(
    conn: object, reason: str, door: Callable[[Any], object]
) -> None:
    with pytest.raises(UsageError) as refused:
        door(conn)
    assert reason in str(refused.value)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_an_asynchronous_connection_is_refused_and_nothing_is_left_unawaited(
    dsn: str, door: Callable[[Any], object]
) -> None:
    async def try_it() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with pytest.raises(UsageError, match="use a synchronous connection"):
                door(conn)

    asyncio.run(try_it())


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_id", ["order-1", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"])
def test_an_id_that_every_consumer_would_park_is_refused_by_the_producer(
    message_id: str, connect: Callable[..., Db]
) -> None:
    conn, message = connect(autocommit=False), order(id=message_id)
    with pytest.raises(UsageError, match="not a UUIDv7"):
        publish(conn, message)
    publish(conn, message, untimed_ids=True)
    assert rows.scalar(conn, "SELECT id FROM onceward.outbox") == message_id


@both_shapes
def test_the_same_id_and_body_under_another_type_is_a_conflict(shape: str, opened: Opened, db: Db) -> None:
    """An order's own id, used for each of its events: the second is another fact, and would be gone as a duplicate."""
    placed = order({"order": 1})
    cancelled = Message(type="order.cancelled", id=placed.id, data={"order": 1})
    consumer = of_shape(shape)
    consumer.transactional("order.cancelled")(write)
    running = opened(consumer)
    assert [running.deliver(delivery(message)) for message in (placed, cancelled, placed)] == [ACK, ACK, ACK]
    [entry] = rows.parked(db)
    assert (entry.reason, entry.headers["type"]) == ("conflict", "order.cancelled")
    assert rows.effects(db, placed) == 1


def test_a_uuid_that_is_not_v7_is_found_under_the_spelling_in_which_it_is_listed(opened: Opened, db: Db) -> None:
    message = order(id="550E8400-E29B-41D4-A716-446655440000")
    opened(transactional()).deliver(delivery(message))
    assert [entry.message_id for entry in show_parked(db, message.id)] == [message.id]
    assert "without an inbox row" in redrive(db, message.id, consumer=rows.CONSUMER).why_not


# ---- types of newer code ---------------------------------------------------------------------------------------------


def test_a_type_that_only_newer_code_knows_is_parked_under_its_own_id_and_redriven_there(opened: Opened, db: Db) -> None:
    """A rolling deploy: the copies that the old code meets are one parked message, and the new code does it once."""
    refund = Message(type="order.refunded", subject="o1", data={"amount": 5})
    older, newer = transactional(), transactional()
    newer.transactional("order.refunded")(write)
    old, new = opened(older), opened(newer)
    assert [old.deliver(delivery(refund)) for _ in range(2)] == [ACK, ACK]
    [entry] = rows.parked(db)
    assert (entry.message_id, entry.reason, entry.body) == (refund.id, "unknown type", refund.body)
    assert new.deliver(delivery(refund)) == ACK, "a copy is a duplicate of what is parked"
    assert rows.effects(db, refund) == 0
    assert redrive(db, refund.id, consumer=rows.CONSUMER).why_not == ""
    assert new.deliver(delivery(refund)) == ACK
    assert (rows.effects(db, refund), rows.parked(db)) == (1, [])


# ---- `once` ----------------------------------------------------------------------------------------------------------


def test_once_refuses_another_thread_and_the_handlers_own_effect_is_not_mixed_up(
    opened: Opened, db: Db, background: Background
) -> None:
    provider = Provider()

    def charge(message: Message, once: Once) -> None:
        def effect(name: str) -> Any:
            return once.effect(name, provider.charge, request={"what": name}, provider=STRIPE_V1)

        refused = background(effect, "ship").exception()
        assert isinstance(refused, UsageError)
        assert "the handler's own thread" in str(refused)
        assert effect("charge")["request"] == {"what": "charge"}
        with once.transaction() as tx:
            rows.write_effect(tx, message)

    message = order()
    assert opened(effectful(charge)).deliver(delivery(message)) == ACK
    assert [(intent.name, intent.state) for intent in rows.intents(db, message)] == [("charge", "done")]
    assert provider.calls == 1


def test_once_can_do_nothing_after_its_handler(opened: Opened) -> None:
    kept: list[Once] = []
    provider = Provider()

    def keep(_: Message, once: Once) -> None:
        kept.append(once)

    opened(effectful(keep)).deliver(delivery(order()))
    with pytest.raises(UsageError, match="handler has ended"):
        kept[0].effect("charge", provider.charge, request={}, provider=STRIPE_V1)
    with pytest.raises(UsageError, match="handler has ended"), kept[0].transaction():
        pass
    assert provider.calls == 0


@both_shapes
def test_a_handler_whose_work_was_not_done_is_a_failed_attempt(shape: str, opened: Opened, db: Db) -> None:
    """A plain function that only passes a coroutine on: nothing could be seen of it where it was registered."""

    async def work() -> None:
        """Nobody awaits it."""

    def handle(_message: Message, _given: Any) -> Any:
        return work()

    message = order()
    consumer = opened(transactional(handle) if shape == "transactional" else effectful(handle))
    assert consumer.deliver(delivery(message)).action == "release"
    assert (rows.attempts(db, message), rows.effects(db, message)) == (1, 0)


def test_a_call_whose_work_was_not_done_is_a_failed_attempt(opened: Opened, db: Db) -> None:
    async def charge() -> None:
        """Nobody awaits it."""

    def handle(_: Message, once: Once) -> None:
        once.effect("charge", lambda _request, _key: charge(), request={}, provider=STRIPE_V1)

    message = order()
    assert opened(effectful(handle)).deliver(delivery(message)).action == "release"
    assert (rows.intents(db, message)[0].state, rows.attempts(db, message)) == ("pending", 1)


def test_the_second_doors_take_inside_a_handler_leaves_the_handlers_commit_alone(opened: Opened, db: Db) -> None:
    """One message of many lines, each taken in an inbox of its own, in the handler's transaction."""
    lines = [order() for _ in range(2)]

    def book(message: Message, tx: Db) -> None:
        for line in lines:
            assert Inbox("ledger.lines").take(tx, line).result is TakeResult.TAKEN
            rows.write_effect(tx, message)

    message = order()
    assert opened(transactional(book)).deliver(delivery(message)) == ACK
    assert (rows.effects(db, message), rows.parked(db)) == (2, [])


@pytest.mark.parametrize("wrong", [{"backoff": 5}, {"attempts_max": 0}, {"handler_seconds_max": 0}], ids=str)
def test_a_consumers_options_are_refused_where_they_are_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Consumer("payments", **wrong)
