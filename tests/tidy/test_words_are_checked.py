"""A misspelt word of the protocol is found by the type checker, before any test runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.tidy.sources import ROOT

PROGRAM = """\
from typing import assert_never
from onceward import ParkReason, TakeResult
from onceward.protocol import words as p
from onceward.protocol.delivery import Place, State
from onceward.transport import Settlement

state = State("effectful")
"""
MISTAKES = {
    "place": "state._replace(at=Place.HANDELING)",
    "place as text": 'state._replace(at="handling")',
    "kind": 'p.Raised(p.RaisedKind.DEFERED, "x")',
    "kind as text": 'p.Raised("deferred", "x")',
    "reason": "p.Park(ParkReason.REJECT)",
    "reason as text": 'p.Park("rejected")',
    "interruption": "p.Interrupt(p.Interruption.LEASE_LOSED)",
    "fence": 'p.Park(ParkReason.REJECTED, "", "besides")',
    "shape": 'State("transactionel")',
    "settlement": 'Settlement("acked")',
    "case left out": """\
def settled(result: TakeResult) -> bool:
    match result:
        case TakeResult.TAKEN | TakeResult.DUPLICATE | TakeResult.CONFLICT | TakeResult.OUTSIDE_WINDOW:
            return True
        case _:
            assert_never(result)""",
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says of all of them at once: it takes longer to start than to check."""
    file = tmp_path_factory.mktemp("mistakes") / "mistakes.py"
    file.write_text(PROGRAM + "\n".join(MISTAKES.values()) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()


@pytest.mark.parametrize("what", MISTAKES)
def test_a_misspelt_word_is_found(what: str, complaints: list[str]) -> None:
    first = PROGRAM.count("\n") + sum(
        mistake.count("\n") + 1 for mistake in list(MISTAKES.values())[: [*MISTAKES].index(what)]
    )
    lines = range(first + 1, first + MISTAKES[what].count("\n") + 2)
    assert [text for text in complaints if any(f"mistakes.py:{line}: error" in text for line in lines)] != [], complaints


def test_what_is_spelt_well_is_not_complained_of(complaints: list[str]) -> None:
    lines = {int(text.split(":")[1]) for text in complaints if ": error" in text}
    assert min(lines) > PROGRAM.count("\n")
