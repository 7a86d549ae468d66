"""`migrate` and the check of the schema: safe twice, safe by two at once; anything but this code's version is said."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Json
from psycopg_pool import ConnectionPool
from tests.support import rows
from tests.support.deliveries import delivery, order, order_aged
from tests.support.queues import ListSink, ListSource, drain
from tests.support.shop import effectful, transactional
from tests.support.waiting import Background, until_any_blocked

from onceward.consumer import Consumer, OpenConsumer
from onceward.database import Database
from onceward.day_partitions import attach, attached, database_now, make_partition_for, make_partitions, partition_name
from onceward.decisions import redrive
from onceward.errors import SchemaMismatch, UsageError
from onceward.outbox import publish
from onceward.schema import check_schema, migrate, migrations
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]


def test_migrate_makes_the_schema_and_the_second_time_nothing(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        assert migrate(conn) == migrations()
        assert migrate(conn) == []
        check_schema(conn)


def test_two_that_migrate_at_once_apply_it_once(empty_dsn: str, background: Background) -> None:
    def migrated() -> int:
        with psycopg.connect(empty_dsn, autocommit=True) as conn:
            return len(migrate(conn))

    with psycopg.connect(empty_dsn, autocommit=True) as first, psycopg.connect(empty_dsn, autocommit=True) as looking:
        first.execute("BEGIN; SELECT pg_advisory_xact_lock(1869505381, 1)")
        both = [background(migrated) for _ in range(3)]
        until_any_blocked(looking, many=3)
        first.execute("COMMIT")
        assert sorted(future.result() for future in both) == [0, 0, len(migrations())]


def test_two_schemas_in_one_database_do_not_meet(empty_dsn: str) -> None:
    message = order()
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        for schema in ("one", "two"):
            migrate(conn, schema=schema)
        for schema in ("one", "two"):
            consumer = Consumer("c", schema=schema)
            consumer.transactional("order.placed")(lambda _message, _tx: None)
            with consumer.open(empty_dsn) as opened:
                assert opened.deliver(delivery(message)) == ACK
        assert (
            rows.scalar(conn, "SELECT count(*) FROM one.inbox") == rows.scalar(conn, "SELECT count(*) FROM two.inbox") == 1
        )


@pytest.mark.parametrize("name", ["", "Up", "1st", "a-b", 'x"; DROP SCHEMA public', "x" * 49])
def test_a_schema_name_that_would_need_quoting_is_refused(name: str, db: Db) -> None:
    with pytest.raises(UsageError, match="schema name"):
        migrate(db, schema=name)


def test_migrate_inside_a_transaction_is_refused(db: Db) -> None:
    with db.transaction(), pytest.raises(UsageError):
        migrate(db)


def test_a_failed_migration_leaves_nothing(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA onceward; CREATE TABLE onceward.outbox (x int)")
        with pytest.raises(psycopg.errors.DuplicateTable):
            migrate(conn)
        assert rows.scalar(
            conn, "SELECT to_regclass('onceward.inbox') IS NULL AND to_regclass('onceward.migrations') IS NULL"
        )


def test_what_was_retired_before_it_was_remembered_stays_retired(empty_dsn: str) -> None:
    """A database of the first version: a day that is missing there may have been retired, so it is not made anew."""
    first = migrations()[0]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE SCHEMA onceward; CREATE TABLE onceward.migrations"
            " (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        conn.execute(first.text.replace("{schema}", "onceward").encode())
        conn.execute("INSERT INTO onceward.migrations (version, name) VALUES (%s, %s)", (first.version, first.name))
        today = database_now(conn).date()
        served = [today - timedelta(days=days) for days in (0, 1, 2, 4, 5, 30)]
        for table, day in ((table, day) for table in ("inbox", "intents") for day in served):
            name = partition_name(table, day)
            conn.execute(f"CREATE TABLE onceward.{name} (LIKE onceward.{table} INCLUDING ALL)".encode())
            conn.execute(attach("onceward", table, day))
        migrate(conn)
        missing = [today - timedelta(days=days) for days in (3, 6, 29, 31)]
        assert make_partitions(conn, days=missing) == []
        assert {partition_name("inbox", day) for day in served} <= {name for name, _ in attached(conn, schema="onceward")}


def test_untimed_ids_come_to_a_database_in_use_without_waiting_for_its_handlers(empty_dsn: str) -> None:
    """From version 4: what is there stays, a handler is at work meanwhile, and a parked untimed id stays parked."""
    done, working, stranger, new = order(), order(), order(id="evt_1"), order(id="evt_2")
    with psycopg.connect(empty_dsn, autocommit=True) as conn, psycopg.connect(empty_dsn) as handler:
        conn.execute(
            "CREATE SCHEMA onceward; CREATE TABLE onceward.migrations"
            " (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());"
            "CREATE TABLE effects (message_id text NOT NULL, note text NOT NULL DEFAULT '')"
        )
        for migration in migrations()[:4]:
            conn.execute(migration.text.replace("{schema}", "onceward").encode())
            conn.execute("INSERT INTO onceward.migrations (version, name) VALUES (%s, %s)", migration[:2])
        make_partitions(conn)
        insert = "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) VALUES (%s, %s, %s, 'done')"
        for session, message in ((conn, done), (handler, working)):
            session.execute(insert, (rows.CONSUMER, message.id, message.fingerprint()))
        headers, body = stranger.to_wire()
        conn.execute(
            "INSERT INTO onceward.parked"
            " (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)"
            " VALUES (%s, %s, %s, 'outside window', '', 0, 'test', %s, %s)",
            (rows.CONSUMER, stranger.id, stranger.fingerprint(), Json(headers), body),
        )
        assert 5 in [migration.version for migration in migrate(conn)]
        handler.commit()
        assert "without an inbox row" in redrive(conn, stranger.id, consumer=rows.CONSUMER).why_not
        with transactional(untimed_ids=True).open(empty_dsn) as opened:
            assert [opened.deliver(delivery(message)) for message in (done, working, new, new)] == [ACK] * 4
        assert [rows.effects(conn, message) for message in (done, working, new)] == [0, 0, 1]
        assert [entry.message_id for entry in rows.parked(conn)] == [stranger.id]


def test_in_a_new_database_nothing_was_retired(db: Db) -> None:
    """What waited in a queue before the schema was made is served like anything else."""
    assert len(make_partition_for(db, order_aged(db, 20 * 86_400).id)) == 2


def _missing(db: Db) -> str:
    db.execute("DROP SCHEMA onceward CASCADE")
    return "onceward migrate"


def _older(db: Db) -> str:
    db.execute("DELETE FROM onceward.migrations")
    return "onceward migrate"


def _newer(db: Db) -> str:
    db.execute("INSERT INTO onceward.migrations (version, name) VALUES (9999, 'of the future')")
    return "newer"


@pytest.mark.parametrize("change", [_missing, _older, _newer])
def test_consumer_and_relay_refuse_a_schema_that_is_not_theirs(
    change: Callable[[Db], str], db: Db, dsn: str, opened: Opened
) -> None:
    text = change(db)
    with pytest.raises(SchemaMismatch, match=text):
        opened(transactional())
    with pytest.raises(SchemaMismatch, match=text):
        drain(dsn, ListSink())


def test_migrate_refuses_a_database_that_is_newer(db: Db) -> None:
    _newer(db)
    with pytest.raises(SchemaMismatch, match="newer"):
        migrate(db)


def test_a_window_shorter_than_the_queues_retention_is_refused(opened: Opened) -> None:
    with pytest.raises(UsageError, match="window"):
        opened(transactional(), source=ListSource(retention_seconds=31 * 86_400))
    opened(transactional(), source=ListSource(retention_seconds=29 * 86_400))


def test_an_outbox_row_older_than_the_window_is_said_and_stops_nobody(
    opened: Opened, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    """One message that no queue takes must not keep every consumer from starting: it is parked if it ever arrives."""
    late, current = order_aged(db, 31 * 86_400), order()
    with db.transaction():
        publish(db, late)
    db.execute("UPDATE onceward.outbox SET created_at = created_at - interval '31 days'")
    consumer = opened(transactional())
    assert [record.levelname for record in caplog.records if "the outbox holds a message" in record.message] == ["ERROR"]
    assert [consumer.deliver(delivery(message)) for message in (late, current)] == [ACK, ACK]
    assert (rows.effects(db, late), rows.effects(db, current)) == (0, 1)
    assert [entry.reason for entry in rows.parked(db)] == ["outside window"]


def test_a_pool_that_is_too_small_is_refused(opened: Opened, dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, max_size=6, open=True) as pool, pytest.raises(UsageError, match="max_size=7"):
        opened(effectful(), database=pool, threads=4)


def test_a_consumer_without_handlers_is_refused(opened: Opened) -> None:
    with pytest.raises(UsageError, match="no handler"):
        opened(Consumer("c"))


def test_a_callable_may_give_the_connections(opened: Opened, dsn: str, db: Db) -> None:
    message = order()
    assert opened(effectful(), database=lambda: psycopg.connect(dsn)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


def test_a_callable_that_gives_something_else_is_refused(opened: Opened) -> None:
    with pytest.raises(UsageError, match="not a psycopg 3 Connection"):
        opened(effectful(), database=lambda: "a string")


def test_a_borrowed_connection_is_its_owners_again_afterwards(opened: Opened, dsn: str, db: Db) -> None:
    """What the owner had set is set again: also what it changed after connecting."""

    def configure(conn: Db) -> None:
        conn.execute("SET lock_timeout TO '7s'")
        conn.execute("SET search_path TO public, onceward")
        conn.commit()

    with ConnectionPool(dsn, min_size=1, max_size=7, configure=configure, open=True) as pool:
        opened(effectful(), database=pool).deliver(delivery(order()))
        with pool.connection() as conn:
            assert not conn.autocommit
            assert rows.scalar(conn, "SHOW lock_timeout") == "7s"
            assert rows.scalar(conn, "SHOW search_path") == "public, onceward"
            assert rows.scalar(conn, "SHOW synchronous_commit") == "on"


@pytest.mark.parametrize("kind", ["dsn", "pool", "callable"])
def test_what_is_left_open_on_a_connection_is_rolled_back(kind: str, dsn: str, db: Db) -> None:
    with ConnectionPool(dsn, min_size=1, max_size=2, open=True) as pool:
        source: Any = {"dsn": dsn, "pool": pool, "callable": lambda: psycopg.connect(dsn)}[kind]
        database = Database(source, size=2)
        with database.connection() as conn:
            conn.execute("BEGIN")
            conn.execute("INSERT INTO effects VALUES ('left open')")
        database.close()
    assert rows.scalar(db, "SELECT count(*) FROM effects") == 0
