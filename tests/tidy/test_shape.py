"""Names, sizes and docstrings."""

from __future__ import annotations

import ast
import re

from tests.tidy.sources import (
    FOLDERS,
    PACKAGE,
    ROOT,
    Definition,
    code_lines,
    pages,
    python_files,
    short,
    tree,
)

import onceward

CODE_LINES_MAX = 400
# Longer files that are one idea, each with the reason. It is better for an idea to stand here than to be cut in two.
ONE_IDEA: dict[str, str] = {
    "proof/src/onceward_proof/prove/control.py": "one loop hears, fires and restarts, on state that all three share",
}
OFFERED = vars(onceward)["__all__"]
FORBIDDEN = {"manager", "helper", "helpers", "util", "utils", "common", "base", "service", "processor", "misc"}
# Where the words "exactly once" may stand: the pages that say why nobody can have it, and this rule.
SAYS_WHY_NOT = {
    "ARCHITECTURE.md",
    "README.md",
    "docs/guarantees.md",
    "proof/src/onceward_proof/report/pages/templates/report.html",
    "tests/tidy/test_shape.py",
}
OFFERED = vars(onceward)["__all__"]


def test_a_long_file_says_why_it_is_one() -> None:
    """Counted without docstrings and comments: nobody is to save on what explains."""
    long = {short(file) for file in python_files() if code_lines(file) > CODE_LINES_MAX}
    assert long == {*ONE_IDEA}, "find the second idea in it, or give the reason in ONE_IDEA"


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
    bare += [f"{short(file)}:{name}" for file in PACKAGE.glob("*.py") for name in _bare_public_methods(tree(file))]
    assert bare == []


def _bare_public_methods(module: ast.Module) -> list[str]:
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
    """Exactly-once delivery cannot be had, and a page or a name that claims it would be the first lie of this project."""
    sources = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*")]
    written = [file for file in sources if file.suffix in (".py", ".sql", ".html", ".css")]
    written += [*pages(), ROOT / "pyproject.toml", ROOT / "proof" / "pyproject.toml"]
    claims = {short(file) for file in written if re.search(r"exactly[-_ ]?once", file.read_text("utf-8"), re.IGNORECASE)}
    assert claims - SAYS_WHY_NOT == set()
