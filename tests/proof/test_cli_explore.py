"""`onceward explore`, black-box: exit codes, JSON, the planted bugs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.processes import onceward, refused


def test_explore_writes_its_evidence(tmp_path: Path) -> None:
    file = tmp_path / "explored.json"
    done = onceward("explore", "--states", "100000", "--json", str(file))
    assert done.returncode == 0, done.stderr
    evidence = json.loads(file.read_text(encoding="utf-8"))
    assert evidence["states"] >= 100_000
    assert evidence["seconds"] < 60
    assert evidence["violations"] == []
    assert evidence["passages"]
    for passage in evidence["passages"]:
        assert all(evidence["bound"][name] <= number for name, number in passage["bound"].items()), "no passage falls short"
    assert "2 workers, 2 messages" in done.stdout


def test_a_planted_bug_is_told_as_a_story() -> None:
    done = onceward("explore", "--planted", "in-flight-acked")
    assert done.returncode == 0, done.stderr
    assert "    6. worker 2 acknowledges A" in done.stdout


def test_an_unknown_planted_bug_is_refused_with_the_list() -> None:
    refused(onceward("explore", "--planted", "nothing-known"), "fresh-key")


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    refused(onceward("explore", "--json", str(tmp_path / "none" / "explored.json")), "there is no folder")
