"""Each variant fails the way its docstring says: real processes under one schedule; small."""

from __future__ import annotations

import pytest
from tests.proof.prove_run import Proof, prove, start, write_schedule

from onceward_proof.prove.schedule import Aimed, Schedule
from onceward_proof.prove.variants import MODULES, PROCESS_COUNTS, TUTORIAL
from onceward_proof.prove.workload import make_orders

PER_FAULT = 2
FAULTS = ("kill-at-request", "kill-after-charge", "slow-charge", "kill-before-ack-charge", "kill-after-ack-charge")
VARIANTS = ("ack-first", "select-then-act", "textbook", "no-key")


def a_schedule() -> Schedule:
    """A few orders per fault, and none at random: what a variant shows is the doing of its fault."""
    orders = make_orders(16, 1)
    aimed = [Aimed(fault, order.id) for fault, order in zip(FAULTS * PER_FAULT, orders, strict=False)]
    return Schedule(1, "pgmq", tuple(orders), tuple(aimed), ())


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("variants")
    write_schedule(a_schedule(), folder / "schedule.json")
    return prove(folder / "r.json", "--schedule", str(folder / "schedule.json"), "--variants", ",".join(VARIANTS))


def test_ack_first_loses(proof: Proof) -> None:
    assert proof.variant("ack-first")["lost_events"] >= 2 * PER_FAULT, proof.out


def test_select_then_act_charges_twice(proof: Proof) -> None:
    assert proof.variant("select-then-act")["double_charged_orders"] > PER_FAULT, "a crash, and two at the same time"


def test_textbook_loses_the_charge_and_never_charges_twice(proof: Proof) -> None:
    textbook = proof.variant("textbook")
    assert textbook["lost_events"] >= 2 * PER_FAULT, proof.out
    assert textbook["double_charged_orders"] == textbook["doubled_writes"] == 0


def test_no_key_charges_twice_only_after_a_crash(proof: Proof) -> None:
    no_key = proof.variant("no-key")
    assert no_key["double_charged_orders"] == PER_FAULT, "the INSERT stops the second worker, not the second charge"
    assert no_key["doubled_writes"] == no_key["lost_events"] == 0


def test_without_naive_and_hardened_nothing_is_proven(proof: Proof) -> None:
    assert (proof.code, proof.document["verdict"]) == (3, "inconclusive")
    assert [variant["name"] for variant in proof.document["variants"]] == list(VARIANTS)
    assert not any("ack-first" in reason for reason in proof.document["reasons"]), "what it cannot reach is its own matter"


def test_an_unknown_variant_is_answered_with_the_list() -> None:
    out, _ = (process := start("--variants", "naive,perfect")).communicate(timeout=30)
    assert process.returncode == 2, out
    assert "perfect" in out
    assert all(name in " ".join(out.split()) for name in PROCESS_COUNTS)


def test_every_variant_but_hardened_is_a_module_of_the_service() -> None:
    assert {*PROCESS_COUNTS} == {*MODULES, "hardened", TUTORIAL}
