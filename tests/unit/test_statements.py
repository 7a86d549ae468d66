"""Every runtime statement: it says what it is, and only the schema's name is ever put into it."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from onceward.errors import UsageError
from onceward.statements import check_schema_name, statements

BLOCKS = [
    (file.name, block)
    for file in files("onceward.sql").iterdir()
    if file.name.endswith(".sql")
    for block in re.split(r"^(?=-- name: )", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
]
NAMES = [match[1] for _, block in BLOCKS if (match := re.match(r"-- name: (\w+)", block))]


@pytest.mark.parametrize(("file", "block"), BLOCKS, ids=NAMES)
def test_a_statement_says_its_name_why_locks_and_index(file: str, block: str) -> None:
    heads = re.findall(r"^-- (name|why|locks|index): \S", block, flags=re.MULTILINE)
    assert heads == ["name", "why", "locks", "index"], file


@pytest.mark.parametrize(("file", "block"), BLOCKS, ids=NAMES)
def test_values_come_by_name_and_the_schema_is_the_only_substitution(file: str, block: str) -> None:
    code = "\n".join(line for line in block.splitlines() if not line.startswith("--"))
    assert set(re.findall(r"\{(\w*)\}", code)) <= {"schema"}, file
    assert re.sub(r"%\(\w+\)s", "", code).count("%") == 0, file
    assert ";" not in code, file
    for table in re.findall(r"(?<!DISTINCT )(?<!epoch )\b(?:FROM|JOIN|INTO|UPDATE)\s+([\w{}.]+)", code):
        assert table.startswith(("{schema}.", "pg_")) or table in _local_names(code), f"{file}: {table}"


def _local_names(code: str) -> set[str]:
    """What the statement itself makes: common table expressions, functions, and the words of ON CONFLICT and FOR UPDATE.

    And the catalogue, which is nobody's schema.
    """
    made = re.findall(r"(\w+) AS (?:MATERIALIZED )?\(", code)
    return {*made, "unnest", "OF", "SET", "SKIP", "LATERAL", "clock_timestamp", "pg_class", "pg_namespace", "pg_inherits"}


def test_names_are_told_once() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) == set(statements())


def test_every_statement_is_used() -> None:
    """One that nobody runs is one that nobody tests."""
    folders = [files("onceward"), files("onceward.doctor")]
    sources = [file for folder in folders for file in folder.iterdir() if file.name.endswith(".py")]
    code = "".join(file.read_text(encoding="utf-8") for file in sources)
    assert [name for name in NAMES if f'"{name}"' not in code] == []


def test_the_schema_is_put_in() -> None:
    for text in statements("shop_1").values():
        assert "{" not in text
        assert "onceward." not in text.replace("'onceward.delivery'", "")
    assert "shop_1.inbox" in statements("shop_1")["inbox_insert"]


@pytest.mark.parametrize(
    "name", ["", "Onceward", "a-b", "a b", 'a"b', "a;drop schema b", "1a", "a.b", "x" * 49, "é", "a\n", "a%s"]
)
def test_a_schema_name_that_needs_quoting_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="schema name"):
        check_schema_name(name)
    with pytest.raises(UsageError):
        statements(name)


@pytest.mark.parametrize("name", ["onceward", "_x", "a1_b2", "x" * 48])
def test_a_plain_schema_name_is_taken(name: str) -> None:
    assert check_schema_name(name) == name
