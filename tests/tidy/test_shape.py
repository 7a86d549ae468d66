"""Sizes, names and words. Each list of exceptions may only shrink."""

from __future__ import annotations

import ast
import re

import pytest
from tests.tidy.sources import FOLDERS, PACKAGE, ROOT, Definition, code_lines, definitions, python_files, short, tree

import onceward

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
LONG_FUNCTIONS: dict[str, int] = {}
FORBIDDEN = {"manager", "helper", "helpers", "util", "utils", "common", "base", "service", "processor", "misc"}
OFFERED = vars(onceward)["__all__"]
EXPLAINED_IN = ("README.md", "ARCHITECTURE.md", "docs/", "proof/src/onceward_proof/pages/templates/", "tests/tidy/")


def test_files_are_short() -> None:
    """Lines of code, not of docstrings and comments: nobody is to save on what explains, or to cut an idea in two."""
    assert {short(file): code_lines(file) for file in python_files() if code_lines(file) > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{short(file)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in python_files()
        for node in definitions(file)
    }
    long = {name: count for name, count in lengths.items() if count > LONG_FUNCTIONS.get(name, FUNCTION_LINES_MAX)}
    assert long == {}
    assert [name for name in LONG_FUNCTIONS if lengths.get(name, 0) <= FUNCTION_LINES_MAX] == []


def test_nothing_is_named_after_nothing() -> None:
    named = [(short(file), file.stem) for file in python_files()]
    named += [
        (f"{short(file)}:{node.lineno}", node.name)
        for file in python_files()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef)
    ]
    assert [place for place, name in named if _words(name) & FORBIDDEN] == []


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("name", ["JobManager", "utils", "BaseSource", "test_helpers", "HTTPService"])
def test_the_name_rule_can_fail(name: str) -> None:
    assert _words(name) & FORBIDDEN


def test_every_module_and_what_it_offers_says_what_it_is() -> None:
    bare = [
        short(file) for file in python_files("src", "tests") if not ast.get_docstring(tree(file)) and _has_code(tree(file))
    ]
    for file in PACKAGE.rglob("*.py"):
        offered = [node for node in tree(file).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        bare += [f"{short(file)}:{node.name}" for node in offered if not ast.get_docstring(node)]
    assert bare == []


def _has_code(module: ast.Module) -> bool:
    return len(module.body) > 3


def test_every_public_name_says_what_becomes_true() -> None:
    bare = []
    for name in OFFERED:
        value = getattr(onceward, name)
        if callable(value) and not getattr(value, "__doc__", None):
            bare.append(name)
    bare += [
        f"{short(file)}:{name}" for file in PACKAGE.glob("*.py") for name in _bare_public_methods(file.stem, tree(file))
    ]
    assert bare == []


def _bare_public_methods(stem: str, module: ast.Module) -> list[str]:
    """Methods and functions of what `onceward` itself offers, without a docstring (`__enter__` and its like aside)."""
    offered = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name in OFFERED]
    methods = [(node.name, item) for node in offered for item in node.body if isinstance(item, Definition)]
    functions = [("", node) for node in module.body if isinstance(node, Definition) and node.name in OFFERED]
    return [
        f"{owner}.{item.name}".strip(".")
        for owner, item in [*methods, *functions]
        if not item.name.startswith("_") and not ast.get_docstring(item)
    ]


def test_no_name_or_page_claims_exactly_once() -> None:
    """Exactly-once delivery cannot be had. The words may stand only where that is said, in the same paragraph."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*"), ROOT / "pyproject.toml"]
    written = [file for file in files if file.suffix in (".py", ".md", ".sql", ".toml", ".html", ".jinja", ".j2")]
    paragraphs = [(short(file), part) for file in written for part in file.read_text(encoding="utf-8").split("\n\n")]
    assert [name for name, part in paragraphs if _claims(part) and not _explains(name, part)] == []


def _claims(paragraph: str) -> bool:
    return re.search(r"exactly[-_ ]?once", paragraph, re.IGNORECASE) is not None


def _explains(name: str, paragraph: str) -> bool:
    denied = re.search(r"\b(impossible|cannot|can not|no|not|never)\b", paragraph, re.IGNORECASE)
    return name.startswith(EXPLAINED_IN) and denied is not None


def test_locks_name_no_host() -> None:
    for lock in ROOT.glob("*.lock"):
        assert "://" not in lock.read_text(encoding="utf-8"), lock.name
