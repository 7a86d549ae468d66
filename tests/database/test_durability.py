"""Every decision commits durably whatever its session says: a server that is killed right behind it takes none back.

The sessions here commit asynchronously, on a server that flushes what is committed so only every ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from tests.conftest import in_memory
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.shop import transactional

from onceward import session
from onceward.database import Database
from onceward.inbox import InboxTable
from onceward.message import Message
from onceward.outbox import outbox_row
from onceward.protocol.reasons import ParkReason
from onceward.schema import migrate
from onceward.statements import statements
from onceward.testing.postgres import Cluster
from onceward.transport import ACK

Db = psycopg.Connection[Any]
SLOW_TO_FLUSH = {"wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0", "autovacuum": "off"}
# Once in ten seconds the WAL writer flushes what nobody has waited for; but not in each of two tries, one behind the other.
TRIES: Final = range(2)
LAZY: Final = "-c synchronous_commit=off"
SWITCH: Final = "set_config('synchronous_commit', 'on', true)"
# Each decision's statement, and those that come before it.
DECISIONS: Final[dict[str, tuple[str, ...]]] = {
    "inbox_insert": (),
    "inbox_take_over": ("inbox_insert", "inbox_give_back"),
    "inbox_finish": ("inbox_insert",),
    "intent_insert": ("inbox_insert",),
    "intent_record": ("inbox_insert", "intent_insert"),
    "intent_begin_unkeyed": ("inbox_insert", "intent_insert", "reopen_intent"),
    "fail_held": ("inbox_insert",),
    "fail_absent": (),
    "park_held": ("inbox_insert",),
    "park_absent": (),
    "park_foreign_commit": (),
    "park_beside": (),
    "park_outside": (),
    "outbox_insert": (),
    "redrive_inbox": ("park_absent",),
    "decide": ("park_absent",),
    "outbox_retry": ("outbox_insert", "outbox_set_aside"),
    "outbox_discard": ("outbox_insert",),
}
# Of these a crash is tried, too: one that is told to the queue, one before a call, one that a relay may have sent.
CRASHED: Final = {"park_absent": "parked", "intent_insert": "intents", "outbox_insert": "outbox"}
every_decision = pytest.mark.parametrize("name", DECISIONS)
crashed = pytest.mark.parametrize("name", CRASHED)


@pytest.fixture(scope="module")
def slow() -> Iterator[Cluster]:
    with in_memory(), Cluster.start(name="durability", settings=SLOW_TO_FLUSH) as running:
        with psycopg.connect(running.dsn, autocommit=True) as conn:
            migrate(conn)
        yield running


def params_of(message: Message) -> dict[str, Any]:
    """All that any of the statements needs."""
    inbox = InboxTable(rows.CONSUMER)
    taken = inbox.take_params(message, "pending", lock_timeout="0")
    assert taken is not None
    return {
        **outbox_row(message),
        **taken,
        **inbox.park_params(message, "test", ParkReason.REJECTED, "not today"),
        "token": 1, "unknown_n": 0, "failed": 1, "session_lost": 0, "error": "failed",
        "n": 1, "name": "charge", "request_fingerprint": b"", "key": "k", "answer": "1", "refused": False,
        "acting_seconds": 60.0,
        "decision": "redrive", "effect": None, "former_key": None, "forced": False, "reason": "", "decided_by": "somebody",
    }  # fmt: skip


def left_to_its_session(text: str) -> str:
    if SWITCH not in text:
        raise LookupError(f"nothing is switched in {text}")
    return text.replace(SWITCH, "''")


def decide(slow: Cluster, name: str, *, switched: bool) -> bool:
    """The decision is committed in a lazy session; True: it was flushed before that was said."""
    params, whole = params_of(order()), statements()[name]
    text = whole if switched else left_to_its_session(whole)
    with psycopg.connect(slow.dsn, autocommit=True) as db, psycopg.connect(slow.dsn, autocommit=True, options=LAZY) as lazy:
        for before in DECISIONS[name]:
            assert db.execute(statements()[before], params).rowcount == 1
            params["position"] = rows.scalar(db, "SELECT max(position) FROM onceward.outbox")
        written = rows.scalar(db, "SELECT pg_current_wal_insert_lsn()::text")
        assert lazy.execute(text.encode(), params).fetchone()
        assert rows.scalar(db, "SELECT pg_current_wal_insert_lsn() > %s::pg_lsn", (written,))
        return bool(rows.scalar(db, "SELECT pg_current_wal_flush_lsn() > %s::pg_lsn", (written,)))


def outlives_a_kill(slow: Cluster, name: str, *, switched: bool) -> bool:
    """What was decided is there after a SIGKILL of the whole server."""
    count = f"SELECT count(*) FROM onceward.{CRASHED[name]}"
    with psycopg.connect(slow.dsn) as db:
        before = rows.scalar(db, count)
    decide(slow, name, switched=switched)
    slow.kill()
    slow.restart()
    with psycopg.connect(slow.dsn) as db:
        return bool(rows.scalar(db, count) == before + 1)


@every_decision
def test_a_decision_is_flushed_before_it_is_reported(name: str, slow: Cluster) -> None:
    assert all(decide(slow, name, switched=True) for _ in TRIES)


@every_decision
def test_a_decision_that_leaves_it_to_its_session_is_not_flushed(name: str, slow: Cluster) -> None:
    assert not all(decide(slow, name, switched=False) for _ in TRIES)


@crashed
def test_a_decision_outlives_a_kill_of_the_server(name: str, slow: Cluster) -> None:
    assert all(outlives_a_kill(slow, name, switched=True) for _ in TRIES)


@crashed
def test_a_decision_that_leaves_it_to_its_session_does_not_outlive_a_kill_of_the_server(name: str, slow: Cluster) -> None:
    assert not all(outlives_a_kill(slow, name, switched=False) for _ in TRIES)


def test_every_statement_that_switches_durable_commits_on_is_tried_here() -> None:
    assert set(DECISIONS) == {name for name, text in statements().items() if SWITCH in text}


@pytest.mark.parametrize("how", ["dsn", "callable"])
def test_a_session_of_ours_commits_durably_although_its_database_does_not(how: str, slow: Cluster) -> None:
    """For what is no decision, too: a lease that is given back, a row that leaves the outbox."""
    lazy = f"{slow.dsn}{'&' if '?' in slow.dsn else '?'}options=-c%20synchronous_commit%3Doff"
    database = Database(lazy if how == "dsn" else lambda: psycopg.connect(lazy), size=1)
    with database.connection() as conn:
        assert rows.scalar(conn, "SHOW synchronous_commit") == "on"
    database.close()


def commits(slow: Cluster, how: str) -> bool:
    """A handler that switched durable commits off is committed; True: it was flushed before that was said."""

    def handler(message: Message, tx: Db) -> None:
        tx.execute("SET synchronous_commit TO off")
        tx.execute("SELECT pg_logical_emit_message(true, 'test', %s)", (message.id,))

    source: Any = slow.dsn if how == "dsn" else lambda: psycopg.connect(slow.dsn)
    with psycopg.connect(slow.dsn, autocommit=True) as db, transactional(handler).open(source) as opened:
        written = rows.scalar(db, "SELECT pg_current_wal_insert_lsn()::text")
        assert opened.deliver(delivery(order())) == ACK
        return bool(rows.scalar(db, "SELECT pg_current_wal_flush_lsn() > %s::pg_lsn", (written,)))


@pytest.mark.parametrize("how", ["dsn", "callable"])
def test_a_commit_is_durable_though_its_handler_switched_that_off(how: str, slow: Cluster) -> None:
    assert all(commits(slow, how) for _ in TRIES)


def test_a_plain_commit_is_as_lazy_as_its_handler_left_it(slow: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "COMMIT_GUARDED", "COMMIT")
    assert not all(commits(slow, "dsn") for _ in TRIES)
