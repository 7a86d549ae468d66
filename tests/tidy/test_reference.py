"""The reference page is what the docstrings say now, and it leaves nothing public out."""

from __future__ import annotations

import re

import pytest
from tools.reference import PAGE, RUNNING, reference, with_park_reasons

import onceward
from onceward import ParkReason


@pytest.fixture(scope="module")
def current() -> str:
    return reference()


def test_the_page_is_what_the_docstrings_say(current: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == current, "run .venv/bin/python tools/reference.py"


def test_the_park_reasons_are_what_their_enum_says() -> None:
    page = RUNNING.read_text(encoding="utf-8")
    assert with_park_reasons(page) == page, "run .venv/bin/python tools/reference.py"
    assert all(f"| `{reason.value}` |" in page for reason in ParkReason)


@pytest.mark.parametrize("name", vars(onceward)["__all__"])
def test_every_public_name_has_an_entry(name: str, current: str) -> None:
    """With a docstring, unless it is a constant: its value speaks."""
    entry = re.search(rf"^### `{name}`\n\n```python\n.*?\n```\n(.*?)^##", current, re.MULTILINE | re.DOTALL)
    assert entry is not None
    assert entry[1].strip() or not callable(getattr(onceward, name)), f"{name} has no docstring"
