"""A fault counts as fired only where its effect was seen: a harness that strikes nobody proves nothing, and says so."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest
from tests.proof.prove_run import SHIPPED, prove, sabotaged, write_schedule

from onceward_proof.brokers.broker import Passed
from onceward_proof.prove.control import Controller
from onceward_proof.prove.faults import BY_NAME, Boundary, Place
from onceward_proof.prove.live import LiveWorker
from onceward_proof.prove.schedule import Aimed, Schedule, Timed
from onceward_proof.prove.strikes import Killing, Told
from onceward_proof.prove.witness import Witnessed
from onceward_proof.prove.workload import make_orders
from onceward_proof.workers.reports import Note, Report

PROOF = "proof/src/onceward_proof"
# What each harness does not do, though it reports that it did; and the faults that strike nobody then.
SABOTAGES = {
    "kills do not kill": (
        "prove/control.py", "os.kill(target.pid, signal.SIGKILL)", "os.kill(target.pid, 0)",
        ("kill-after-charge", "kill-random"),
    ),
    "the frozen run on": (
        "prove/control.py", "os.kill(target.pid, signal.SIGSTOP)", "os.kill(target.pid, 0)", ("freeze-after-charge",),
    ),
    "the server is left alone": ("prove/control.py", "        server.kill()\n", "", ("kill-postgres-queue",)),
    "a dropped publish is sent": (
        "workers/watched.py",
        "remaining = [message for message, is_dropped in zip(messages, dropped, strict=True) if not is_dropped]",
        "remaining = messages", ("drop-publish-placed",),
    ),
    "a lost ack arrives": (
        "workers/watched.py", "if answer is Answer.LOSE:",
        "if answer is Answer.LOSE:\n            self._source.settle([(delivery, settlement)])", ("lose-ack-charge",),
    ),
    "the provider answers": (
        "prove/provider_hook.py", "Answer.CUT: Verdict(Kind.CUT_AFTER)", "Answer.CUT: GO", ("cut-after-charge",),
    ),
}  # fmt: skip
AIMED = (
    "kill-after-charge", "drop-publish-placed", "lose-ack-charge", "freeze-after-charge", "cut-after-charge",
    "lose-publish-ack-paid",
)  # fmt: skip
PLACED = "order.placed"


def schedule_file(folder: Path) -> str:
    """Two orders for each of a few faults, and enough others that progress is made."""
    orders = make_orders(24, 5)
    aimed = tuple(Aimed(fault, order.id) for fault, order in zip(AIMED * 2, orders, strict=False))
    timed = (Timed("kill-random", 3, 1, 4.0), Timed("kill-postgres-queue", 5))
    write_schedule(Schedule(5, "pgmq", tuple(orders), aimed, timed), folder / "schedule.json")
    return str(folder / "schedule.json")


def test_a_harness_that_does_what_it_says_proves(tmp_path: Path) -> None:
    proof = prove(tmp_path / "r.json", "--schedule", schedule_file(tmp_path), *SHIPPED)
    assert (proof.code, proof.document["reasons"]) == (0, []), proof.out


@pytest.mark.parametrize("what", SABOTAGES)
def test_a_harness_that_strikes_nobody_is_inconclusive(what: str, tmp_path: Path) -> None:
    file, was, becomes, faults = SABOTAGES[what]
    scratch = sabotaged(tmp_path / "scratch", file, was, becomes, package=PROOF)
    proof = prove(tmp_path / "r.json", "--schedule", schedule_file(tmp_path), source=scratch)
    assert (proof.code, proof.document["verdict"]) == (3, "inconclusive"), proof.out
    for fault in faults:
        named = [reason.partition(":")[0] for reason in proof.document["reasons"] if f" of {fault} " in reason]
        assert named == ["naive", "hardened"], proof.out
        assert [variant["faults"][fault]["fired"] for variant in proof.document["variants"]] == [0, 0]


# ---- parts -----------------------------------------------------------------------------------------------------------


def a_controller() -> tuple[Controller, LiveWorker, Place]:
    """It kills a worker that holds one delivery, at this place, and waits to see the end."""
    place = Place(Boundary.RESPONSE, PLACED, "O-1")
    controller = Controller(Schedule(1, "pgmq", (), (Aimed("kill-after-charge", "O-1"),), ()), {}, {})
    controller.all_placed = True
    worker = LiveWorker(7, "producer", 0, killing=Killing("kill-after-charge", place))  # one that is not restarted
    worker.hands.receive(Report(Note.RECEIVED, message_id="m", order="O-1", delivery="1", count=1))
    controller._workers[7] = worker
    controller._passed.add(place)
    controller.counts.unseen["kill-after-charge"] = 1
    return controller, worker, place


def test_a_kill_has_fired_when_signal_nine_has_ended_the_process() -> None:
    controller, _, place = a_controller()
    controller._exited(7, SIGKILL)
    assert controller.counts.fired == {"kill-after-charge": 1}
    assert (controller.counts.kills, controller.counts.kills_holding) == (1, 1)
    assert +controller.counts.unseen == {}
    assert place in controller._passed


def test_a_kill_of_a_process_that_had_ended_by_itself_waits_for_the_next_passage() -> None:
    controller, _, place = a_controller()
    controller._exited(7, 0)
    assert +controller.counts.fired == +controller.counts.unseen == {}
    assert place not in controller._passed


def test_a_random_kill_of_a_process_that_had_ended_by_itself_strikes_another() -> None:
    async def scene() -> list[str]:
        controller, worker, _ = a_controller()
        worker.killing = Killing("kill-random", timed=Timed("kill-random", 1, 0, 0.0))
        controller.counts.unseen["kill-random"] = 1
        controller._exited(7, 0)
        waiting = [str(task.get_coro()) for task in controller._tasks]
        controller.kill_all()
        return waiting

    assert any("_kill_random" in coroutine for coroutine in asyncio.run(scene()))


def test_what_a_worker_settled_before_its_end_it_did_not_hold() -> None:
    controller, worker, _ = a_controller()
    worker.hands.settling(Report(Boundary.ACK_BEFORE, delivery="1", count=1))
    controller._exited(7, SIGKILL)
    assert (controller.counts.kills, controller.counts.kills_holding) == (1, 0)


def told(fault: str, *, passed_again_at: float = math.inf) -> Told:
    kind = BY_NAME[fault]
    return Told(kind, Place(kind.boundary, kind.message_type, "O-1"), 10.0, passed_again_at)


STORED = Witnessed(Passed({(PLACED, "O-1"): 20.0}, {}), Counter())
CUT = Witnessed(Passed({}, {}, frozenset({(PLACED, "O-1")})), Counter())
REMOVED = Witnessed(Passed({}, {(PLACED, "O-1"): [20.0]}), Counter())


@pytest.mark.parametrize(
    ("fault", "witnessed", "saw"),
    [
        (told("drop-publish-placed"), STORED, False),
        (told("drop-publish-placed", passed_again_at=21.0), STORED, False),
        (told("drop-publish-placed", passed_again_at=19.0), STORED, True),
        (told("drop-publish-placed"), REMOVED, True),
        (told("lose-publish-ack-placed"), STORED, True),
        (told("lose-publish-ack-placed"), REMOVED, False),
        (told("lose-ack-charge"), REMOVED, False),
        (told("lose-ack-charge", passed_again_at=21.0), REMOVED, False),
        (told("lose-ack-charge", passed_again_at=19.0), REMOVED, True),
        (told("lose-ack-charge"), STORED, True),
        (told("lose-ack-charge"), Witnessed(Passed({}, {(PLACED, "O-1"): [9.0]}), Counter()), True),
        (told("cut-at-ack-charge"), STORED, False),
        (told("cut-at-ack-charge", passed_again_at=21.0), CUT, True),
        (told("cut-at-ack-charge"), CUT, False),
        (
            told("cut-at-ack-charge", passed_again_at=21.0),
            replace(CUT, passed=replace(CUT.passed, removed=REMOVED.passed.removed)),
            False,
        ),
        (told("slow-charge"), Witnessed(Passed({}, {}), Counter({("slow_response", "O-1"): 1})), True),
        (told("slow-charge"), Witnessed(Passed({}, {}), Counter({("slow_response", "O-2"): 1})), False),
        (told("error-before-charge"), Witnessed(Passed({}, {}), Counter({("error_after", "O-1"): 1})), False),
    ],
)
def test_the_witness_believes_the_queue_and_the_provider(fault: Told, witnessed: Witnessed, saw: bool) -> None:
    assert witnessed.saw(fault) is saw
