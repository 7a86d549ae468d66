"""One delivery and one relay pass, killed at each of their system calls; and COMMITs that nobody knows the outcome of."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.proof.prove_run import KEY_PER_CALL, prove, sabotaged, start

from onceward_proof.sweep.ambiguous import AmbiguousCommit
from onceward_proof.sweep.run import EXIT_CODES, SubjectSweep, Sweep, Verdict, print_sweep

NO_HARM = {"doubled": 0, "lost": 0}


@pytest.fixture
def _strace() -> None:
    if shutil.which("strace") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have strace")
        pytest.skip("no strace here")


@pytest.mark.usefixtures("_strace")
def test_no_system_call_is_a_bad_moment_to_die_and_no_commit_is_one_to_be_cut_at(tmp_path: Path) -> None:
    proof = prove(tmp_path / "r.json", "--every-syscall")
    assert proof.code == 0, proof.out
    assert (proof.document["verdict"], proof.document["ok"], proof.document["unreached"]) == ("held", True, 0)
    assert "HELD" in proof.out
    assert "of the one thread that does the work" in " ".join(proof.out.split())
    swept = proof.document["syscalls"]
    assert set(swept) == {"consumer", "ledger", "relay"}
    for subject in swept.values():
        assert {name: subject[name] for name in NO_HARM} == NO_HARM
        assert (subject["kills"], subject["unreached"]) == (subject["calls"], 0)
        assert sum(subject["by_call"].values()) == subject["kills"]
    assert swept["consumer"]["kills"] > 25
    assert {"consumer.claimed", "effect.intended", "effect.answered", "effect.recorded", "consumer.finishing"} <= set(
        swept["consumer"]["after_step"]
    )
    assert swept["relay"]["sent_again"] > 0, "killed between publish and delete: sent twice, under one id"
    assert set(proof.document["ambiguous"]) == {"effectful", "transactional"}
    for cuts in proof.document["ambiguous"].values():
        assert cuts["before"] == NO_HARM | {"committed": False, "settlement": "leave", "redelivery": "handled", "ok": True}
        assert cuts["after"] == NO_HARM | {"committed": True, "settlement": "leave", "redelivery": "duplicate", "ok": True}


SWEEPS: dict[Verdict, tuple[Sweep, int, bool]] = {
    "held": (Sweep([SubjectSweep("consumer")], []), 0, True),
    "broken": (Sweep([SubjectSweep("consumer", unreached=2), SubjectSweep("relay", lost=("O-1",))], []), 1, False),
    "incomplete": (Sweep([SubjectSweep("consumer"), SubjectSweep("relay", unreached=2)], []), 3, False),
}


@pytest.mark.parametrize("verdict", SWEEPS)
def test_the_word_the_json_and_the_exit_code_of_a_sweep_agree(verdict: Verdict) -> None:
    """That not every call was reached was once said beside a green HELD, and an `ok` that was true."""
    sweep, code, ok = SWEEPS[verdict]
    document = sweep.to_json()
    assert (sweep.verdict, EXIT_CODES[sweep.verdict]) == (verdict, code)
    assert (document["verdict"], document["ok"]) == (verdict, ok)
    assert document["unreached"] == sum(each["unreached"] for each in document["syscalls"].values())
    assert document["ok"] == (code == 0)
    console = Console(file=StringIO(), width=200)
    print_sweep(console, sweep)
    assert isinstance(console.file, StringIO)
    assert f"{verdict.upper()} 0 kills" in console.file.getvalue()
    assert ("2 calls could not be reached again" in console.file.getvalue()) == (verdict == "incomplete")


@pytest.mark.parametrize("name", ["hits", "settlement", "redelivery", "written", "doubled", "lost"])
def test_a_cut_commit_that_does_not_come_out_right_breaks_the_sweep(name: str) -> None:
    good = AmbiguousCommit("effectful", "after", 1, True, "leave", "duplicate", 0, 0, 0)
    assert Sweep([], [good]).verdict == "held"
    wrong: dict[str, Any] = {"hits": 0, "settlement": "ack", "redelivery": "handled", "written": 1, "doubled": 1, "lost": 1}
    assert Sweep([], [replace(good, **{name: wrong[name]})]).verdict == "broken"


@pytest.mark.usefixtures("_strace")
def test_the_sweep_finds_a_key_made_per_call_and_an_id_made_per_send(tmp_path: Path) -> None:
    source = sabotaged(tmp_path / "copy", *KEY_PER_CALL)
    outgoing = source / "src" / "onceward" / "outbox.py"
    text = outgoing.read_text(encoding="utf-8")
    assert text.count('        id=row["id"],\n') == 1
    outgoing.write_text(text.replace('        id=row["id"],\n', ""), encoding="utf-8")
    proof = prove(tmp_path / "r.json", "--every-syscall", source=source)
    assert proof.code == 1, proof.out
    assert proof.document["syscalls"]["consumer"]["doubled"] > 0
    assert proof.document["syscalls"]["relay"]["doubled"] > 0
    assert proof.document["syscalls"]["ledger"]["doubled"] == 0
    assert "recvfrom, after effect.intended" in " ".join(proof.out.split())


def test_without_strace_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    proof = prove(tmp_path / "r.json", "--every-syscall")
    assert proof.code == 2, "the environment, as the help says"
    assert "apt-get install strace" in proof.out


def test_where_tracing_is_forbidden_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "strace"
    fake.write_text(
        "#!/bin/sh\necho 'strace: test_ptrace_get_syscall_info: PTRACE_TRACEME: Operation not permitted' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    proof = prove(tmp_path / "r.json", "--every-syscall")
    assert proof.code == 2
    assert "Operation not permitted" in proof.out
    assert "SYS_PTRACE" in proof.out


@pytest.mark.parametrize("more", [["--orders", "5"], ["--variants", "naive"], ["--for", "5s"], ["--html", "r.html"]])
def test_what_the_sweep_would_not_do_is_refused(more: list[str]) -> None:
    out, _ = (process := start("--every-syscall", *more)).communicate(timeout=30)
    assert process.returncode == 2, out
    assert more[0] in out
    assert "Traceback" not in out
