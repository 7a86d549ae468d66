"""Ids that are not UUIDv7, where a consumer takes them: as safe as any other until they are pruned, which fails open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import psycopg
import pytest
from tests.database import test_crashes
from tests.support import checks, crash, rows
from tests.support.deliveries import Provider, delivery, order, untimed
from tests.support.pages import blocks
from tests.support.points import Gate
from tests.support.queues import ListSink, drain
from tests.support.rows import keys
from tests.support.shop import SHAPES, charging, of_shape
from tests.support.waiting import Background, until
from tests.tidy.sources import ROOT

from onceward.consumer import OpenConsumer
from onceward.decisions import list_decisions, redrive, settle, settle_as_not_happened
from onceward.errors import EffectRefused, Reject, UsageError
from onceward.inbox import Inbox, InboxTable, TakeResult
from onceward.intents import Intents
from onceward.message import Message, row_key, uuid7
from onceward.outbox import publish
from onceward.parked import list_parked, show_parked
from onceward.provider import STRIPE_V1, idempotency_key
from onceward.transport import ACK
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]
Opened = Callable[..., OpenConsumer]
SCHEMA: Final = "onceward"
both_shapes = pytest.mark.parametrize("shape", SHAPES)
IDS: Final = {
    "a letter": "x",
    "1,024 bytes": "x" * 1024,
    "1,024 bytes of another alphabet": "\u2603" * 341 + "x",
    "unicode": "Rechnung \u2116 7 \u00e4\U0001f600",
    "a UUIDv4": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    "a UUID like a key of ours": "ff000000-0000-8000-8000-000000000000",
    "digits": "4711",
    "a quote": "it's; DROP TABLE inbox --",
    "the name of a delivery": "test#d-7",
}
every_id = pytest.mark.parametrize("message_id", IDS.values(), ids=IDS)


# ---- taken, and turned away -----------------------------------------------------------------------------------------


@both_shapes
@every_id
def test_a_duplicate_of_an_untimed_id_is_turned_away(shape: str, message_id: str, opened: Opened, db: Db) -> None:
    check_a_duplicate_is_turned_away(shape, untimed(message_id), opened, db)
    assert rows.scalar(db, "SELECT message_id FROM onceward.inbox_untimed") == row_key(message_id)


def check_a_duplicate_is_turned_away(
    shape: str, message: Message, opened: Opened, db: Db, statements: checks.Statements = checks.NONE
) -> None:
    consumer = checks.weaken(opened(of_shape(shape, untimed_ids=True)), **statements)
    assert [consumer.deliver(delivery(message)) for _ in range(3)] == [ACK] * 3
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


@both_shapes
def test_a_uuid7_in_capitals_is_the_same_timed_id(shape: str, opened: Opened, db: Db) -> None:
    small = str(uuid7())
    consumer = opened(of_shape(shape, untimed_ids=True))
    for spelling in (small.upper(), small, f"{{{small}}}"):
        assert consumer.deliver(delivery(untimed(spelling))) == ACK
    assert rows.scalar(db, "SELECT count(*) FROM effects") == 1
    assert rows.scalar(db, "SELECT count(*) FROM onceward.inbox_untimed") == 0


@both_shapes
def test_a_timed_id_is_as_before_where_untimed_ids_are_taken(shape: str, opened: Opened, db: Db) -> None:
    message = order()
    consumer = opened(of_shape(shape, untimed_ids=True))
    assert [consumer.deliver(delivery(message)) for _ in range(2)] == [ACK] * 2
    assert (rows.effects(db, message), rows.scalar(db, "SELECT count(*) FROM onceward.inbox_untimed")) == (1, 0)


@both_shapes
@every_id
def test_a_consumer_that_did_not_ask_for_untimed_ids_parks_them(
    shape: str, message_id: str, opened: Opened, db: Db
) -> None:
    message = untimed(message_id)
    check_parked_without_a_row(shape, message, opened, db)


def check_parked_without_a_row(
    shape: str, message: Message, opened: Opened, db: Db, statements: checks.Statements = checks.NONE
) -> None:
    consumer = checks.weaken(opened(of_shape(shape)), **statements)
    assert [consumer.deliver(delivery(message)) for _ in range(2)] == [ACK] * 2
    assert (rows.state(db, message), rows.effects(db, message)) == (None, 0)
    [entry] = list_parked(db)
    assert (entry.message_id, entry.reason.value) == (message.id, "outside window")
    assert "untimed_ids=True" in entry.detail
    refused = redrive(db, message.id, consumer=rows.CONSUMER)
    assert "without an inbox row" in refused.why_not


@both_shapes
def test_a_process_that_does_not_take_untimed_ids_turns_away_what_another_has_done(
    shape: str, opened: Opened, db: Db
) -> None:
    """A deploy changes one process at a time, in either direction."""
    message = untimed()
    assert opened(of_shape(shape, untimed_ids=True)).deliver(delivery(message)) == ACK
    assert opened(of_shape(shape)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


@both_shapes
def test_two_consumers_each_handle_an_untimed_message_once(shape: str, opened: Opened, db: Db) -> None:
    message = untimed()
    first, second = of_shape(shape, untimed_ids=True), of_shape(shape, untimed_ids=True)
    second.name = "ledger"
    for _ in range(2):
        assert [opened(consumer).deliver(delivery(message)) for consumer in (first, second)] == [ACK] * 2
    assert (rows.state(db, message), rows.state(db, message, "ledger"), rows.effects(db, message)) == ("done", "done", 2)


@both_shapes
def test_another_payload_under_an_untimed_id_is_a_conflict(shape: str, opened: Opened, db: Db) -> None:
    message, other = untimed(), untimed(data={"amount": 200})
    consumer = opened(of_shape(shape, untimed_ids=True))
    assert [consumer.deliver(delivery(each)) for each in (message, other, other)] == [ACK] * 3
    [entry] = show_parked(db, message.id)
    assert (entry.reason.value, entry.body) == ("conflict", other.body)
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)


def test_two_ids_that_shared_a_key_would_be_a_conflict_and_lose_nothing(opened: Opened, db: Db) -> None:
    """As if their hashes met: the row of the one is moved to the key of the other."""
    first, second = untimed("evt_1"), untimed("evt_2", data={"amount": 200})
    consumer = opened(of_shape("transactional", untimed_ids=True))
    consumer.deliver(delivery(first))
    db.execute("UPDATE onceward.inbox SET message_id = %s", (row_key(second.id),))
    assert consumer.deliver(delivery(second)) == ACK
    [entry] = list_parked(db)
    assert (entry.message_id, entry.reason.value) == ("evt_2", "conflict")


def test_two_workers_that_take_one_untimed_message_at_once_run_it_once(
    opened: Opened, db: Db, background: Background
) -> None:
    message = untimed()
    with Gate("consumer.claimed") as gate:
        first = background(opened(of_shape("effectful", untimed_ids=True), gate).deliver, delivery(message))
        gate.wait()
        assert opened(of_shape("effectful", untimed_ids=True)).deliver(delivery(message)).action == "release"
    assert first.result() == ACK
    assert rows.effects(db, message) == 1


def test_the_heartbeat_extends_the_claim_of_an_untimed_message(opened: Opened, db: Db, background: Background) -> None:
    message = untimed()
    with Gate("consumer.claimed") as gate:
        consumer = opened(of_shape("effectful", untimed_ids=True, lease_seconds=1.0), gate)
        delivering = background(consumer.deliver, delivery(message))
        gate.wait()
        until_at = rows.inbox_row(db, message).lease_until
        until(lambda: rows.inbox_row(db, message).lease_until > until_at, "the lease being extended")
    assert delivering.result() == ACK


@both_shapes
def test_a_crashed_claim_of_an_untimed_message_is_taken_over(shape: str, opened: Opened, db: Db) -> None:
    message = untimed()
    Inbox(rows.CONSUMER, worker="dead", untimed_ids=True).claim(db, message)
    rows.lapse(db, message)
    assert opened(of_shape(shape, untimed_ids=True)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books("done", 2, 0, [], 1)


@pytest.mark.parametrize(("shape", "point"), test_crashes.CASES)
def test_a_kill_at_every_point_leaves_one_effect_of_an_untimed_message(shape: str, point: str, db: Db, dsn: str) -> None:
    message = untimed(subject="order-1")
    test_crashes.put_into_queue(db, dsn, message)
    assert crash.died_by_sigkill(crash.start(crash.consume_until_killed, dsn, shape, point))
    crash.recover(dsn, shape, test_crashes.deliver_again(db, message))
    test_crashes.check_one_effect_and_nothing_lost(db, message, shape)


# ---- effects, and what people decide --------------------------------------------------------------------------------


def test_the_idempotency_key_is_of_the_id_as_it_is_written(opened: Opened, db: Db) -> None:
    message, provider = untimed("Evt-\u00c4"), Provider()
    provider.after.append(RuntimeError("the answer is lost"))
    consumer = opened(charging(provider, untimed_ids=True))
    assert [consumer.deliver(delivery(message)).action for _ in range(3)] == ["release", "ack", "ack"]
    key = idempotency_key(rows.CONSUMER, "Evt-\u00c4", "charge")
    assert (provider.requests, list(provider.charges), rows.effects(db, message)) == ([key] * 2, [key], 1)


@both_shapes
@every_id
def test_a_redriven_untimed_message_goes_on_under_its_own_id(
    shape: str, message_id: str, opened: Opened, db: Db, dsn: str
) -> None:
    refuse = [Reject("not yet")]

    def handle(_: Message) -> None:
        if refuse:
            raise refuse.pop()

    message = untimed(message_id)
    consumer = opened(of_shape(shape, handle, untimed_ids=True))
    assert consumer.deliver(delivery(message)) == ACK
    [entry] = show_parked(db, message_id)
    assert (entry.message_id, entry.reason.value) == (message_id, "rejected")
    assert redrive(db, message_id, consumer=rows.CONSUMER).why_not == ""
    assert [row.id for row in rows.outbox(db)] == [message_id]
    drain(dsn, sink := ListSink())
    assert sink.messages == [message]
    assert [consumer.deliver(delivery(each)) for each in (*sink.messages, message)] == [ACK] * 2
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)
    assert [decision.message_id for decision in list_decisions(db, message_id=message_id)] == [message_id]


def test_a_redriven_message_passes_a_consumer_that_takes_no_untimed_ids_any_more(opened: Opened, db: Db) -> None:
    def handle(_: Message) -> None:
        raise Reject("not here")

    message = untimed()
    opened(of_shape("transactional", handle, untimed_ids=True)).deliver(delivery(message))
    assert redrive(db, message.id, consumer=rows.CONSUMER).stands
    assert opened(of_shape("transactional")).deliver(delivery(message)) == ACK
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)


def test_effects_of_an_untimed_message_are_shown_settled_and_begun_again(opened: Opened, db: Db) -> None:
    happened, refused = untimed("evt_1"), untimed("evt_2")
    provider = Provider()
    consumer = opened(charging(provider, untimed_ids=True, attempts_max=1))
    provider.after.append(RuntimeError("the answer is lost"))
    provider.before.append(EffectRefused("declined"))
    assert [consumer.deliver(delivery(message)) for message in (refused, happened)] == [ACK] * 2
    [entry] = show_parked(db, happened.id)
    assert [(intent.name, intent.state) for intent in entry.intents] == [("charge", "pending")]
    assert settle(db, happened.id, consumer=rows.CONSUMER, effect="charge", answer={"id": "ch_1"}).stands
    assert settle_as_not_happened(db, refused.id, consumer=rows.CONSUMER, effect="charge", force=True).stands
    assert [consumer.deliver(delivery(message)) for message in (happened, refused)] == [ACK] * 2
    assert [rows.effects(db, message) for message in (happened, refused)] == [1, 1]
    assert provider.requests[-1] == idempotency_key(rows.CONSUMER, "evt_2", "charge", generation=2)


def test_publish_sends_an_untimed_id_only_where_it_is_asked_to(db: Db) -> None:
    with db.transaction(), pytest.raises(UsageError, match="untimed_ids"):
        publish(db, untimed())


# ---- the second door ------------------------------------------------------------------------------------------------


def test_the_second_door_takes_claims_intends_and_finishes_under_an_untimed_id(db: Db) -> None:
    inbox, intents, message = Inbox("c", untimed_ids=True), Intents("c"), untimed()
    inbox.register(db)
    inbox.make_partition(db, message)
    claim = inbox.claim(db, message)
    assert claim.result is TakeResult.TAKEN
    intent = intents.intend(db, message, take=claim, n=1, name="charge", request={}, provider=STRIPE_V1)
    assert intent.key == idempotency_key("c", "evt_1", "charge")
    intents.record(db, message, n=1, answer={"id": "ch_1"})
    with db.transaction():
        assert inbox.finish(db, message, take=claim)
    with db.transaction():
        assert inbox.take(db, message).result is TakeResult.DUPLICATE


def test_the_second_door_refuses_an_untimed_id_unless_it_is_asked_to(db: Db) -> None:
    with db.transaction():
        take = Inbox("c").take(db, untimed())
    assert (take.result, "untimed_ids=True" in take.detail) == (TakeResult.OUTSIDE_WINDOW, True)
    assert rows.scalar(db, "SELECT count(*) FROM onceward.inbox") == 0


@pytest.mark.parametrize(("untimed_ids", "age"), [(True, "current"), (False, "untimed")])
def test_an_untimed_id_is_current_only_where_it_is_taken(untimed_ids: bool, age: str, db: Db) -> None:
    """What a take asks when its row vanished between two statements: whether to take it again."""
    table = InboxTable("c", untimed_ids=untimed_ids)
    assert table.read(db, table.take_params(untimed(), "done", lock_timeout="0")).age == age


@every_id
def test_the_key_that_the_page_tells_people_to_look_for_is_the_rows(message_id: str, opened: Opened, db: Db) -> None:
    [block] = blocks(ROOT / "docs" / "database.md", "Ids that carry no time")
    opened(of_shape("transactional", untimed_ids=True)).deliver(delivery(untimed(message_id)))
    found = block.text.replace("'evt_123'", "%s")
    assert keys(db, "inbox") == {row[0] for row in db.execute(found.encode(), (message_id,))}


@both_shapes
def test_where_somebody_took_the_partition_away_nothing_is_lost_and_the_consumer_stays_up(
    shape: str, opened: Opened, db: Db
) -> None:
    db.execute("ALTER TABLE onceward.inbox DETACH PARTITION onceward.inbox_untimed")
    message, timed = untimed(), order()
    consumer = opened(of_shape(shape, untimed_ids=True))
    assert [consumer.deliver(delivery(each)).action for each in (message, timed)] == ["leave", "ack"]
    assert (rows.effects(db, message), rows.effects(db, timed), rows.parked(db)) == (0, 1, [])


def test_an_untimed_message_goes_through_a_queue_and_back(opened: Opened, db: Db, dsn: str) -> None:
    pgmq.create_queue(db, "orders")
    message = untimed(str(uuid4()))
    with db.transaction():
        publish(db, message, untimed_ids=True)
    sink, source = pgmq.Sink("orders", dsn), pgmq.Source("orders", dsn)
    drain(dsn, sink)
    consumer = opened(of_shape("transactional", untimed_ids=True))
    [arrived] = source.receive(10, 1.0).deliveries
    assert consumer.deliver(arrived) == ACK
    source.close()
    sink.close()
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)
