"""Ids that are not UUIDv7, where a consumer takes them: as safe as any other until they are pruned, which fails open."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

import psycopg
import pytest
from tests.database import test_crashes
from tests.support import checks, crash, rows
from tests.support.decisions import ANN
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import Gate
from tests.support.queues import ListSink, drain
from tests.support.shop import SHAPES, charging, of_shape
from tests.support.waiting import Background, until, until_blocked

from onceward.consumer import OpenConsumer
from onceward.day_partitions import upkeep
from onceward.decisions import discard_parked, list_decisions, redrive, settle, settle_as_not_happened
from onceward.errors import EffectRefused, Reject, UsageError
from onceward.inbox import Inbox, TakeResult
from onceward.intents import Intents
from onceward.message import Message, row_key, uuid7
from onceward.outbox import publish
from onceward.parked import list_parked, show_parked
from onceward.provider import STRIPE_V1, idempotency_key
from onceward.transport import ACK
from onceward.transports import pgmq
from onceward.untimed_rows import prune_untimed

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


def untimed(message_id: str = "evt_1", **attributes: Any) -> Message:
    return order(id=message_id, **attributes)


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


# ---- pruning fails open, and says so --------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_the_consumer_says_at_its_start_that_pruning_fails_open(
    opened: Opened, caplog: pytest.LogCaptureFixture, db: Db
) -> None:
    opened(of_shape("transactional"))
    Inbox("c").register(db)
    assert warnings(caplog) == []
    opened(of_shape("transactional", untimed_ids=True))
    Inbox("c", untimed_ids=True).register(db)
    assert ["taken as new" in line for line in warnings(caplog)] == [True, True]


def age(db: Db, message: Message, days: float = 31) -> None:
    """As if it had been taken so long ago."""
    statement = "UPDATE onceward.inbox SET taken_at = clock_timestamp() - %s WHERE message_id = %s"
    assert db.execute(statement, (timedelta(days=days), row_key(message.id))).rowcount == 1


@both_shapes
def test_a_duplicate_that_comes_after_its_row_was_pruned_is_taken_as_new(shape: str, opened: Opened, db: Db) -> None:
    message = untimed()
    consumer = opened(of_shape(shape, untimed_ids=True))
    consumer.deliver(delivery(message))
    age(db, message, 29)
    assert upkeep(db, schema=SCHEMA).pruned == 0
    consumer.deliver(delivery(message))
    assert rows.effects(db, message) == 1
    age(db, message)
    assert upkeep(db, schema=SCHEMA).pruned == 1
    consumer.deliver(delivery(message))
    assert rows.effects(db, message) == 2


def check_only_what_is_over_is_pruned(opened: Opened, db: Db) -> None:
    """One message in each state, all taken before the window; and one that is done, and young."""
    opened(of_shape("transactional", untimed_ids=True))
    unfinished = {state: untimed(state) for state in ("pending", "parked")}
    unresolved = {state: untimed(f"effect {state}") for state in ("pending", "unknown")}
    over = {state: untimed(f"over {state}") for state in ("done", "discarded")}
    young = untimed("young")
    for state, message in [*unfinished.items(), *over.items(), *(("done", each) for each in (*unresolved.values(), young))]:
        insert(db, message, state)
        if message is not young:
            age(db, message)
    for state, message in [*unresolved.items(), *over.items()]:
        intend(db, message, state)
        db.execute("INSERT INTO onceward.attempts VALUES (%s, %s, 1, 'x')", (rows.CONSUMER, row_key(message.id)))
    assert upkeep(db, schema=SCHEMA).pruned == len(over)
    kept = {row_key(message.id) for message in (*unfinished.values(), *unresolved.values(), young)}
    assert keys(db, "inbox") == kept
    resolved_later = {row_key(message.id) for message in unresolved.values()}
    assert keys(db, "intents") == keys(db, "attempts") == resolved_later
    db.execute("UPDATE onceward.intents SET state = 'done'")
    assert upkeep(db, schema=SCHEMA).pruned == len(unresolved)
    assert keys(db, "intents") == keys(db, "attempts") == set()


def test_upkeep_prunes_only_what_is_over_and_past_the_window(opened: Opened, db: Db) -> None:
    check_only_what_is_over_is_pruned(opened, db)


def insert(db: Db, message: Message, state: str = "done", consumer: str = rows.CONSUMER) -> Message:
    db.execute(
        "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) VALUES (%s, %s, '', %s)",
        (consumer, row_key(message.id), state),
    )
    return message


def intend(db: Db, message: Message, state: str) -> None:
    db.execute(
        "INSERT INTO onceward.intents (consumer, message_id, n, name, request_fingerprint, key, state)"
        " VALUES (%s, %s, 1, 'charge', '', 'k', %s)",
        (rows.CONSUMER, row_key(message.id), state),
    )


def keys(db: Db, table: str) -> set[Any]:
    return {row[0] for row in db.execute(f"SELECT message_id FROM onceward.{table}".encode())}


def test_each_consumers_own_longest_window_decides_and_without_one_nothing_is_pruned(opened: Opened, db: Db) -> None:
    opened(of_shape("transactional", window=timedelta(days=90), untimed_ids=True))
    opened(of_shape("transactional", window=timedelta(days=7), untimed_ids=True))
    short = of_shape("transactional", window=timedelta(days=7), untimed_ids=True)
    short.name = "short"
    opened(short)
    message = untimed()
    for consumer in (rows.CONSUMER, "short", "never registered"):
        insert(db, message, consumer=consumer)
    age_all = "UPDATE onceward.inbox SET taken_at = clock_timestamp() - interval '31 days'"
    db.execute(age_all)
    assert upkeep(db, schema=SCHEMA).pruned == 1
    assert {row[0] for row in db.execute("SELECT consumer FROM onceward.inbox")} == {rows.CONSUMER, "never registered"}


def test_a_discarded_message_is_turned_away_for_another_window(opened: Opened, db: Db) -> None:
    """It was parked for longer than the window before somebody decided."""

    def handle(_: Message) -> None:
        raise Reject("never")

    message = untimed()
    consumer = opened(of_shape("transactional", handle, untimed_ids=True))
    consumer.deliver(delivery(message))
    age(db, message)
    assert discard_parked(db, message.id, consumer=rows.CONSUMER, decider=ANN).stands
    assert upkeep(db, schema=SCHEMA).pruned == 0
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.parked(db) == []


def test_attempts_of_a_message_that_fails_no_more_go_too(opened: Opened, db: Db) -> None:
    opened(of_shape("transactional", untimed_ids=True))
    for message_id, days in (("old", 31), ("young", 1)):
        params = (rows.CONSUMER, row_key(message_id), days)
        db.execute(
            "INSERT INTO onceward.attempts (consumer, message_id, n, error, failed_at)"
            " VALUES (%s, %s, 1, 'x', clock_timestamp() - make_interval(days => %s))", params,
        )  # fmt: skip
    upkeep(db, schema=SCHEMA)
    assert keys(db, "attempts") == {row_key("young")}


def test_an_upkeep_that_dies_between_two_batches_leaves_every_message_whole(
    opened: Opened, db: Db, connect: Connect, background: Background
) -> None:
    opened(of_shape("transactional", untimed_ids=True))
    first, second = insert(db, untimed("first")), insert(db, untimed("second"))
    for message, days in ((first, 40), (second, 35)):
        intend(db, message, "done")
        age(db, message, days)
    holder, dying = connect(autocommit=False), connect()
    holder.execute("SELECT 1 FROM onceward.intents WHERE message_id = %s FOR UPDATE", (row_key(second.id),))
    pruning = background(prune_untimed, dying, schema=SCHEMA, batch_rows=1)
    until_blocked(db, dying)
    db.execute("SELECT pg_terminate_backend(%s)", (dying.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        pruning.result()
    assert keys(db, "inbox") == keys(db, "intents") == {row_key(second.id)}
    holder.rollback()
    assert prune_untimed(db, schema=SCHEMA, batch_rows=1) == 1
    assert keys(db, "inbox") == keys(db, "intents") == set()


def test_a_row_that_somebody_works_on_is_left_for_the_next_upkeep(opened: Opened, db: Db, connect: Connect) -> None:
    opened(of_shape("transactional", untimed_ids=True))
    held, free = insert(db, untimed("held")), insert(db, untimed("free"))
    for message in (held, free):
        age(db, message)
    holder = connect(autocommit=False)
    holder.execute("SELECT 1 FROM onceward.inbox WHERE message_id = %s FOR UPDATE", (row_key(held.id),))
    assert upkeep(db, schema=SCHEMA).pruned == 1
    assert keys(db, "inbox") == {row_key(held.id)}
    holder.rollback()
    assert upkeep(db, schema=SCHEMA).pruned == 1


def test_upkeep_never_touches_the_partition_of_untimed_ids(opened: Opened, db: Db) -> None:
    opened(of_shape("transactional", untimed_ids=True))
    insert(db, untimed(), "parked")
    for _ in range(2):
        done = upkeep(db, schema=SCHEMA)
        assert (done.dropped, done.unfinished) == ([], {})
    statement = "SELECT count(*) FROM pg_inherits WHERE inhrelid = ANY (%s::regclass[])"
    assert rows.scalar(db, statement, (["onceward.inbox_untimed", "onceward.intents_untimed"],)) == 2


def test_an_owner_prunes_what_another_role_made_the_partition_for(db: Db, dsn: str) -> None:
    """A superuser migrated; upkeep runs as the owner of the tables."""
    owner = f"owner_{db.info.dbname}"
    insert(db, untimed())
    age(db, untimed())
    db.execute("INSERT INTO onceward.consumers (name, window_seconds) VALUES (%s, 86400)", (rows.CONSUMER,))
    db.execute(f"CREATE ROLE {owner}".encode())
    db.execute(f"GRANT USAGE ON SCHEMA onceward TO {owner}".encode())
    tables = "onceward.inbox, onceward.intents, onceward.attempts, onceward.consumers"
    db.execute(f"GRANT SELECT, UPDATE, DELETE ON {tables} TO {owner}".encode())
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"SET ROLE {owner}".encode())
        assert prune_untimed(conn, schema=SCHEMA) == 1
    db.execute(f"DROP OWNED BY {owner}; DROP ROLE {owner}".encode())


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
