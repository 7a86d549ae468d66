"""The documentation says what is: its tables match their evidence, and the faults that it names are faults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.processes import onceward

from onceward.errors import UsageError
from onceward_proof.prove.faults import LEG_OF
from onceward_proof.queue_settings.rows import HARMS
from onceward_proof.report.docs import RUNS, TABLES, marked_pages, missing, outdated, refresh, without_provenance
from onceward_proof.report.kept_runs import BROKERS, QUEUES
from onceward_proof.report.made import LIBRARY, command_line, core_checksum, to_sentence
from onceward_proof.workers.setting import QUEUE_NAMES

ROOT = Path(__file__).resolve().parents[2]
GUARANTEES = ROOT / "docs" / "guarantees.md"
EVIDENCE = ROOT / "docs" / "evidence"


def test_the_tables_are_what_their_evidence_says() -> None:
    texts = [page.read_text(encoding="utf-8") for page in marked_pages(ROOT / "docs")]
    assert [refresh(text, EVIDENCE) for text in texts] == texts, "run `onceward docs refresh`"
    assert {name for text in texts for name in re.findall(r"<!-- begin: ([\w-]+) -->", text)} == set(TABLES)


def test_a_table_that_does_not_match_its_evidence_is_noticed() -> None:
    text = GUARANTEES.read_text(encoding="utf-8")
    forged = text.replace("<!-- end: prove -->", "| forged | 0 |\n<!-- end: prove -->")
    assert refresh(forged, EVIDENCE) == text


def test_an_unknown_marker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no table is called 'nonsense'"):
        refresh("<!-- begin: nonsense -->\n<!-- end: nonsense -->", tmp_path)


def test_the_faults_that_the_text_names_are_faults() -> None:
    named = set(
        re.findall(
            r"`((?:kill|drop|lose|slow|freeze|error|cut)-[a-z-]+\*?|redrive)`", GUARANTEES.read_text(encoding="utf-8")
        )
    )
    unknown = [name for name in named if not any(fault.startswith(name.rstrip("*")) for fault in LEG_OF)]
    assert unknown == []
    assert {"kill-broker", "cut-at-ack-charge", "cut-at-ack-ledger", "redrive"} <= named


def test_the_core_is_the_one_that_made_the_evidence() -> None:
    """Figures of another core, or of another adapter, say nothing about this one."""
    assert missing(EVIDENCE) + outdated(EVIDENCE) == [], "make these runs again, then `onceward docs refresh`"


def test_every_kept_run_says_what_it_was_made_with() -> None:
    assert without_provenance(EVIDENCE) == set()
    assert {file.stem for file in EVIDENCE.iterdir()} <= set(RUNS)


def _keep(folder: Path, core: str, run: str = "explore", **more: Any) -> Path:
    facts = {
        "core": core, "command": f"onceward {run}", "date": "2026-11-22", "commit": "0123", "python": "3.11.7",
        "postgres": "15.18", "machine": {"cores": 2, "memory_gb": 25.3, "os": "Linux x86_64"},
    }  # fmt: skip
    (folder / f"{run}.json").write_text(json.dumps({"made": facts} | more), encoding="utf-8")
    return folder


def test_a_run_of_another_core_is_named_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    assert outdated(_keep(tmp_path, core_checksum())) == []
    (found,) = outdated(_keep(tmp_path, "0" * 16))
    assert f"`onceward explore --json {tmp_path}/explore.json`" in found


def test_a_run_that_is_not_kept_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    assert len(missing(tmp_path)) == len(RUNS)
    assert len(missing(_keep(tmp_path, core_checksum()))) == len(RUNS) - 1
    command = "onceward prove --queue-settings --queue kafka --orders 60 --seed 7"
    assert f"`{command} --json {tmp_path}/queue-settings-kafka.json`" in "".join(missing(tmp_path))
    page = refresh("<!-- begin: broker-settings -->\n<!-- end: broker-settings -->", tmp_path)
    assert page.count("not made yet") == len(BROKERS)
    assert f"queue-settings-kafka is not made yet: `{command}`" in page


def test_the_runs_that_are_kept_are_of_every_queue() -> None:
    assert QUEUES == QUEUE_NAMES
    assert {run for runs, _ in TABLES.values() for run in runs} == set(RUNS)


def _a_proof(queue: str, doubled: int) -> dict[str, Any]:
    harm = dict.fromkeys(HARMS, 0)
    counts = {"kills": 61, "parked": 1, "predicted_parked": 1}
    variants = [
        {"name": "naive", **counts, **harm, "double_charged_orders": doubled},
        {"name": "hardened", **counts, **harm},
    ]
    return {"queue": queue, "orders": 1000, "seed": 1, "verdict": "proven", "variants": variants}


def test_the_table_of_brokers_has_a_row_for_each_that_is_made_and_a_command_for_each_that_is_not(tmp_path: Path) -> None:
    for queue, doubled in (("sqs", 1200), ("kafka", 7)):
        _keep(tmp_path, "0" * 16, f"prove-{queue}", **_a_proof(queue, doubled))
    page = refresh("<!-- begin: brokers -->\n<!-- end: brokers -->", tmp_path)
    assert "| sqs | 1,000 | 61 | 1,200 · 0 · 0 | 0 · 0 · 0 | 1 (1) | proven |" in page
    assert "| kafka | 1,000 | 61 | 7 · 0 · 0 | 0 · 0 · 0 | 1 (1) | proven |" in page
    assert "- `onceward prove --queue kafka --orders 1000 --seed 1`: proven." in page
    assert "- sqs, kafka: Made on 2026-11-22" in page
    assert page.count("not made yet") == 3


@pytest.mark.parametrize(("changed", "outdates"), [("kafka", {"kafka"}), ("rabbitmq", {"rabbitmq"})])
def test_an_adapter_counts_in_the_runs_on_its_own_queue(changed: str, outdates: set[str], tmp_path: Path) -> None:
    library = shutil.copytree(LIBRARY, tmp_path / "onceward", ignore=shutil.ignore_patterns("__pycache__"))
    with (library / "transports" / changed / "source.py").open("a", encoding="utf-8") as adapter:
        adapter.write("\nPLANTED = 1\n")
    assert {queue for queue in QUEUES if core_checksum(library, queue) != core_checksum(queue=queue)} == outdates


def test_a_run_of_another_adapter_is_named(tmp_path: Path) -> None:
    now = core_checksum(queue="kafka")
    assert now != core_checksum()
    assert outdated(_keep(tmp_path, now, "prove-kafka", queue="kafka")) == []
    (found,) = outdated(_keep(tmp_path, core_checksum(), "prove-kafka", queue="kafka"))
    assert f"the core is now {now}" in found


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
