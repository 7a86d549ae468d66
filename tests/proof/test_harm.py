"""What each fault did: to the orders that it alone struck, and to whom it is expected to do it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.proof.prove_run import Proof, prove, write_schedule

from onceward_proof.prove.checker import Evidence, Verdict
from onceward_proof.prove.checker import judge as check
from onceward_proof.prove.control import Controller
from onceward_proof.prove.faults import AIMED, GLOBAL, KILL_RANDOM, Boundary, struck
from onceward_proof.prove.harm import RESENT, became, struck_alone
from onceward_proof.prove.live import Counts, LiveWorker
from onceward_proof.prove.outcome import judge, variant_json
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.variants import PROCESS_COUNTS
from onceward_proof.prove.workload import make_orders
from onceward_proof.report.docs import faults_table
from onceward_proof.workers.reports import Note, Report

PER_FAULT = 2
VARIANTS = ("naive", "resend", "ack-first", "hardened")
CALM = replace(check(Evidence({}, (), {}, {}, frozenset())), orders=3)
HARMED = replace(CALM, double_charged=("A",), lost_first_hop=("B",))


def a_result(variant: str, verdict: Verdict, alone: dict[str, frozenset[str]] | None = None) -> Result:
    return Result(variant, verdict, Counts(fired=Counter()), {}, frozenset(), True, 1.0, alone=alone or {})


def test_an_order_that_bore_a_second_fault_or_met_a_random_one_is_laid_at_none() -> None:
    aimed = (Aimed("slow-charge", "A"), Aimed("slow-charge", "B"), Aimed("kill-after-charge", "C"))
    schedule = Schedule(1, "pgmq", (), (*aimed, Aimed("lose-ack-charge", "C")), ())
    assert struck_alone(schedule, {"B"}) == {"slow-charge": {"A"}}


def test_the_first_order_on_a_connection_that_a_servers_end_has_cut_is_not_laid_at_its_own_fault() -> None:
    """An idle worker has nothing in hand then; it finds out in the middle of its next order."""
    controller = Controller(Schedule(1, "pgmq", (), (), ()), {}, {})
    worker = LiveWorker(7, "charge", 0, cut=True)
    for order in ("A", "B"):
        controller._note(Report(Note.RECEIVED, message_type="order.placed", order=order), worker)
    assert controller.also_struck == {"A"}


def test_an_order_counts_as_its_worst_harm() -> None:
    verdict = replace(CALM, double_charged=("A",), doubled_writes=("A", "B"), parked=("C",))
    assert became(verdict, {"A", "B", "C", "D"}) == {"charged twice": 1, "lost": 0, "booked twice": 1, "held": 1}


def test_a_short_run_has_an_order_for_each_fault_alone() -> None:
    for seed in range(20):
        assert set(make_schedule(make_orders(60, seed), seed, "pgmq").alone()) == set(AIMED)


@pytest.mark.parametrize("fault", RESENT)
def test_a_resending_client_that_a_lost_confirmation_doubles_proves_leg_1(fault: str) -> None:
    verdict = replace(CALM, double_charged=("A",), doubled_writes=("B",), lost_first_hop=("C",))
    order = "A" if fault == "lose-publish-ack-placed" else "B"
    resend = a_result("resend", verdict, {fault: frozenset({order})})
    assert judge([a_result("naive", HARMED), resend, a_result("hardened", CALM)]) == ("proven", [])


def test_a_resending_client_that_no_lost_confirmation_doubles_proves_nothing() -> None:
    """However much else was doubled there: by a consumer that was killed, say."""
    alone = {"kill-after-charge": frozenset({"A"}), "lose-publish-ack-placed": frozenset({"B"})}
    verdict, reasons = judge(
        [a_result("naive", HARMED), a_result("resend", HARMED, alone), a_result("hardened", CALM)],
    )
    assert verdict == "inconclusive"
    assert reasons == ["resend: no order was doubled by a lost confirmation, so the faults of leg 1 prove nothing"]


def test_where_nobody_resends_leg_1_is_not_asked_for() -> None:
    assert judge([a_result("naive", HARMED), a_result("hardened", CALM)]) == ("proven", [])


def test_every_fault_says_whom_it_harms_or_why_it_is_there() -> None:
    for fault in AIMED.values():
        assert set(fault.harms) <= set(PROCESS_COUNTS)
        assert bool(fault.why) == fault.is_control, fault.name
        assert bool(fault.delay_ms_max) == (fault.boundary is Boundary.PLACING)


def test_every_fault_says_what_it_strikes() -> None:
    for name in (*AIMED, *GLOBAL, KILL_RANDOM):
        assert all(struck(name))


def test_the_table_of_faults_shows_what_was_harmed_per_variant() -> None:
    resend = a_result("resend", replace(HARMED, parked=("C",)), {"lose-publish-ack-placed": frozenset("ABCD")})
    run = {"queue": "pgmq", "orders": 3, "seed": 7, "verdict": "proven", "variants": [variant_json(resend)]}
    lines = {line.split(" ")[1]: line for line in faults_table(run).splitlines() if line.startswith("|")}
    row = "| `lose-publish-ack-placed` | leg 1 | producer | relay | resend: charged twice | 2 of 4, 1 held |"
    assert lines["`lose-publish-ack-placed`"] == row
    assert lines["`kill-random`"].endswith("| - |"), "it is aimed at no order"
    assert {name.strip("`") for name in lines} > {*AIMED, *GLOBAL, KILL_RANDOM}


def test_a_producer_whose_kill_is_on_its_way_begins_no_other_order(tmp_path: Path) -> None:
    """Long after it could have placed all of them: it has stayed with the order that the kill is meant for."""
    orders = make_orders(3, 1)
    aimed = (Aimed("kill-while-placing", orders[0].id, delay_ms=500.0),)
    write_schedule(Schedule(1, "pgmq", tuple(orders), aimed, ()), tmp_path / "schedule.json")
    proof = prove(tmp_path / "r.json", "--schedule", str(tmp_path / "schedule.json"), "--variants", "naive")
    assert "naive: over after" in proof.out
    assert "3/3 booked, 1 kill," in proof.out, "a process that had ended cannot be killed"


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """Each fault alone on a few orders, and none at random."""
    folder = tmp_path_factory.mktemp("harm")
    faults = [*AIMED] * PER_FAULT
    orders = make_orders(len(faults), 1)
    aimed = [
        Aimed(fault, order.id, AIMED[fault].delay_ms_max * number / len(faults))
        for number, (fault, order) in enumerate(zip(faults, orders, strict=True))
    ]
    write_schedule(Schedule(1, "pgmq", tuple(orders), tuple(aimed), ()), folder / "schedule.json")
    arguments = ("--schedule", str(folder / "schedule.json"), "--variants", ",".join(VARIANTS))
    return prove(folder / "r.json", *arguments)


# One test for all faults: spread over several processes, it would make the run once in each of them.
def test_each_fault_harms_whom_it_is_expected_to_harm(proof: Proof) -> None:
    assert proof.code == 0, proof.out
    for name, fault in AIMED.items():
        for variant in VARIANTS[:-1]:
            found = proof.variant(variant)["alone"][name]
            assert found["orders"] == PER_FAULT
            harm = fault.harms.get(variant)  # type: ignore[call-overload]
            # At a random instant: whether it falls between commit and publish is chance.
            if harm is not None and fault.boundary is not Boundary.PLACING:
                assert found[harm.replace(" ", "_")] > 0, f"{name}, {variant}: {found}"


def test_what_harms_nobody_is_known_as_the_control_group(proof: Proof) -> None:
    for name, fault in AIMED.items():
        for variant in ("naive", "resend"):
            found = proof.variant(variant)["alone"][name]
            harmed = found["charged_twice"] + found["lost"] + found["booked_twice"]
            # Not one of them, on a quiet machine; on a busy one a lease at the queue may lapse by itself.
            assert not fault.is_control or harmed < PER_FAULT, f"{name}, {variant}: {found}"


def test_the_producer_is_killed_in_every_variant_and_every_order_is_placed(proof: Proof) -> None:
    for variant in VARIANTS:
        found = proof.variant(variant)
        assert found["faults"]["kill-while-placing"]["fired"] == PER_FAULT
    assert proof.variant("hardened")["alone"]["kill-while-placing"]["lost"] == 0
