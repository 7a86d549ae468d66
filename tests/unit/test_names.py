"""What `onceward` offers is one list; and a former name says what it is called now."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onceward
from onceward.former_names import MODULES, NAMES, FormerNames, install

OFFERED: list[str] = vars(onceward)["__all__"]


def _imported_for_type_checkers() -> list[tuple[str, str]]:
    """(module, name) of each import that only type checkers run."""
    tree = ast.parse(Path(str(onceward.__file__)).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), alias.name) for node in imports for alias in node.names]


def test_type_checkers_and_python_are_told_the_same() -> None:
    for_checkers = _imported_for_type_checkers()
    assert sorted(name for _, name in for_checkers) == sorted({*OFFERED} - {"__version__"})
    for module, name in for_checkers:
        assert getattr(onceward, name) is getattr(importlib.import_module(module), name)


def test_whatever_is_offered_can_be_imported_with_a_star() -> None:
    names: dict[str, Any] = {}
    exec("from onceward import *", names)  # noqa: S102 - that is the question
    assert {*OFFERED} <= {*names}
    assert {*OFFERED} <= {*dir(onceward)}


def test_to_import_onceward_imports_no_driver_and_none_of_its_modules() -> None:
    program = "import sys, onceward; print(*(name for name in sys.modules if name.startswith(('onceward.', 'psycopg'))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["onceward.former_names"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_was_renamed_says_how_it_is_called_now(name: str) -> None:
    with pytest.raises(AttributeError, match=f"onceward.{name} is now {NAMES[name]}"):
        getattr(onceward, name)
    with pytest.raises(ImportError, match=f"onceward.{name} is now {NAMES[name]}"):
        exec(f"from onceward import {name}")  # noqa: S102 - that is the question
    assert hasattr(onceward, NAMES[name].removeprefix("onceward."))
    assert not hasattr(onceward, name)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_has_moved_says_where_it_is_now(name: str) -> None:
    statements = [f"import onceward.{name}", f"from onceward.{name} import Anything", f"import onceward.{name}.inner"]
    statements += [] if name in OFFERED else [f"from onceward import {name}"]
    for statement in statements:
        with pytest.raises(ImportError) as raised:
            exec(statement)  # noqa: S102 - that is the question
        assert str(raised.value) == f"onceward.{name} is now {MODULES[name]}"
    if MODULES[name].startswith("onceward."):
        importlib.import_module(MODULES[name])


def test_a_name_that_never_was_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'onceward' has no attribute 'Inbocks'"):
        vars(onceward)["__getattr__"]("Inbocks")
    with pytest.raises(ImportError, match="cannot import name 'Inbocks'"):
        exec("from onceward import Inbocks")  # noqa: S102 - that is the question
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'onceward\.inbocks'"):
        importlib.import_module("onceward.inbocks")


def test_the_finder_is_asked_last_and_only_once() -> None:
    for _ in range(2):
        install()
    assert sys.meta_path.count(FormerNames) == 1
    assert FormerNames.find_spec("elsewhere.rows") is None
