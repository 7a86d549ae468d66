"""Where SQL may stand, which moments have a name, and what tests must not do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.tidy.sources import PACKAGE, ROOT, docstrings, python_files, short, tree

from onceward.events import POINTS

SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|CREATE\s+(TABLE|INDEX|SCHEMA|DATABASE|VIEW)\b|"
    r"ALTER\s+TABLE\s|DROP\s+(TABLE|INDEX|SCHEMA|DATABASE)\b|TRUNCATE\s|WITH\s+\w+\s+AS\s*\()"
)
# The files that hold statements all the same, and why these cannot stand in sql/.
SQL_IN_CODE = {
    "consumer_loop.py": "whether the database answers at all",
    "database.py": "which session of the server a connection has",
    "inbox.py": "session settings",
    "outbox.py": "pg_notify; the statements that a person runs after a failover",
    "day_partitions.py": "their names are made from a day; the catalogue that lists them; advisory locks",
    "doctor/postgres.py": "what a person runs to mend a setting: it is only shown",
    "schema.py": "the history of the migrations, and the advisory lock",
    "session.py": "session settings, read and given back; the commit guard",
    "testing/postgres/cluster.py": "a server's own business: databases, its data directory",
    "transactions.py": "whether the session is still in our transaction",
    "transports/pgmq.py": "the queue's own functions: it must not know our tables",
}
# Only the named ones may replace something: never our code, psycopg or a client.
REPLACES = {
    "tests/acceptance/conftest.py": "tempfile's folder: where clusters are made, and looked for",
    "tests/database/test_clocks.py": "this process's clock, which must decide nothing",
    "tests/database/test_guarantees_can_fail.py": "one guarantee at a time is broken on purpose, to see a test fail",
    "tests/database/test_bad_input.py": "whether our log is on: the runner cannot carry all that it says",
    "tests/database/test_foreign.py": "whether our log is on: the runner cannot carry all that it says",
    "tests/database/test_durability.py": "the commit guard, to see a commit that is not durable",
    "tests/database/test_sessions.py": "what puts a session back, to see the test of it fail",
    "tests/database/test_sqlalchemy.py": "the guard against a commit, and the last flush, to see the tests of both fail",
    "tests/database/test_upkeep.py": "how often upkeep tries: a limit, not a behaviour",
}
# The only files of the tests that let time pass.
SLEEPS = {
    "tests/database/test_relay_progress.py": "its sink is slow",
    "tests/database/test_signals.py": "the pace of the signals that another process is sent",
    "tests/support/queues.py": "an empty queue in memory makes a receive wait, as a real one does",
    "tests/support/waiting.py": "`until` polls: the pause between two looks at a condition",
}


def _statements(file: Path) -> list[str]:
    skipped = docstrings(file)
    texts = (node for node in ast.walk(tree(file)) if isinstance(node, ast.Constant) and id(node) not in skipped)
    return [node.value for node in texts if isinstance(node.value, str) and SQL.match(node.value)]


def test_sql_stands_in_sql_and_migrations_only() -> None:
    files = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if _statements(file)}
    assert files - SQL_IN_CODE.keys() == set(), "write it in sql/, under a name, with its why, its locks and its index"
    assert SQL_IN_CODE.keys() - files == set(), "strike these from SQL_IN_CODE"


def test_no_statement_is_made_from_values() -> None:
    """The schema's name, through `sql.Identifier`, is all that is ever put into a statement's text."""
    nodes = ((file, node) for file in PACKAGE.rglob("*.py") for node in ast.walk(tree(file)))
    texts = ((file, node.values[0]) for file, node in nodes if isinstance(node, ast.JoinedStr) and node.values)
    starts = ((file, start) for file, start in texts if isinstance(start, ast.Constant))
    made = [f"{short(file)}:{start.lineno}" for file, start in starts if SQL.match(str(start.value))]
    assert made == []


def _emitted() -> dict[str, str]:
    """Every constant that is given to an `emit` first, and where."""
    found: dict[str, str] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("emit", "_emit"):
                constants = (
                    [inner for inner in ast.walk(node.args[0]) if isinstance(inner, ast.Constant)] if node.args else []
                )
                found |= {str(constant.value): f"{short(file)}:{node.lineno}" for constant in constants}
    return found


def test_every_point_happens_and_whatever_happens_is_a_point() -> None:
    emitted = _emitted()
    assert {point: where for point, where in emitted.items() if point not in POINTS} == {}
    assert [point for point in POINTS if point not in emitted] == []


def test_a_point_is_a_place_and_a_moment() -> None:
    assert [point for point in POINTS if not re.fullmatch(r"(consumer|effect|relay|upkeep)\.[a-z_]+", point)] == []


def test_architecture_lists_the_crash_points() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Crash points")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE) == list(POINTS)


def test_tests_sleep_only_where_they_poll() -> None:
    """A sleep in a test is a race that was won so far. The wait of an event that nobody can set is a sleep, too."""
    pattern = re.compile(r"\btime\.sleep\b|\bfrom time import .*\bsleep\b|\bEvent\(\)\.wait\b")
    found = {short(file) for file in python_files("tests") if pattern.search(file.read_text(encoding="utf-8"))}
    assert found - {short(Path(__file__))} == SLEEPS.keys()


def test_tests_replace_nothing_of_ours() -> None:
    """A mock is a second implementation that nobody tests."""
    pattern = re.compile(r"unittest\.mock|\bMagicMock\b|\bmonkeypatch\.setattr\b")
    found = {short(file) for file in python_files("tests") if pattern.search(file.read_text(encoding="utf-8"))}
    assert found - {short(Path(__file__))} == REPLACES.keys()


def test_nobody_swallows_an_error_without_saying_why() -> None:
    """ruff's BLE001 finds a blind `except`; each that stays gives its reason in the same line."""
    bare = [
        f"{short(file)}:{number}"
        for file in python_files("src", "examples")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if "noqa: BLE001" in line and not re.search(r"noqa: BLE001\s*( - |\()", line)
    ]
    assert bare == []
