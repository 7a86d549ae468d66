"""The rows of untimed ids are pruned when they are over and past their consumer's window; that fails open, and says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import psycopg
import pytest
from tests.support import rows
from tests.support.decisions import ANN
from tests.support.deliveries import delivery, untimed
from tests.support.rows import keys
from tests.support.shop import SHAPES, of_shape
from tests.support.waiting import Background, until_blocked

from onceward.consumer import OpenConsumer
from onceward.day_partitions import WINDOW_MAX, RetireSkipped, upkeep
from onceward.decisions import discard_parked
from onceward.errors import Reject
from onceward.inbox import Inbox
from onceward.message import Message, row_key
from onceward.transport import ACK
from onceward.untimed_rows import prune_untimed

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]
Opened = Callable[..., OpenConsumer]
SCHEMA: Final = "onceward"
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_the_consumer_says_at_its_start_that_pruning_fails_open(
    opened: Opened, caplog: pytest.LogCaptureFixture, db: Db
) -> None:
    opened(of_shape("transactional"))
    Inbox("c").register(db)
    assert warnings(caplog) == []
    opened(of_shape("transactional", untimed_ids=True))
    inbox = Inbox("c", untimed_ids=True)
    for _ in range(2):
        inbox.register(db)
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
    pruning = background(prune_untimed, dying, schema=SCHEMA, window_max=WINDOW_MAX, batch_rows=1)
    until_blocked(db, dying)
    db.execute("SELECT pg_terminate_backend(%s)", (dying.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        pruning.result()
    assert keys(db, "inbox") == keys(db, "intents") == {row_key(second.id)}
    holder.rollback()
    assert prune_untimed(db, schema=SCHEMA, window_max=WINDOW_MAX, batch_rows=1) == 1
    assert keys(db, "inbox") == keys(db, "intents") == set()


def test_a_database_clock_that_is_a_month_ahead_prunes_nothing(opened: Opened, db: Db, connect: Connect) -> None:
    """Here an untimed message is what looks older than the window: in truth its clock is wrong."""
    opened(of_shape("transactional", untimed_ids=True))
    age(db, insert(db, untimed()))
    conn = connect()
    conn.execute(
        "CREATE SCHEMA clock; CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        " $$ SELECT pg_catalog.clock_timestamp() + interval '40 days' $$; SET search_path TO clock, pg_catalog"
    )
    done = upkeep(conn, schema=SCHEMA)
    assert (done.retire_skipped, done.pruned, len(keys(db, "inbox"))) == (RetireSkipped.CLOCK, 0, 1)
    assert upkeep(db, schema=SCHEMA).pruned == 1


def test_a_row_that_somebody_works_on_is_left_for_the_next_upkeep(opened: Opened, db: Db, connect: Connect) -> None:
    opened(of_shape("transactional", untimed_ids=True))
    held, free = insert(db, untimed("held")), insert(db, untimed("free"))
    for message in (held, free):
        age(db, message)
    db.execute("SET lock_timeout TO '2s'")
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
        assert prune_untimed(conn, schema=SCHEMA, window_max=WINDOW_MAX) == 1
    db.execute(f"DROP OWNED BY {owner}; DROP ROLE {owner}".encode())
