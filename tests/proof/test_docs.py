"""The documentation says what is: its tables match their evidence, and the faults that it names are faults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.acceptance.processes import onceward

from onceward.errors import UsageError
from onceward_proof.prove.faults import AIMED, GLOBAL, KILL_RANDOM
from onceward_proof.report.docs import RUNS, TABLES, marked_pages, outdated, refresh, without_provenance
from onceward_proof.report.made import LIBRARY, command_line, core_checksum, to_sentence

ROOT = Path(__file__).resolve().parents[2]
GUARANTEES = ROOT / "docs" / "guarantees.md"
EVIDENCE = ROOT / "docs" / "evidence"


def test_the_tables_are_what_their_evidence_says() -> None:
    texts = [page.read_text(encoding="utf-8") for page in marked_pages(ROOT / "docs")]
    assert [refresh(text, EVIDENCE) for text in texts] == texts, "run `onceward docs refresh`"
    assert sorted(name for text in texts for name in re.findall(r"<!-- begin: ([\w-]+) -->", text)) == sorted(TABLES)


def test_a_table_that_does_not_match_its_evidence_is_noticed() -> None:
    text = GUARANTEES.read_text(encoding="utf-8")
    forged = text.replace("<!-- end: prove -->", "| forged | 0 |\n<!-- end: prove -->")
    assert refresh(forged, EVIDENCE) == text


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


def test_the_core_is_the_one_that_made_the_evidence() -> None:
    """Figures of another core say nothing about this one."""
    assert outdated(EVIDENCE) == [], "make these runs again, then `onceward docs refresh`"


def test_every_kept_run_says_what_it_was_made_with() -> None:
    assert without_provenance(EVIDENCE) == set()
    assert {file.stem for file in EVIDENCE.iterdir()} == set(RUNS)


def _keep(folder: Path, core: str) -> Path:
    facts = {"core": core, "command": "onceward explore"}
    (folder / "explore.json").write_text(json.dumps({"made": facts}), encoding="utf-8")
    return folder


def test_a_run_of_another_core_is_named_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    assert outdated(_keep(tmp_path, core_checksum())) == []
    (found,) = outdated(_keep(tmp_path, "0" * 16))
    assert f"`onceward explore --json {tmp_path}/explore.json`" in found


@pytest.mark.parametrize(
    ("file", "change", "counts"),
    [
        ("protocol/delivery.py", "\nPLANTED = 1\n", True),
        ("inbox.py", "\nPLANTED = 1\n", True),
        ("sql/inbox.sql", "\nSELECT 1\n", True),
        ("migrations/0001_initial.sql", "\nSELECT 1;\n", True),
        ("a_new_module.py", "PLANTED = 1\n", True),
        ("inbox.py", '\n# a comment\n\n"""A docstring."""\n', False),
        ("sql/inbox.sql", "\n-- why: a comment\n", False),
        ("cli.py", "\nPLANTED = 1\n", False),
    ],
)
def test_the_checksum_changes_with_the_core_and_not_with_what_stands_beside_it(
    file: str, change: str, counts: bool, tmp_path: Path
) -> None:
    library = shutil.copytree(LIBRARY, tmp_path / "onceward", ignore=shutil.ignore_patterns("__pycache__"))
    with (library / file).open("a", encoding="utf-8") as changed:
        changed.write(change)
    assert (core_checksum(library) != core_checksum()) is counts


def test_what_a_run_was_made_with_names_no_folder_and_no_file_that_was_written() -> None:
    arguments = [
        "prove",
        "--seed",
        "1",
        "--json",
        "/home/me/r.json",
        "--schedule",
        "/home/me/s.json",
        "--html=/home/me/r.html",
    ]
    assert command_line(arguments) == "onceward prove --seed 1 --schedule s.json"


def test_a_run_says_in_its_json_what_it_was_made_with(tmp_path: Path) -> None:
    done = onceward("explore", "--states", "1000", "--json", str(tmp_path / "explore.json"))
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "explore.json").read_text(encoding="utf-8"))["made"]
    assert list(facts) == ["commit", "date", "machine", "python", "postgres", "command", "core"]
    assert (facts["command"], facts["core"]) == ("onceward explore --states 1000", core_checksum())
    assert facts["core"] in to_sentence(facts)
