"""What is held gets an end: people decide while they are killed, are two, or are wrong; and the judge would see a slip."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.proof.prove_run import Proof, prove, sabotaged, start, write_schedule
from tests.proof.test_page import SCHEDULE, a_result, a_verdict, hardened, naive

from onceward_proof.prove.outcome import judge, summary, why_broken
from onceward_proof.prove.person import REFUSED, STOOD, Ended
from onceward_proof.prove.resolve import (
    KILLED,
    Decision,
    Hardship,
    Resolution,
    Scene,
    Truth,
    find_flaws,
    plan_scenes,
)
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.workload import make_orders
from onceward_proof.report.pages.proof import render, run_again

HELD = {"message-1": "O-3"}
ANNA, BORIS = "anna", "boris"
EASY = Scene(Truth.NOT_CHARGED, frozenset())
SEED = 2  # of its 60 orders, two are held


def test_a_seed_makes_the_same_scenes_and_every_hardship_is_met() -> None:
    orders = [f"O-{n}" for n in range(7)]
    scenes = plan_scenes(orders, 3)
    assert plan_scenes(random.Random(1).sample(orders, 7), 3) == scenes, "in whatever order they are listed"
    assert {scene.truth for scene in scenes.values()} == set(Truth)
    for hardship in Hardship:
        assert sum(hardship in scene.hardships for scene in scenes.values()) == 4
    assert plan_scenes(["O-1"], 3)["O-1"].hardships == set(Hardship), "one that is alone meets all of them"
    assert plan_scenes([], 3) == {}


# ---- one decision stands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deciders", "ended"),
    [
        ([ANNA], [Ended(ANNA, STOOD, "")]),
        ([ANNA], [Ended(ANNA, STOOD, ""), Ended(BORIS, REFUSED, "too late")]),
        ([BORIS], [Ended(ANNA, KILLED, ""), Ended(BORIS, STOOD, "")]),
        ([ANNA], [Ended(ANNA, KILLED, ""), Ended(BORIS, REFUSED, "too late")]),
    ],
)
def test_one_decision_that_its_maker_knows_of_is_right(deciders: list[str], ended: Sequence[Ended]) -> None:
    assert find_flaws(HELD, [Decision("message-1", name) for name in deciders], {"message-1": ended}) == []


@pytest.mark.parametrize(
    ("deciders", "ended", "says"),
    [
        ([ANNA, BORIS], [Ended(ANNA, STOOD, ""), Ended(BORIS, STOOD, "")], "2 decisions are kept"),
        ([ANNA, ANNA], [Ended(ANNA, STOOD, "")], "2 decisions are kept"),
        ([], [Ended(ANNA, REFUSED, "")], "0 decisions are kept"),
        ([ANNA], [Ended(ANNA, STOOD, ""), Ended(BORIS, STOOD, "")], "2 people were told that their decision stands"),
        ([BORIS], [Ended(ANNA, STOOD, ""), Ended(BORIS, KILLED, "")], "0 of these are kept"),
        ([ANNA], [Ended(ANNA, REFUSED, "")], "whose command said that it was refused"),
        ([ANNA], [Ended(ANNA, STOOD, ""), Ended(BORIS, 2, "no such option")], "ended with 2 (no such option)"),
    ],
)
def test_every_other_end_of_a_decision_is_told(deciders: list[str], ended: Sequence[Ended], says: str) -> None:
    flaws = find_flaws(HELD, [Decision("message-1", name) for name in deciders], {"message-1": ended})
    assert any(says in flaw for flaw in flaws), flaws
    assert all(flaw.startswith("O-3: ") for flaw in flaws)


def test_a_decision_about_what_was_not_held_is_told() -> None:
    flaws = find_flaws({}, [Decision("message-9", ANNA)], {})
    assert flaws == ["a decision about message-9, which was not held"]


# ---- what the verdict makes of it ------------------------------------------------------------------------------------


def resolved(flaws: Sequence[str] = (), held: Sequence[str] = ("O-3",), **verdict: Any) -> Result:
    ended = a_result("hardened", a_verdict(charges=4, **verdict))
    return replace(ended, resolution=Resolution(dict.fromkeys(held, EASY), tuple(flaws)))


def test_what_was_held_and_is_ended_is_proven_and_told() -> None:
    assert SCHEDULE.predicted_parked() == {"O-3"}
    results = [naive(), resolved()]
    assert why_broken(results[1]) == []
    assert results[1].resolved == {"O-3"}
    assert "ended by a person: 1" in summary("proven", SCHEDULE, results)
    assert "1 order was held, and then ended by a person" in render(SCHEDULE, results)
    assert run_again(SCHEDULE, results)[0].endswith(" --resolve")
    assert judge([naive(), hardened()]) != ("broken", []), "without people, what is held is held"


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (resolved(parked=("O-3",)), "1 orders are held after people decided (O-3)"),
        (resolved(held=()), "1 orders should be parked and are not (O-3)"),
        (resolved(held=("O-3", "O-1")), "1 orders are parked that the schedule does not predict (O-1)"),
        (replace(resolved(), verdict=a_verdict(charges=3)), "4 orders, each to be charged once, have 3 charges"),
        (resolved(flaws=["O-3: 2 decisions are kept"]), "O-3: 2 decisions are kept"),
    ],
)
def test_what_people_did_not_end_or_ended_twice_is_broken(ended: Result, says: str) -> None:
    verdict, reasons = judge([naive(), ended])
    assert verdict == "broken"
    assert f"hardened: {says}" in reasons


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_every_order_is_charged_once_and_none_is_held_at_the_end(tmp_path: Path) -> None:
    predicted = make_schedule(make_orders(60, SEED), SEED, "pgmq").predicted_parked()
    assert len(predicted) >= 2
    proof = prove(tmp_path / "r.json", "--resolve", "--orders", "60", "--seed", str(SEED))
    assert (proof.code, proof.document["verdict"]) == (0, "proven"), proof.out
    ended, other = proof.variant("hardened"), proof.variant("naive")
    assert (ended["parked"], ended["resolved"], ended["predicted_parked"]) == (0, len(predicted), len(predicted))
    assert ended["charges"] == ended["orders"] == 60
    assert (other["parked"], other["resolved"]) == (0, 0)


def resolve_spoilt(folder: Path, source: Path, seed: int) -> Proof:
    """A run of a few orders of which three are held: one per truth that a person may meet."""
    orders = make_orders(4, seed)
    aimed = tuple(Aimed("error-before-charge", order.id) for order in orders[:3])
    write_schedule(Schedule(seed, "pgmq", tuple(orders), aimed, ()), folder / "schedule.json")
    options = ["--schedule", str(folder / "schedule.json"), "--variants", "hardened"]
    return prove(folder / "r.json", "--resolve", *options, source=source)


def scenes_of(seed: int) -> set[tuple[Truth, frozenset[Hardship]]]:
    held = [order.id for order in make_orders(4, seed)[:3]]
    return {(scene.truth, scene.hardships) for scene in plan_scenes(held, seed).values()}


SETTLE = "    if arguments.did_not_happen:\n        return _settle_as_not_happened(arguments)\n"
SABOTAGES = {
    "a person settles nothing": (
        ("commands/parked_decisions.py", SETTLE, "    return 0\n"),
        "3 orders are held after people decided",
    ),
    "the former key is not looked up": (("sql/decisions.sql", "generation = generation + 1, key =", "key ="),
                                        "1 orders were charged more than once"),
}  # fmt: skip


@pytest.mark.parametrize("what", SABOTAGES)
def test_decisions_that_are_spoilt_are_broken(what: str, tmp_path: Path) -> None:
    overlooked = (Truth.OVERLOOKED, frozenset({Hardship.REDELIVERED}))
    assert overlooked in scenes_of(3), "the one who is wrong decides alone"
    sabotage, says = SABOTAGES[what]
    proof = resolve_spoilt(tmp_path, sabotaged(tmp_path / "scratch", *sabotage), 3)
    assert (proof.code, proof.document["verdict"]) == (1, "broken"), proof.out
    assert any(says in reason for reason in proof.document["reasons"]), proof.out


def test_two_people_of_whom_each_is_told_that_the_decision_stands_are_seen(tmp_path: Path) -> None:
    """The lock on the parked row, and the state that the inbox row must be in, are both taken out."""
    agree = (Truth.CHARGED, frozenset({Hardship.TWO_AT_ONCE, Hardship.REDELIVERED}))
    assert agree in scenes_of(7), "nobody has decided before the two, and the effect's own state refuses neither"
    scratch = sabotaged(tmp_path / "scratch", "sql/decisions.sql", "\n   FOR UPDATE OF p\n", "\n")
    path = scratch / "src" / "onceward" / "sql" / "decisions.sql"
    text = path.read_text(encoding="utf-8")
    reopened = "%(message_id)s AND state = 'parked' AND fingerprint = %(fingerprint)s\nRETURNING token"
    assert reopened in text
    path.write_text(text.replace(reopened, reopened.replace(" AND state = 'parked'", "")), encoding="utf-8")
    proof = resolve_spoilt(tmp_path, scratch, 7)
    assert proof.document["verdict"] == "broken", proof.out
    assert any("people were told that their decision stands" in reason for reason in proof.document["reasons"]), proof.out


@pytest.mark.parametrize("mode", [["--ablate"], ["--for", "30s"], ["--every-syscall"]])
def test_where_nobody_can_decide_resolve_is_refused(mode: list[str]) -> None:
    out, _ = (process := start("--resolve", *mode)).communicate(timeout=30)
    assert process.returncode == 2, out
    assert "leave out --resolve" in out
