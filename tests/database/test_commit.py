"""Before every COMMIT of ours: is this still our transaction, and is the reply COMMIT? If nobody can tell: leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import psycopg
import pytest
from tests.conftest import EFFECTS
from tests.support import rows
from tests.support.checks import check_a_foreign_commit_is_parked, check_a_swallowed_error_is_a_failed_attempt
from tests.support.deliveries import delivery, order
from tests.support.points import At, Recorder
from tests.support.shop import SHAPES, effectful, of_shape, transactional
from tests.support.waiting import until

from onceward.consumer import Consumer, OpenConsumer
from onceward.decisions import redrive
from onceward.errors import LeaseLost
from onceward.message import Message
from onceward.perform import Once
from onceward.protocol import words as p
from onceward.schema import migrate
from onceward.session import commit_guarded, lent
from onceward.testing.postgres import Cluster
from onceward.testing.proxy import Proxy
from onceward.transport import ACK, LEAVE

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
Work = Callable[[Message, Db], None]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def doing(shape: str, work: Work, **options: Any) -> Consumer:
    """A consumer of this shape that does `work` in its transaction."""

    def finish(message: Message, once: Once) -> None:
        with once.transaction() as tx:
            work(message, tx)

    return transactional(work, **options) if shape == "transactional" else effectful(finish, **options)


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with Proxy(dsn) as running:
        yield running


# ---- a transaction that failed inside ----------------------------------------------------------------------------------


def _swallow(message: Message, tx: Db) -> None:
    rows.write_effect(tx, message)
    with pytest.raises(psycopg.errors.UndefinedTable):
        tx.execute("SELECT * FROM not_there")


@both_shapes
def test_a_handler_that_swallowed_a_database_error_has_failed(shape: str, opened: Opened, db: Db) -> None:
    check_a_swallowed_error_is_a_failed_attempt(opened, db, doing(shape, _swallow), order())


@both_shapes
def test_an_error_that_was_caught_in_a_savepoint_is_not_a_failure(shape: str, opened: Opened, db: Db) -> None:
    def work(message: Message, tx: Db) -> None:
        with pytest.raises(psycopg.errors.UndefinedTable), tx.transaction():
            tx.execute("SELECT * FROM not_there")
        rows.write_effect(tx, message)

    message = order()
    assert opened(doing(shape, work)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)


@both_shapes
def test_a_deferred_constraint_that_fails_at_commit_is_a_failed_attempt(shape: str, opened: Opened, db: Db) -> None:
    db.execute("CREATE TABLE paid (id text UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        for _ in range(tries.pop(0)):
            tx.execute("INSERT INTO paid VALUES ('once')")

    message, tries = order(), [2, 1]
    consumer = opened(doing(shape, work))
    assert consumer.deliver(delivery(message)).action == "release"
    assert (rows.attempts(db, message), rows.effects(db, message)) == (1, 0)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)


def test_a_commit_that_is_answered_with_rollback_is_not_taken_for_committed(db: Db, connect: Callable[[], Db]) -> None:
    """So COMMIT answers in a transaction that failed inside, without an error. The guard before it fails there, and COMMIT
    is not reached; the reply is looked at all the same, should anything between the two end the transaction. As here,
    where the last word that the server hears is ROLLBACK: COMMIT stands in a comment.
    """
    message, conn = order(), connect()
    conn.execute("BEGIN")
    rows.write_effect(conn, message)
    transaction = rows.scalar(conn, "SELECT pg_current_xact_id()::text")
    with lent(conn):
        assert isinstance(commit_guarded(conn, transaction, "1; ROLLBACK --"), p.Aborted)
    assert rows.effects(db, message) == 0


# ---- a transaction that the handler ended ------------------------------------------------------------------------------

ENDS: dict[str, tuple[Callable[[Db], object], int]] = {
    "COMMIT": (lambda tx: tx.execute("COMMIT"), 1),
    "COMMIT; BEGIN": (lambda tx: tx.execute("COMMIT; BEGIN"), 1),
    "COMMIT AND CHAIN": (lambda tx: tx.execute("COMMIT AND CHAIN"), 1),
    "commit()": (lambda tx: tx.commit(), 1),
    "ROLLBACK": (lambda tx: tx.execute("ROLLBACK"), 0),
    "ROLLBACK; BEGIN": (lambda tx: tx.execute("ROLLBACK; BEGIN"), 0),
    "rollback()": (lambda tx: tx.rollback(), 0),
}


@both_shapes
@pytest.mark.parametrize("end", ENDS)
def test_a_handler_that_ended_our_transaction_is_parked(shape: str, end: str, opened: Opened, db: Db) -> None:
    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        ends(tx)

    ends, written = ENDS[end]
    check_a_foreign_commit_is_parked(opened, db, doing(shape, work), order(), written)


@both_shapes
@pytest.mark.parametrize("end", ["COMMIT", "COMMIT; BEGIN"])
def test_a_handler_that_committed_and_then_raised_is_parked(shape: str, end: str, opened: Opened, db: Db) -> None:
    """Its row is done: without a look, the retry would be turned away as a duplicate, and the rest never be done."""

    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        ENDS[end][0](tx)
        raise RuntimeError("half way")

    check_a_foreign_commit_is_parked(opened, db, doing(shape, work), order(), 1)


@both_shapes
@pytest.mark.parametrize("raises", [True, False], ids=["raised", "swallowed"])
@pytest.mark.parametrize("end", ["COMMIT; BEGIN", "COMMIT AND CHAIN"])
def test_a_handler_that_committed_and_then_met_a_database_error_is_parked(
    shape: str, end: str, raises: bool, opened: Opened, db: Db
) -> None:
    """The session is in a failed transaction and can say nothing: the server knows what became of the one that was ours."""

    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        ENDS[end][0](tx)
        with nullcontext() if raises else suppress(psycopg.Error):
            tx.execute("SELECT * FROM not_there")

    check_a_foreign_commit_is_parked(opened, db, doing(shape, work), order(), 1)


@both_shapes
@pytest.mark.parametrize("raises", [True, False], ids=["raised", "swallowed"])
def test_a_handler_that_committed_and_then_lost_its_connection_is_parked(
    shape: str, raises: bool, opened: Opened, db: Db, proxy: Proxy
) -> None:
    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        tx.execute("COMMIT; BEGIN")
        proxy.cut()
        proxy.heal()
        with nullcontext() if raises else suppress(psycopg.Error):
            tx.execute("SELECT 1")

    message = order()
    consumer = opened(doing(shape, work), database=proxy.dsn)
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["foreign commit"], effects=1)


@both_shapes
def test_a_handler_that_committed_and_was_then_thrown_out_while_idle_is_parked(shape: str, opened: Opened, db: Db) -> None:
    """By the server, and nobody has noticed when the handler raises: an error that is no OperationalError."""

    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        tx.execute("COMMIT; SET idle_in_transaction_session_timeout = 50; BEGIN")
        pid = tx.info.backend_pid
        until(lambda: not db.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall())
        raise RuntimeError("half way")

    message = order()
    assert opened(doing(shape, work)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["foreign commit"], effects=1)


@both_shapes
def test_a_handler_that_failed_in_the_database_and_lost_its_session_unnoticed_is_parked(
    shape: str, opened: Opened, db: Db
) -> None:
    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        tx.execute("COMMIT; BEGIN")
        with suppress(psycopg.Error):
            tx.execute("SELECT * FROM not_there")
        pid = tx.info.backend_pid
        db.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        raise RuntimeError("half way")

    message = order()
    assert opened(doing(shape, work)).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["foreign commit"], effects=1)


@both_shapes
def test_a_crashed_server_that_reuses_our_transaction_id_is_not_a_foreign_commit(shape: str) -> None:
    """What was not flushed is forgotten, the id too: another transaction gets it, and commits. Ours has not."""

    def work(message: Message, tx: Db) -> None:
        [mine] = tx.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()[0]
        rows.write_effect(tx, message)
        if crashes:
            crashes.pop()
            cluster.kill()
            cluster.restart()
            with psycopg.connect(dsn, autocommit=True) as other:
                while other.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()[0][0] < mine:
                    pass
                status = other.execute("SELECT pg_xact_status(%s::text::xid8)", (mine,)).fetchall()
            given_away.append(status == [("committed",)])
        tx.execute("SELECT 1")

    message, crashes, given_away = order(), [1], [False]
    with Cluster.start(name="crash", settings={"wal_writer_delay": "10s"}) as cluster:
        dsn = cluster.create_database("crash")
        with psycopg.connect(dsn, autocommit=True) as db:
            migrate(db)
            db.execute(EFFECTS)
        with doing(shape, work, attempts_max=1).open(dsn, threads=1) as consumer:
            consumer.deliver(delivery(message))
            assert given_away.pop(), "the test is about an id that another one got"
            with psycopg.connect(dsn, autocommit=True) as db:
                assert (rows.parked(db), rows.attempts(db, message), rows.effects(db, message)) == ([], 0, 0)
                if rows.state(db, message):
                    rows.lapse(db, message)
                consumer.database.forget_broken()
                assert consumer.deliver(delivery(message, times=2)) == ACK
                assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)


@both_shapes
def test_a_handler_that_rolled_back_and_then_met_a_database_error_has_failed(shape: str, opened: Opened, db: Db) -> None:
    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        tx.execute("ROLLBACK; BEGIN")
        tx.execute("SELECT * FROM not_there")

    message = order()
    assert opened(doing(shape, work)).deliver(delivery(message)).action == "release"
    assert (rows.attempts(db, message), rows.effects(db, message), rows.parked(db)) == (1, 0, [])


@both_shapes
def test_a_redriven_message_whose_handler_rolls_back_by_itself_is_parked_again(shape: str, opened: Opened, db: Db) -> None:
    def work(_: Message, tx: Db) -> None:
        tx.execute("ROLLBACK")

    message = order()
    consumer = opened(doing(shape, work))
    consumer.deliver(delivery(message))
    assert not redrive(db, message.id, consumer=rows.CONSUMER).why_not
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.state(db, message) == "parked"
    assert [entry.reason for entry in rows.parked(db)] == ["foreign commit"]


# ---- a COMMIT that nobody knows the outcome of -------------------------------------------------------------------------


@both_shapes
@pytest.mark.parametrize("committed", [True, False], ids=["it happened", "it did not"])
def test_an_ambiguous_commit_is_left_and_redelivery_decides(
    shape: str, committed: bool, opened: Opened, db: Db, proxy: Proxy
) -> None:
    message, seen = order(), Recorder()
    cut = proxy.lose_reply_to if committed else proxy.lose_request
    at = At("consumer.handled", lambda: cut(b"; COMMIT"))
    consumer = opened(of_shape(shape), at, seen, database=proxy.dsn)
    assert consumer.deliver(delivery(message)) is LEAVE
    assert proxy.hits == 1
    assert not {"consumer.failed", "consumer.parked", "consumer.committed"} & set(seen.points)
    assert rows.attempts(db, message) == 0
    assert rows.parked(db) == []
    assert rows.effects(db, message) == int(committed)
    if shape == "effectful" and not committed:
        rows.lapse(db, message)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)
    assert seen.count("consumer.duplicate") == int(committed)


def test_a_handler_learns_of_an_ambiguous_commit_and_can_do_no_more(opened: Opened, db: Db, proxy: Proxy) -> None:
    def handle(message: Message, once: Once) -> None:
        with pytest.raises(LeaseLost), once.transaction() as tx:
            rows.write_effect(tx, message)
        with pytest.raises(LeaseLost), once.transaction():
            pytest.fail("the body must not run")

    message = order()
    at = At("consumer.handled", lambda: proxy.lose_reply_to(b"; COMMIT"))
    assert opened(effectful(handle), at, database=proxy.dsn).deliver(delivery(message)) is LEAVE
    assert rows.effects(db, message) == 1


@both_shapes
def test_a_connection_that_is_lost_before_the_commit_costs_no_attempt(
    shape: str, opened: Opened, db: Db, proxy: Proxy
) -> None:
    def work(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        if cuts:
            cuts.pop()
            proxy.cut()
            proxy.heal()
            tx.execute("SELECT 1")

    message, cuts = order(), [1]
    consumer = opened(doing(shape, work, attempts_max=1), database=proxy.dsn)
    consumer.deliver(delivery(message))
    assert rows.attempts(db, message) == 0
    assert rows.parked(db) == []
    assert rows.effects(db, message) == 0
    consumer.database.forget_broken()
    if shape == "effectful" and rows.inbox_row(db, message).leased:
        rows.lapse(db, message)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.effects(db, message) == 1


@both_shapes
def test_without_a_database_no_handler_runs_and_the_message_stays(shape: str, opened: Opened, db: Db, proxy: Proxy) -> None:
    runs: list[str] = []
    message = order()
    consumer = opened(of_shape(shape, lambda message: runs.append(message.id)), database=proxy.dsn)
    proxy.cut()
    assert consumer.deliver(delivery(message)) is LEAVE
    assert runs == []
    proxy.heal()
    consumer.database.forget_broken()
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=1, attempts=0, parked=[], effects=1)
