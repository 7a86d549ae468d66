"""The repository's own files, read once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_name(file: Path) -> str:
    """`onceward_proof.checker` for its file; a package is named by its `__init__`."""
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


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _running(child)


def definitions(file: Path) -> Iterator[Definition]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, Definition))


def docstrings(file: Path) -> set[int]:
    """The ids of the nodes that are docstrings."""
    owners = (node for node in ast.walk(tree(file)) if isinstance(node, Definition | ast.ClassDef | ast.Module))
    firsts = (node.body[0] for node in owners if node.body)
    return {id(first.value) for first in firsts if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)}


def code_lines(file: Path) -> int:
    """Lines that hold code: no blank line, no comment, no docstring."""
    skipped = docstrings(file)
    nodes = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Constant) and id(node) in skipped]
    said = {number for node in nodes for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    return sum(1 for number, line in lines if number not in said and line.strip() and not line.lstrip().startswith("#"))
