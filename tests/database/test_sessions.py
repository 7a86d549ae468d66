"""A handler may do anything to its session, and to its connection: the next message finds both as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.shop import SHAPES, effectful, transactional
from tests.support.waiting import Background

from onceward import session
from onceward.consumer import Consumer, OpenConsumer
from onceward.database import Database
from onceward.errors import UsageError
from onceward.message import Message
from onceward.perform import Once
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
Work = Callable[[Message, Db], None]
both_shapes = pytest.mark.parametrize("shape", SHAPES)
# What is looked at before and after, in the very session that the handler had.
LOOK = (
    "SELECT current_setting('synchronous_commit'), current_setting('lock_timeout'), current_setting('statement_timeout'),"
    " current_setting('idle_session_timeout'), current_setting('search_path'), current_setting('role'), session_user,"
    " current_setting('default_transaction_read_only'), current_setting('TimeZone'),"
    " nullif(current_setting('app.tenant', true), ''),"
    " (SELECT count(*) FROM pg_cursors WHERE name <> ''), (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),"
    " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
    " to_regclass('pg_temp.scratch')"
)
DOES = {
    "durability": "SET synchronous_commit TO off",
    "lock timeout": "SET lock_timeout TO 0",
    "statement timeout": "SET statement_timeout TO 0",
    "idle session": "SET idle_session_timeout TO '5s'",
    "search_path": "SET search_path TO tenant_7, public",
    "role": "SET ROLE pg_monitor",
    "session authorization": "SET SESSION AUTHORIZATION pg_monitor",
    "read only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "zone": "SET TimeZone TO 'Asia/Tokyo'",
    "own setting": "SELECT set_config('app.tenant', '7', false)",
    "cursor": "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "prepared": "PREPARE again AS SELECT 1",
    "advisory lock": "SELECT pg_advisory_lock(7)",
    "temporary table": "CREATE TEMP TABLE scratch (a integer)",
    "reset all": "RESET ALL",
}


def in_its_transaction(shape: str, work: Work, **options: Any) -> Consumer:
    def finish(message: Message, once: Once) -> None:
        with once.transaction() as tx:
            work(message, tx)

    return transactional(work, **options) if shape == "transactional" else effectful(finish, **options)


def looking(seen: list[Any], and_then: Callable[[Db], object]) -> Work:
    """Notes what the session looks like, does this to it, and writes as always."""

    def work(message: Message, tx: Db) -> None:
        with tx.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
            seen.append(cursor.execute(LOOK).fetchone())
        rows.write_effect(tx, message)
        and_then(tx)

    return work


def deliver_some(consumer: OpenConsumer, count: int = 6) -> list[str]:
    """More than the pool has connections, so that each of them has served a message twice."""
    return [consumer.deliver(delivery(order())).action for _ in range(count)]


@both_shapes
@pytest.mark.parametrize("what", DOES.values(), ids=DOES.keys())
def test_what_a_handler_does_to_its_session_is_gone_for_the_next_message(what: str, shape: str, opened: Opened) -> None:
    seen: list[Any] = []
    consumer = opened(in_its_transaction(shape, looking(seen, lambda tx: tx.execute(what.encode()))), threads=1)
    assert set(deliver_some(consumer, 9)) == {"ack"}
    assert seen == [seen[0]] * 9, "a later message met what an earlier one left"


@both_shapes
def test_what_a_failed_handler_did_to_its_session_is_gone_too(shape: str, opened: Opened, db: Db) -> None:
    """Also what no rollback undoes: prepared statements, locks of the session, what it committed by itself."""

    def fail(tx: Db) -> None:
        for what in ("PREPARE again AS SELECT 1", "SELECT pg_advisory_lock(7)", "COMMIT; SET ROLE pg_monitor; BEGIN"):
            tx.execute(what.encode())
        raise RuntimeError("enough")

    seen: list[Any] = []
    consumer = opened(in_its_transaction(shape, looking(seen, fail)), threads=1)
    deliver_some(consumer, 9)
    assert len(set(seen)) == 1
    assert rows.scalar(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7") == 0


@both_shapes
def test_what_a_handler_does_to_the_connection_object_is_gone_too(shape: str, opened: Opened) -> None:
    factories: list[object] = []

    def work(message: Message, tx: Db) -> None:
        factories.append((tx.row_factory, tx.prepare_threshold))
        rows.write_effect(tx, message)
        tx.row_factory, tx.prepare_threshold = dict_row, None

    assert set(deliver_some(opened(in_its_transaction(shape, work), threads=1))) == {"ack"}
    assert len(set(factories)) == 1


@both_shapes
def test_deferred_triggers_fire_under_the_handlers_own_settings(shape: str, opened: Opened, db: Db) -> None:
    """The session is put back before COMMIT: what is deferred to it must not run as somebody else."""
    db.execute(
        "CREATE TABLE audit (tenant text); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO audit VALUES (current_setting('app.tenant', true)); RETURN NULL; END $$;"
        " CREATE CONSTRAINT TRIGGER noting AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION note()"
    )

    def work(message: Message, tx: Db) -> None:
        tx.execute("SELECT set_config('app.tenant', '7', true)")
        rows.write_effect(tx, message)

    assert deliver_some(opened(in_its_transaction(shape, work)), 1) == ["ack"]
    assert rows.scalar(db, "SELECT tenant FROM audit") == "7"


def test_without_putting_back_the_next_message_meets_what_was_left(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "putting_back", lambda _self, _conn: "")
    seen: list[Any] = []
    work = looking(seen, lambda tx: tx.execute("SET search_path TO tenant_7, public"))
    deliver_some(opened(transactional(work), threads=1), 9)
    assert len(set(seen)) == 2


def test_a_borrowed_connection_goes_back_with_its_owners_settings(dsn: str, opened: Opened) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SET search_path TO app, public; SET lock_timeout TO '7s'")
        conn.commit()

    def leave_a_mess(message: Message, tx: Db) -> None:
        tx.execute("SET search_path TO tenant_7; SET ROLE pg_monitor; SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        tx.execute("RESET ROLE")
        rows.write_effect(tx, message) if message.json() == 1 else tx.execute("SET ROLE pg_monitor")

    with ConnectionPool(dsn, min_size=4, max_size=4, configure=configure) as pool:
        assert opened(transactional(leave_a_mess), database=pool, threads=1).deliver(delivery(order(2))) == ACK
        for _ in range(4):
            with pool.connection() as conn:
                found = conn.execute(
                    "SELECT current_setting('search_path'), current_setting('lock_timeout'), current_setting('role'),"
                    " current_setting('default_transaction_read_only'), current_setting('statement_timeout')"
                ).fetchone()
                assert found == ("app, public", "7s", "none", "off", "0")


# ---- who may use a connection ----------------------------------------------------------------------------------------


@both_shapes
def test_another_thread_cannot_speak_in_the_handlers_transaction(
    shape: str, opened: Opened, db: Db, background: Background
) -> None:
    """Neither during the handler nor, with the connection kept, in the middle of a later message."""
    kept: list[Db] = []
    told: list[BaseException | None] = []

    def intrude(message: Message) -> None:
        told.append(background(rows.write_effect, kept[0], message, "intruder").exception())

    def work(message: Message, tx: Db) -> None:
        kept.append(tx)
        rows.write_effect(tx, message)
        intrude(message)

    message = order()
    consumer = opened(in_its_transaction(shape, work), threads=1)
    assert consumer.deliver(delivery(message)) == ACK
    intrude(message)  # it waits in the pool now
    assert [type(error) for error in told] == [UsageError, UsageError]
    assert rows.effects(db, message) == 1


@both_shapes
@pytest.mark.parametrize("what", ["stream", "copy", "pipeline"])
@pytest.mark.parametrize("then", ["returns", "raises"])
def test_what_a_handler_leaves_half_done_on_its_connection_is_a_failed_attempt(
    what: str, then: str, shape: str, opened: Opened, db: Db
) -> None:
    """Not a worker that waits for ever, and not a commit of half of it."""
    kept: list[object] = []

    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        if message.json() == "well":
            return
        kept.append(left_half_done(tx, what))
        if then == "raises":
            raise RuntimeError("enough")

    consumer = opened(in_its_transaction(shape, work, attempts_max=2), threads=1)
    message = order("badly")
    assert [consumer.deliver(delivery(message)).action for _ in range(2)] == ["release", "ack"]
    assert rows.books(db, message).parked == ["attempts ran out"]
    assert rows.effects(db, message) == 0
    well = order("well")
    assert consumer.deliver(delivery(well)) == ACK
    assert rows.effects(db, well) == 1
    kept.clear()


def left_half_done(tx: Db, what: str) -> object:
    if what == "stream":
        stream = tx.cursor().stream("SELECT generate_series(1, 100000)")
        next(stream)
        return stream
    entered = tx.pipeline() if what == "pipeline" else tx.cursor().copy("COPY effects FROM STDIN")
    return (entered, entered.__enter__())


def test_a_lent_lock_is_its_threads_own() -> None:
    lock, told = session.LentLock(), []

    def use() -> None:
        try:
            with lock:
                told.append("let in")
        except UsageError as error:
            told.append(str(error))

    def elsewhere() -> None:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    use()
    lock.lend()
    use()
    elsewhere()
    lock.take_back()
    with session.our_work():
        use()
    elsewhere()
    assert [text[:6] for text in told] == ["this c", "let in", "this c", "let in", "this c"]
