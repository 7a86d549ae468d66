"""Every reason for a park is a member of one enum, with a sentence on what happened and one on what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import onceward
from onceward.protocol import delivery
from onceward.protocol.delivery import Place
from onceward.protocol.reasons import ParkReason

PACKAGE = Path(onceward.__file__).parent
# The texts are in databases and in JSON that programs read.
STORED = (
    "attempts ran out", "sessions lost", "poison", "rejected", "refused", "unknown", "answer is not JSON",
    "effects changed", "two answers", "answered after discard", "foreign commit", "conflict", "outside window",
    "unknown type", "malformed",
)  # fmt: skip


def test_the_texts_that_are_stored_do_not_change() -> None:
    assert tuple(reason.value for reason in ParkReason) == STORED
    assert [ParkReason(text) for text in STORED] == list(ParkReason)


@pytest.mark.parametrize("reason", ParkReason, ids=lambda reason: reason.name)
def test_a_reason_says_in_a_sentence_each_what_happened_and_what_ends_it(reason: ParkReason) -> None:
    for sentence in (reason.what_happened, reason.how_to_find_out, reason.what_ends_it):
        assert re.fullmatch(r"[A-Z`].{20,}\.", sentence)


@pytest.mark.parametrize("reason", ParkReason, ids=lambda reason: reason.name)
def test_every_reason_is_given_somewhere(reason: ParkReason) -> None:
    written = [file for file in PACKAGE.rglob("*.py") if f"ParkReason.{reason.name}" in file.read_text(encoding="utf-8")]
    assert written


def test_no_reason_is_written_as_a_bare_text() -> None:
    """What writes a parked row takes a member, or a member's value: a literal beside it could be misspelt."""
    writers = {"Park", "park_params", "_park_beside"}
    bare = [
        f"{file.name}:{call.lineno}"
        for file in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and (getattr(call.func, "attr", None) or getattr(call.func, "id", None)) in writers
        and any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in call.args)
    ]
    assert bare == []


def test_the_protocol_answers_in_every_place() -> None:
    assert set(delivery._TABLE) == set(Place)
