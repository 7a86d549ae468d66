"""doctor on a Postgres: what was set wrong there on purpose is found by name, and mended by what it says."""

from __future__ import annotations

import shlex
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tests.conftest import in_memory
from tests.support.diagnoses import NEEDS, mends, wrong

from onceward.doctor.postgres import gather, gather_queue, judge, judge_queue
from onceward.errors import UsageError
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq

Db = psycopg.Connection[Any]


def diagnosed(dsn: str, **options: Any) -> dict[str, str]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return mends(judge(gather(conn, **options), NEEDS))


def test_settings_of_the_server_are_found() -> None:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    with in_memory(), Cluster.start(name="unsafe", settings=dict.fromkeys(names, "off")) as server:
        found = diagnosed(server.dsn)
    assert found == {
        f"postgres.{name}": f"take -c {name} out of the command that starts the server, and restart it" for name in names
    }


@pytest.mark.parametrize(
    ("setting", "check"),
    [
        ("synchronous_commit = off", "postgres.synchronous_commit"),
        ("default_transaction_read_only = on", "postgres.read_only"),
    ],
)
def test_a_setting_of_the_database_is_found_and_mended_there(setting: str, check: str, dsn: str, db: Db) -> None:
    before = diagnosed(dsn)
    name = sql.Identifier(db.info.dbname)
    db.execute(sql.SQL("ALTER DATABASE {} SET ").format(name) + sql.SQL(setting))
    found = diagnosed(dsn)
    assert set(found) - set(before) == {check}
    [command] = shlex.split(found[check])[2:]
    db.execute(command.encode())
    assert diagnosed(dsn) == before


def test_a_setting_of_the_dsn_is_found(dsn: str) -> None:
    found = diagnosed(make_conninfo(dsn, options="-c synchronous_commit=off"))
    assert "options of the DSN" in found["postgres.synchronous_commit"]


def test_more_threads_than_connections_are_found(dsn: str) -> None:
    assert "postgres.connections" not in diagnosed(dsn, threads=8)
    assert "postgres.connections" in diagnosed(dsn, threads=900)


def test_an_unlogged_queue_is_found_and_mended(dsn: str, db: Db) -> None:
    pgmq.create_queue(db, "orders")
    assert wrong(judge_queue(gather_queue(db, "orders"), NEEDS)) == {}
    db.execute("ALTER TABLE pgmq.q_orders SET UNLOGGED")
    found = mends(judge_queue(gather_queue(db, "orders"), NEEDS))
    assert set(found) == {"pgmq.logged"}
    db.execute(shlex.split(found["pgmq.logged"])[-1].encode())
    assert wrong(judge_queue(gather_queue(db, "orders"), NEEDS)) == {}


def test_a_queue_that_is_not_there_is_a_usage_error(db: Db) -> None:
    with pytest.raises(UsageError, match="onceward queue create"):
        gather_queue(db, "nowhere")
