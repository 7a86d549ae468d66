"""The SQL that docs/guarantees.md prints: what stands there is left of the real statements, and decides as they do."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from tests.tidy.sources import ROOT

from onceward.message import uuid7
from onceward.statements import statements

Db = psycopg.Connection[Any]
SHOWN = ["inbox_insert", "inbox_read", "inbox_take_over", "intent_insert", "inbox_finish"]
FIRST, SECOND = 1, 2  # tokens


def _printed() -> dict[str, str]:
    """The statements of the page, name to text."""
    block = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").partition("```sql\n")[2].partition("```")[0]
    parts = re.split(r"^-- (\w+): .*\n", block, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


PRINTED = _printed()


def _words(statement: str) -> list[str]:
    return re.findall(r"%\(\w+\)s|\w+|[^\s\w]", statement)


def _real(name: str) -> str:
    """The statement that runs. inbox_read joins, to say something where there is no row, too; the page selects."""
    return re.sub(r"FROM \(SELECT 1\) AS one\s+LEFT JOIN (\S+) AS i ON", r"FROM \1 AS i WHERE", statements()[name])


def test_the_page_prints_the_statements_that_decide() -> None:
    assert list(PRINTED) == SHOWN


@pytest.mark.parametrize("name", SHOWN)
def test_a_printed_statement_is_the_real_one_with_parts_left_out(name: str) -> None:
    """Word by word, in order: nothing stands on the page that does not run."""
    remaining = iter(_words(_real(name)))
    strange = next((word for word in _words(PRINTED[name].rstrip().rstrip(";")) if word not in remaining), None)
    assert strange is None, f"{name}: {strange!r}, and what follows it, is not in the real statement in this order"


class _Page:
    """One message, taken as the page says."""

    def __init__(self, db: Db) -> None:
        self._db = db
        self._message_id = uuid7()
        db.execute("SET search_path TO onceward")

    def run(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows that come back; of an UPDATE without RETURNING, an empty one for each row that it changed."""
        known = {
            "consumer": "page", "message_id": self._message_id, "fingerprint": b"same", "state": "pending",
            "lease_seconds": 60, "n": 1, "name": "charge", "request_fingerprint": b"request", "key": "ow1:key",
        }  # fmt: skip
        cursor = self._db.cursor(row_factory=dict_row)
        cursor.execute(PRINTED[name], known | parameters)
        return cursor.fetchall() if cursor.description else [{}] * cursor.rowcount


@pytest.fixture(name="page")
def _page(db: Db) -> _Page:
    return _Page(db)


def test_as_printed_a_message_is_taken_once_and_the_row_says_why_not_again(page: _Page) -> None:
    assert page.run("inbox_insert") == [{"token": FIRST}]
    assert page.run("inbox_insert") == []
    assert page.run("inbox_read") == [{"state": "pending", "same_payload": True, "token": FIRST, "lapsed": False}]
    assert page.run("inbox_read", fingerprint=b"other")[0]["same_payload"] is False


def test_as_printed_a_living_lease_is_not_taken_over(page: _Page) -> None:
    page.run("inbox_insert")
    assert page.run("inbox_take_over", token=FIRST) == []


def test_as_printed_an_overtaken_worker_starts_no_effect_and_finishes_nothing(page: _Page) -> None:
    page.run("inbox_insert", lease_seconds=0)
    assert page.run("intent_insert", token=FIRST) == [], "its lease has lapsed"
    assert page.run("inbox_take_over", token=FIRST) == [{"token": SECOND}]
    assert page.run("inbox_take_over", token=FIRST) == []
    assert page.run("intent_insert", token=FIRST) == []
    assert page.run("intent_insert", token=SECOND) == [{"n": 1}]
    assert page.run("intent_insert", token=SECOND) == []
    assert page.run("inbox_finish", token=FIRST) == []
    assert len(page.run("inbox_finish", token=SECOND)) == 1
    assert page.run("inbox_read")[0]["state"] == "done"
