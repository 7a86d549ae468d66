"""The documentation says what is: its tables match their evidence, and the faults that it names are faults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onceward.errors import UsageError
from onceward_proof.prove.faults import AIMED, GLOBAL, KILL_RANDOM
from onceward_proof.report.docs import TABLES, refresh

ROOT = Path(__file__).resolve().parents[2]
GUARANTEES = ROOT / "docs" / "guarantees.md"


def test_the_tables_are_what_their_evidence_says() -> None:
    text = GUARANTEES.read_text(encoding="utf-8")
    assert refresh(text, ROOT / "docs" / "evidence") == text, "run `onceward docs refresh`"
    assert set(re.findall(r"<!-- begin: ([\w-]+) -->", text)) == set(TABLES)


def test_a_table_that_does_not_match_its_evidence_is_noticed() -> None:
    text = GUARANTEES.read_text(encoding="utf-8")
    forged = text.replace("<!-- end: prove -->", "| forged | 0 |\n<!-- end: prove -->")
    assert refresh(forged, ROOT / "docs" / "evidence") == text


def test_an_unknown_marker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no table is called 'nonsense'"):
        refresh("<!-- begin: nonsense -->\n<!-- end: nonsense -->", tmp_path)


def test_the_faults_that_the_text_names_are_faults() -> None:
    named = set(
        re.findall(r"`((?:kill|drop|lose|slow|freeze|error|cut)-[a-z-]+\*?)`", GUARANTEES.read_text(encoding="utf-8"))
    )
    known = {*AIMED, *GLOBAL, KILL_RANDOM}
    unknown = [name for name in named if not any(fault.startswith(name.rstrip("*")) for fault in known)]
    assert unknown == []
