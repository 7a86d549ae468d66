"""Who may import whom. A module may import only from its own line or those above it."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests.tidy.sources import PACKAGE, PROOF, ROOT, import_graph, imports, python_files, short

PURE = ("errors", "message", "callables", "transport", "retry", "statements", "provider")
OUTSIDE = {"psycopg", "psycopg_pool", "socket", "ssl", "threading", "subprocess", "asyncio", "select", "selectors"}
OUTSIDE |= {"signal", "multiprocessing", "concurrent", "http", "urllib", "sqlite3", "logging", "queue"}
# What has no line of its own: tools, which may know all of the library, and folders whose modules are named one by one.
TOOLS = (
    "cli",
    "commands",
    "queue_urls",
    "doctor",
    "testing",
    "transports",
    "sql",
    "migrations",
    "protocol",
    "__main__",
    "__init__",
)


def _layers() -> tuple[tuple[str, ...], ...]:
    """The lines of ARCHITECTURE.md, each with the modules that it names."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = text.partition("## Import order")[2].partition("```")[2].partition("```")[0]
    return tuple(tuple(line.partition("  ")[0].split(" · ")) for line in block.strip().splitlines())


LAYERS = _layers()
CORE = tuple(name for layer in LAYERS for name in layer)


def _file(name: str) -> Path:
    return PACKAGE / f"{name.replace('.', '/')}.py"


def _ours(file: Path) -> set[str]:
    """The parts of onceward that a file imports: `message`, `protocol.words`, `transports`, ..."""
    named = {name.removeprefix("onceward.") for name in imports(file) if name.startswith("onceward.")}
    return {part for name in named for part in (name.split(".")[0], ".".join(name.split(".")[:2]))} & {*CORE, *TOOLS}


def test_every_module_of_the_package_has_its_place() -> None:
    modules = {entry.stem for entry in PACKAGE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    modules |= {f"protocol.{entry.stem}" for entry in (PACKAGE / "protocol").glob("*.py")} - {"protocol.__init__"}
    assert modules <= {*CORE, *TOOLS}, 'a new module: give it a line under "Import order" in ARCHITECTURE.md'
    assert {*CORE} <= modules
    assert len(CORE) == len({*CORE})


@pytest.mark.parametrize("name", CORE)
def test_a_module_imports_only_from_lines_above_its_own(name: str) -> None:
    line = next(number for number, layer in enumerate(LAYERS) if name in layer)
    above = {module for layer in LAYERS[:line] for module in layer}
    assert _ours(_file(name)) - {"protocol"} <= above


def test_no_two_modules_import_each_other() -> None:
    """Neither directly nor in a circle, in both distributions; an import for the type checker alone counts, too."""
    graph = import_graph("src", "proof/src")
    assert len(graph) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("name", [*PURE, *(name for name in CORE if name.startswith("protocol."))])
def test_what_decides_does_no_io(name: str) -> None:
    assert {imported.split(".")[0] for imported in imports(_file(name))} & OUTSIDE == set()


def test_a_transport_knows_only_the_message_the_contract_and_the_errors() -> None:
    """And the form of a message on its queue, where two transports share that."""
    for file in (PACKAGE / "transports").glob("*.py"):
        assert _ours(file) - {"transports"} <= {"message", "transport", "errors"}, short(file)
        shared = {name for name in imports(file) if name.startswith("onceward.transports.")}
        assert all(name.split(".")[2].endswith("_wire") for name in shared), short(file)


def test_the_library_knows_nothing_of_the_proof() -> None:
    files = [*PACKAGE.rglob("*.py"), *(file for file in python_files("tests") if "proof" not in file.parts)]
    assert [short(file) for file in files if any(name.split(".")[0] == "onceward_proof" for name in imports(file))] == []


def test_the_judge_shares_no_code_with_the_accused() -> None:
    assert _shared(PROOF / "prove" / "checker.py", "onceward", "payments", "examples", ".") == []


def test_the_provider_shares_no_code_with_the_accused() -> None:
    assert [name for file in (PROOF / "provider").glob("*.py") for name in _shared(file, "onceward")] == []


def _shared(file: Path, *packages: str) -> list[str]:
    return [f"{short(file)}: {name}" for name in imports(file) if name.split(".")[0] in packages]


def test_the_command_line_imports_at_its_top_only_what_a_plain_install_has() -> None:
    """Drivers, extras and our own loops come when a command runs: `onceward --help` works without them."""
    program = (
        "import sys; from onceward.cli import make_parser; make_parser().format_help();"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('psycopg', 'pgmq', 'rich', 'uvicorn', 'stripe')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_nobody_imports_the_tests() -> None:
    for file in python_files("src", "proof/src", "examples", "bench"):
        assert not [name for name in imports(file) if name.split(".")[0] == "tests"], short(file)
