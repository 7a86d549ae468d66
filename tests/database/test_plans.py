"""Query plans over 50,000 rows: every statement of `sql/` uses the index that its `-- index:` line names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.conftest import database
from tests.support.plans import indexes_used, named_indexes, seed

from onceward.statements import statements
from onceward.testing.postgres import Cluster

Db = psycopg.Connection[Any]
INDEXES = named_indexes()
# The text of a parked message's id, where a statement speaks of that and not of the inbox's uuid.
TEXT_IDS = {"parked_show", "decisions_about"}
# Begins with the message's id too, so it finds the same few rows; where a state is asked for, its partial index is smaller.
AS_GOOD = {"inbox_pkey": "inbox_open", "intents_pkey": "intents_open", "attempts_pkey": "attempts_age"}
AS_GOOD |= {"parked_pkey": "parked_message"}


@pytest.fixture(scope="module")
def seeded(cluster: Cluster, template: str) -> Iterator[tuple[Db, dict[str, Any]]]:
    """One seeded database for all: nothing here writes."""
    with database(cluster, template) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield conn, seed(conn)


@pytest.mark.parametrize("name", [name for name, indexes in INDEXES.items() if indexes])
def test_a_statement_uses_the_index_that_it_names(name: str, seeded: tuple[Db, dict[str, Any]]) -> None:
    db, params = seeded
    message_id = str(params["message_id"]) if name in TEXT_IDS else UUID(str(params["message_id"]))
    used, whole = indexes_used(db, statements()[name], params | {"message_id": message_id})
    missing = [index for index in INDEXES[name] if not {index, AS_GOOD.get(index, index)} & used]
    assert missing == [], f"used: {used}, read whole: {whole}"
    assert whole == set()


def test_the_cost_of_the_heads_grows_with_what_waits_behind_one_key(seeded: tuple[Db, dict[str, Any]]) -> None:
    """A limit that is known: the walk over the outbox passes every row of a key whose head is at its front.

    5,000 keys with ten rows each: a batch of 100 looks at about 100 rows. One key with 45,000 rows before the others: at
    45,000. So a key's backlog, and nothing else, makes locking a batch expensive.
    """
    db, params = seeded
    assert rows_passed(db, params) < 1_000
    with db.transaction(force_rollback=True):
        db.execute("UPDATE onceward.outbox SET aggregateid = 'hot' WHERE position <= 45000")
        assert rows_passed(db, params) > 40_000


def rows_passed(db: Db, params: dict[str, Any]) -> int:
    statement = f"EXPLAIN (ANALYZE, FORMAT JSON) {statements()['outbox_lock_heads']}"
    row = db.execute(statement.encode(), params).fetchone()
    assert row is not None
    scan = row[0][0]["Plan"]["Plans"][0]["Plans"][0]
    return int(scan["Actual Rows"]) + int(scan.get("Rows Removed by Filter", 0))


def test_every_statement_names_its_index_or_says_none() -> None:
    """None: an insert; what reads the catalogue, or few rows, at a start or once an hour; and what a person asks."""
    assert set(INDEXES) == set(statements())
    rare = {"rights", "retired_day", "retired_hold", "retire", "consumer_windows_forget", "window_longest"}
    rare |= {"windows_by_consumer", "handler_times_forget", "handler_times_read", "doctor_settings", "doctor_session"}
    rare |= {"partition_tables", "partitions_attached", "partition_owner", "lock_timeout_set"}
    rare |= {"outbox_find", "outbox_begin_so", "outbox_last_discard", "outbox_why_not", "status_outbox", "status_parked"}
    assert {name for name, indexes in INDEXES.items() if not indexes} == {"outbox_insert", "parked_beginning"} | rare
