"""Query plans over 50,000 rows: every statement of `sql/` uses the index that its `-- index:` line names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.conftest import database
from tests.support.plans import indexes_used, named_indexes, seed

from onceward.embedded import Cluster
from onceward.statements import statements

Db = psycopg.Connection[Any]
INDEXES = named_indexes()
# The text of a parked message's id, where a statement speaks of that and not of the inbox's uuid.
TEXT_IDS = {"parked_show"}
# Tables that a statement may read whole: `WHERE consumer IS NULL OR ...` has no better way than its sort order.
MAY_READ_WHOLE: dict[str, set[str]] = {}


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
    assert set(INDEXES[name]) <= used, f"used: {used}, read whole: {whole}"
    assert whole <= MAY_READ_WHOLE.get(name, set())


def test_every_statement_names_its_index_or_says_none() -> None:
    assert set(INDEXES) == set(statements())
    assert [name for name, indexes in INDEXES.items() if not indexes] == ["outbox_insert"]
