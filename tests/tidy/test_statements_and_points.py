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
# Statements in code, by file: how many at most, and why they cannot stand in sql/. The numbers may only shrink.
SQL_IN_CODE = {
    "schema.py": (10, "the migration's own history, and the advisory lock"),
    "partitions.py": (18, "partitions: their names are made from a day; the catalogue that lists them; advisory locks"),
    "session.py": (5, "session settings, read and given back; the commit guard"),
    "inbox.py": (3, "session settings"),
    "transactions.py": (1, "whether the session is still in our transaction"),
    "consumer_loop.py": (1, "whether the database answers at all"),
    "outbox.py": (8, "pg_notify; the statements that a person runs after a failover"),
    "testing/postgres/cluster.py": (3, "a server's own business: databases, its data directory"),
    "transports/pgmq.py": (11, "the queue's own functions: it must not know our tables"),
}
# These speak to tables that are not ours, or judge ours from outside.
NOT_THE_CORE = ("testing/transport.py", "testing/proxy.py")
# Only the named ones may replace something: never our code, psycopg or a client.
REPLACES = {
    "tests/acceptance/conftest.py": "tempfile's folder: where clusters are made, and looked for",
    "tests/database/test_clocks.py": "this process's clock, which must decide nothing",
    "tests/database/test_guarantees_can_fail.py": "one guarantee at a time is broken on purpose, to see a test fail",
    "tests/database/test_retired.py": "how soon the first upkeep comes: a limit, not a behaviour",
    "tests/database/test_bad_input.py": "whether our log is on: the runner cannot carry all that it says",
    "tests/database/test_durability.py": "the commit guard, to see a commit that is not durable",
    "tests/database/test_sessions.py": "what puts a session back, to see the test of it fail",
    "tests/database/test_upkeep.py": "how often upkeep tries: a limit, not a behaviour",
}


def _statements(file: Path) -> list[str]:
    skipped = docstrings(file)
    texts = (node for node in ast.walk(tree(file)) if isinstance(node, ast.Constant) and id(node) not in skipped)
    return [node.value for node in texts if isinstance(node.value, str) and SQL.match(node.value)]


def test_sql_stands_in_sql_and_migrations_only() -> None:
    counts: dict[str, int] = {}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        found = _statements(file)
        if found and not name.startswith(NOT_THE_CORE):
            counts[name] = len(found)
    more = {name: count for name, count in counts.items() if count > SQL_IN_CODE.get(name, (0, ""))[0]}
    assert more == {}, "write it in sql/, under a name, with its why, its locks and its index"
    assert [name for name in SQL_IN_CODE if name not in counts] == [], "strike these from SQL_IN_CODE"


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


def test_tests_wait_on_points_and_replace_nothing() -> None:
    """A sleep is a race that has been won so far; a mock is a second implementation that nobody tests."""
    wrong = []
    for file in python_files("tests"):
        text = file.read_text(encoding="utf-8")
        patterns = [r"\btime\.sleep\(", r"from time import .*\bsleep\b", r"unittest\.mock", r"\bMagicMock\b"]
        patterns += [] if short(file) in REPLACES else [r"monkeypatch\.setattr"]
        wrong += [
            f"{short(file)}: {pattern}" for pattern in patterns if re.search(pattern, text) and file != Path(__file__)
        ]
    assert wrong == []


def test_nobody_swallows_an_error_without_saying_why() -> None:
    """ruff's BLE001 finds a blind `except`; each that stays gives its reason in the same line."""
    bare = [
        f"{short(file)}:{number}"
        for file in python_files("src", "examples")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if "noqa: BLE001" in line and not re.search(r"noqa: BLE001\s*( - |\()", line)
    ]
    assert bare == []
