"""The main job, end to end: real processes, real SIGKILLs, and what is left behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from tests.proof.prove_run import SHIPPED, alive, family, finish, prove, start, write_schedule

from onceward.testing.postgres import sweep_leftovers
from onceward_proof.prove.faults import kills
from onceward_proof.prove.schedule import make_schedule, read_schedule
from onceward_proof.prove.workload import make_orders

ORDERS = 45
VARIANT_KEYS = {
    "name", "orders", "charges", "double_charged_orders", "phantom_charges", "lost_events", "doubled_writes", "parked",
    "predicted_parked", "deliveries", "redeliveries", "dedup_checks", "dedup_hits", "dedup_hit_rate", "faults",
    "wall_seconds", "kills", "kills_of_consumers", "kills_holding",
}  # fmt: skip
SIGNS = {"initdb": "initdb", "clusters": "postgres", "provider": "provider", "workers": "workers.supervisor"}
HARM = ("double_charged_orders", "phantom_charges", "lost_events", "doubled_writes")


def test_two_proves_at_once_of_one_schedule_prove_the_same(tmp_path: Path) -> None:
    """One with a delivery at a time, one with the shipped defaults. The JSON is the public contract.

    Also: the naive consumer under the same faults doubles and loses.
    """
    schedule = make_schedule(make_orders(ORDERS, 11), 11, "pgmq")
    write_schedule(schedule, tmp_path / "schedule.json")
    reports = [tmp_path / "one.json", tmp_path / "two.json"]
    arguments = ["--schedule", str(tmp_path / "schedule.json"), "--html", str(tmp_path / "report.html")]
    running = [start(*arguments, *more, "--json", str(report)) for more, report in zip(((), SHIPPED), reports, strict=True)]
    proofs = [finish(process, report) for process, report in zip(running, reports, strict=True)]
    for proof in proofs:
        assert proof.code == 0, proof.out
        assert set(proof.document) >= {
            "seed", "orders", "queue", "schedule", "verdict", "variants", "threads", "prefetch",
        }  # fmt: skip
        assert proof.document["verdict"] == "proven"
        naive, hardened = proof.variant("naive"), proof.variant("hardened")
        assert not VARIANT_KEYS - set(naive)
        assert naive["double_charged_orders"] > 0
        assert naive["lost_events"] > 0
        assert [hardened[key] for key in HARM] == [0, 0, 0, 0]
        assert hardened["parked"] == hardened["predicted_parked"] == len(schedule.predicted_parked())
        assert hardened["dedup_hits"] > 0
        for variant in (naive, hardened):
            fired = {name: fault["fired"] for name, fault in variant["faults"].items()}
            assert fired == schedule.planned()
            assert not any(fault["unreached"] or fault["unseen"] for fault in variant["faults"].values())
            assert variant["kills"] == kills(fired)
            assert 0 < variant["kills_holding"] <= variant["kills_of_consumers"] < variant["kills"]
    assert [(proof.document["threads"], proof.document["prefetch"]) for proof in proofs] == [(1, 0), (8, 8)]
    assert "8 threads and a prefetch of 8 in each consumer process" in proofs[1].out
    assert "PROVEN" in proofs[0].out
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_naive_alone_proves_nothing(tmp_path: Path) -> None:
    proof = prove(tmp_path / "r.json", "--orders", "25", "--seed", "2", "--variants", "naive")
    assert (proof.code, proof.document["verdict"]) == (3, "inconclusive")
    assert "the hardened variant was not run" in proof.out
    assert read_schedule(Path(proof.document["schedule"])).seed == 2, "the printed schedule can be replayed"


def test_orders_of_the_users_own_are_proven_with(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        "id,amount\n" + "".join(f"ord '{n}' <é>,{n + 1}\n" for n in range(30)), encoding="utf-8"
    )
    proof = prove(tmp_path / "r.json", "--orders-from", str(tmp_path / "mine.csv"), "--seed", "4", "--variants", "hardened")
    hardened = proof.variant("hardened")
    assert [hardened[key] for key in HARM] == [0, 0, 0, 0], proof.out
    assert hardened["orders"] == 30


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--orders", "0"], "--orders"),
        (["--variants", "naive,perfect"], "perfect"),
        (["--queue", "carrier-pigeon"], "carrier-pigeon"),
        (["--orders-from", "no-such.csv"], "no-such.csv"),
        (["--schedule", "no-such.json"], "no-such.json"),
        (["--json", "/no/such/folder/r.json"], "there is no folder"),
        (["--seed", "x"], "--seed"),
        (["--threads", "0"], "--threads"),
        (["--prefetch", "-1"], "--prefetch"),
        (["--ablate", "--threads", "8"], "--ablate runs one delivery at a time"),
        (["--for", "5s", "--prefetch", "8"], "--prefetch"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_two(arguments: list[str], says: str) -> None:
    out, _ = (process := start(*arguments)).communicate(timeout=30)
    assert process.returncode == 2, out
    assert says in out
    assert "Traceback" not in out


@pytest.mark.parametrize("kill_when", ["initdb", "clusters", "provider", "workers"])
def test_nothing_is_left_of_a_killed_prove_after_the_next_start(kill_when: str, tmp_path: Path) -> None:
    process = start("--orders", "400", "--json", str(tmp_path / "r.json"))
    members = _family_when(process.pid, SIGNS[kill_when])
    process.kill()
    process.communicate(timeout=30)
    sweep_leftovers()
    psutil.wait_procs(members, timeout=10)
    assert alive(members) == []


def test_ctrl_c_leaves_nothing_at_once(tmp_path: Path) -> None:
    process = start("--orders", "400", "--json", str(tmp_path / "r.json"))
    members = _family_when(process.pid, SIGNS["workers"])
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    psutil.wait_procs(members, timeout=3)
    assert alive(members) == []
    assert process.returncode == 130, out
    assert "Traceback" not in out
    told = re.search(r"interrupted; the same faults again: --schedule (\S+)", out)
    assert told is not None, out
    assert len(read_schedule(Path(told[1])).orders) == 400


def _family_when(pid: int, sign: str) -> list[psutil.Process]:
    """The whole family, once one of it shows `sign` in its command line."""
    while True:
        members = family(pid)
        for member in members:
            try:
                if any(sign in part for part in member.cmdline()):
                    return family(pid)
            except psutil.NoSuchProcess:
                continue
