"""The repository's own files, read once."""

from __future__ import annotations

import ast
from collections.abc import Iterator, KeysView
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "onceward"
PROOF = ROOT / "proof" / "src" / "onceward_proof"
FOLDERS = ("src", "proof/src", "tests", "examples", "bench")
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    return tuple(sorted(file for folder in folders or FOLDERS for file in (ROOT / folder).rglob("*.py")))


@cache
def pages() -> tuple[Path, ...]:
    """The pages that people read: every Markdown file of the repository."""
    folders = (
        ROOT,
        ROOT / ".ci",
        ROOT / "docs",
        ROOT / "docs" / "queues",
        ROOT / "proof",
        ROOT / "tests",
        ROOT / "examples",
    )
    return tuple(sorted(file for folder in folders for file in folder.glob("*.md")))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_name(file: Path) -> str:
    """`onceward_proof.prove.checker` for its file; a package is named by its `__init__`."""
    source = ROOT / "src" if file.is_relative_to(ROOT / "src") else ROOT / "proof" / "src"
    parts = file.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """Every module that the file imports, at its top or later, but not for type checkers only."""
    for node in _running(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(*folders: str) -> dict[str, set[str]]:
    """Each module of the folders, and those of them that it imports: at its top, later, or only for type checkers."""
    files = {module_name(file): file for file in python_files(*folders)}
    return {name: {*_imported(file, files.keys())} - {name} for name, file in files.items()}


def _imported(file: Path, modules: KeysView[str]) -> Iterator[str]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            # `from package import module` needs the module, and of its package nothing that was not there before.
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else node.module for name in inner)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _running(child)


def docstrings(file: Path) -> set[int]:
    """The ids of the nodes that are docstrings."""
    owners = (node for node in ast.walk(tree(file)) if isinstance(node, Definition | ast.ClassDef | ast.Module))
    firsts = (node.body[0] for node in owners if node.body)
    return {id(first.value) for first in firsts if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)}


def code_lines(file: Path) -> int:
    """Lines that hold code: no blank line, no comment, no docstring."""
    skipped = docstrings(file)
    nodes = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Constant) and id(node) in skipped]
    explained = {number for node in nodes for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    return sum(
        1 for number, line in lines if number not in explained and line.strip() and not line.lstrip().startswith("#")
    )
