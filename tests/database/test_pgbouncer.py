"""Behind PgBouncer: session mode works; a mode that keeps no session is refused, but not at the second door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order
from tests.support.doors import Door, asynchronous, synchronous
from tests.support.pgbouncer import Bouncer, Mode, bouncing
from tests.support.queues import ListSink, drain, relaying
from tests.support.shop import charging, transactional
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.database import keeps_session
from onceward.errors import UsageError
from onceward.inbox import Inbox, TakeResult
from onceward.intents import IntentResult, RecordResult
from onceward.outbox import nudge_relays, publish
from onceward.provider import STRIPE_V1
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
POOLED: tuple[Mode, ...] = ("transaction", "statement")
pooled = pytest.mark.parametrize("mode", POOLED)


@pytest.fixture
def bouncer(dsn: str) -> Iterator[Bouncer]:
    with bouncing(dsn) as started:
        yield started


def kept(dsn: str) -> bool:
    def connect() -> Db:
        return psycopg.connect(dsn, autocommit=True)

    with connect() as conn:
        return keeps_session(conn, lambda: closing(connect()))


def test_postgres_itself_is_known_by_one_question(dsn: str) -> None:
    def no_other() -> Any:
        raise AssertionError("a second connection was opened")

    with psycopg.connect(dsn, autocommit=True) as conn:
        assert keeps_session(conn, no_other)


@pytest.mark.parametrize("round_robin", [False, True])
@pytest.mark.parametrize("pool_size", [1, 5])
def test_each_mode_is_told_from_the_others(pool_size: int, round_robin: bool, dsn: str) -> None:
    """Session mode keeps a server connection for each client, so a pool of one has none for a second."""
    with bouncing(dsn, pool_size=pool_size, round_robin=round_robin) as bouncer:
        assert [kept(bouncer.dsn(mode)) for mode in POOLED] == [False, False]
        if pool_size > 1:
            assert kept(bouncer.dsn("session"))


def test_a_mode_is_told_while_other_clients_keep_the_pool_busy(bouncer: Bouncer, background: Background) -> None:
    stop: list[bool] = []

    def work() -> None:
        with psycopg.connect(bouncer.dsn("transaction"), autocommit=True, prepare_threshold=None) as conn:
            while not stop:
                conn.execute("SELECT pg_sleep(0.001)")

    working = [background(work) for _ in range(4)]
    try:
        assert not any(kept(bouncer.dsn("transaction")) for _ in range(10))
    finally:
        stop.append(True)
        for one in working:
            one.result()


def sources(dsn: str) -> Iterator[Any]:
    """Each way in which a database can be given."""
    yield dsn
    yield lambda: psycopg.connect(dsn)
    with ConnectionPool(dsn, min_size=1, max_size=8, open=True) as pool:
        yield pool


@pooled
def test_a_consumer_and_a_relay_refuse_it_with_the_reason(mode: Mode, opened: Opened, bouncer: Bouncer) -> None:
    for database in sources(bouncer.dsn(mode)):
        with pytest.raises(UsageError, match="session mode"):
            opened(transactional(), database=database)
        with pytest.raises(UsageError, match="session mode"):
            drain(database, ListSink())


@pooled
def test_what_is_refused_has_set_nothing_for_the_pools_other_clients(mode: Mode, opened: Opened, bouncer: Bouncer) -> None:
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
    asking = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    with psycopg.connect(bouncer.dsn(mode), autocommit=True) as conn:
        before = conn.execute(asking.encode()).fetchone()
        for database in sources(bouncer.dsn(mode)):
            with pytest.raises(UsageError):
                opened(transactional(), database=database)
        for _ in range(5):
            assert conn.execute(asking.encode(), prepare=False).fetchone() == before


def test_in_session_mode_consumer_and_relay_work(opened: Opened, background: Background, db: Db, dsn: str) -> None:
    message, sent, sink = order(), order(), ListSink()
    with bouncing(dsn, pool_size=20) as bouncer:
        database = bouncer.dsn("session")
        charges = opened(charging(Provider()), database=database, threads=1)
        assert charges.deliver(delivery(message)) == ACK
        # No poll would find it within the time of this test: the nudge is heard through the pool.
        with relaying(background, database, sink, poll_seconds=3600.0, lanes=1):
            until(lambda: bool(rows.scalar(db, LISTENS)), "the relay listening")
            with db.transaction():
                publish(db, sent)
            nudge_relays(db)
            until(lambda: sink.ids == [sent.id], "the message being sent")
        charges.close()
    assert rows.state(db, message) == "done"


LISTENS = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'"


@pytest.mark.parametrize("door", [synchronous, asynchronous], ids=lambda door: door.__name__)
def test_the_second_door_works_in_transaction_mode(door: Callable[[str], Any], bouncer: Bouncer, db: Db) -> None:
    """Whatever it does is in one transaction. Only psycopg's prepared statements belong to a session."""
    opened: Door
    with door(bouncer.dsn("transaction")) as opened:
        conns = [opened.connect(prepare_threshold=None) for _ in range(3)]
        inbox, intents = opened.inbox(rows.CONSUMER), opened.intents(rows.CONSUMER)
        inbox.register(conns[0])
        for n in range(12):
            # Each statement through another client, so that no session of the server stays anybody's.
            first, second, third = conns[n % 3 :] + conns[: n % 3]
            message = order()
            take = inbox.claim(first, message)
            again = inbox.claim(second, message)
            assert (take.result, again.result) == (TakeResult.TAKEN, TakeResult.IN_FLIGHT)
            asked: dict[str, Any] = {"take": take, "n": 1, "name": "charge", "request": 1, "provider": STRIPE_V1}
            assert intents.intend(second, message, **asked).result is IntentResult.CALL
            assert intents.record(third, message, n=1, answer=n).result is RecordResult.RECORDED
            with first.transaction():
                assert inbox.finish(first, message, take=take)
                rows.write_effect(first, message)
                opened.publish(first, order())
            with second.transaction():
                assert inbox.take(second, message).result is TakeResult.DUPLICATE
            assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)
    assert len(rows.outbox(db)) == 12
    leaked = rows.scalar(db, "SHOW lock_timeout")
    with psycopg.connect(bouncer.dsn("transaction"), autocommit=True) as conn:
        assert rows.scalar(conn, "SHOW lock_timeout") == leaked


def test_statement_mode_lets_nobody_in_by_the_second_door(bouncer: Bouncer, db: Db) -> None:
    message = order()
    with psycopg.connect(bouncer.dsn("statement"), autocommit=True) as conn, pytest.raises(psycopg.Error):
        Inbox(rows.CONSUMER).claim(conn, message)
    assert rows.state(db, message) is None
