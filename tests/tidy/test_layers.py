"""Who may import whom. A module may import only from its own line or those above it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tidy.sources import PACKAGE, ROOT, imports, module_name, python_files, short

LAYERS = (
    ("errors", "message", "callables"),
    ("transport", "protocol", "retry", "events", "statements"),
    ("state", "effect", "delivery", "dispatch", "provider"),
    ("outbox", "numbering", "inbox", "intent", "session", "database", "once", "schema", "logs"),
    ("runtime", "rows", "perform", "outgoing", "lease", "nudge", "upkeep", "rights", "parked"),
    ("health", "signals"),
    ("consumer", "loop", "lane", "relay"),
)
CORE = tuple(name for layer in LAYERS for name in layer)
PURE = (
    "errors",
    "message",
    "callables",
    "transport",
    "protocol",
    "retry",
    "statements",
    "state",
    "effect",
    "delivery",
    "dispatch",
    "provider",
)
OUTSIDE = {"psycopg", "psycopg_pool", "socket", "ssl", "threading", "subprocess", "asyncio", "select", "selectors"}
OUTSIDE |= {"signal", "multiprocessing", "concurrent", "http", "urllib", "sqlite3", "logging", "queue"}
TOOLS = ("cli", "commands", "proof", "testing", "embedded", "transports", "sql", "migrations", "__main__", "__init__")


def _ours(file: Path) -> set[str]:
    """The parts of onceward that a file imports: `message`, `transports`, ..."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("onceward.")}


def test_every_module_of_the_package_has_its_place() -> None:
    there = {entry.stem for entry in PACKAGE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    assert there <= {*CORE, *TOOLS}, "a new module: give it a line in LAYERS and in ARCHITECTURE.md"
    assert {*CORE} <= there


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_only_from_its_own_line_or_above(name: str) -> None:
    line = next(number for number, layer in enumerate(LAYERS) if name in layer)
    allowed = {module for layer in LAYERS[: line + 1] for module in layer}
    assert _ours(PACKAGE / f"{name}.py") & {*CORE, *TOOLS} <= allowed


@pytest.mark.parametrize("name", PURE)
def test_what_decides_does_no_io(name: str) -> None:
    assert {imported.split(".")[0] for imported in imports(PACKAGE / f"{name}.py")} & OUTSIDE == set()


def test_a_transport_knows_only_the_message_the_contract_and_the_errors() -> None:
    for file in (PACKAGE / "transports").glob("*.py"):
        assert _ours(file) & {*CORE, *TOOLS} <= {"message", "transport", "errors"}, short(file)


def test_the_judge_shares_no_code_with_the_accused() -> None:
    judges = [file for file in (PACKAGE / "proof").rglob("*.py") if module_name(file).startswith("onceward.proof.checker")]
    assert judges or not (PACKAGE / "proof" / "command.py").exists()
    for file in judges:
        assert not [name for name in imports(file) if name.split(".")[0] in ("onceward", ".", "payments", "examples")], (
            short(file)
        )


def test_the_provider_shares_no_code_with_the_accused() -> None:
    for file in (PACKAGE / "proof" / "provider").glob("*.py"):
        shared = [name for name in imports(file) if name.startswith("onceward.") and not _is_provider(name)]
        assert not shared, short(file)


def _is_provider(name: str) -> bool:
    return f"{name}.".startswith("onceward.proof.provider.")


def test_the_command_line_imports_at_its_top_only_what_a_plain_install_has() -> None:
    """Drivers, extras and our own loops come when a command runs: `onceward --help` works without them."""
    program = (
        "import sys; from onceward.cli import make_parser; make_parser().format_help();"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('psycopg', 'pgmq', 'rich', 'uvicorn', 'stripe')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_architecture_shows_these_layers() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = text.partition("## Import order")[2].partition("```")[2].partition("```")[0]
    lines = [set(re.findall(r"\w+", line)) for line in block.splitlines()]
    places = {name: [number for number, words in enumerate(lines) if name in words][:1] for name in CORE}
    assert [name for name in CORE if not places[name]] == []
    assert list(CORE) == sorted(CORE, key=lambda name: (places[name], CORE.index(name)))


def test_nobody_imports_the_tests() -> None:
    for file in python_files("src", "examples", "bench"):
        assert not [name for name in imports(file) if name.split(".")[0] == "tests"], short(file)
