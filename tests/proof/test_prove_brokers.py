"""The main job on each broker: real servers, real clients, real SIGKILLs of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.proof.prove_run import prove, sabotaged, start, write_schedule
from tests.support.brokers import installed

from onceward.testing.servers.shared import SharedName
from onceward_proof.commands.prove import CLIENTS, QUEUES
from onceward_proof.prove.control import Controller
from onceward_proof.prove.faults import Boundary, Place, strikes_from_outside
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.variants import TUTORIALS
from onceward_proof.prove.workload import make_orders
from onceward_proof.workers.reports import Report
from onceward_proof.workers.setting import QUEUE_NAMES, QueueName

ORDERS = 30
HARM = ("double_charged_orders", "phantom_charges", "lost_events", "doubled_writes")
PROOF = "proof/src/onceward_proof"
BROKERS = [
    pytest.param("sqs", "sqs", marks=pytest.mark.sqs),
    pytest.param("sqs-fifo", "sqs", marks=pytest.mark.sqs),
    pytest.param("rabbitmq", "rabbitmq", marks=pytest.mark.rabbitmq),
    pytest.param("kafka", "kafka", marks=pytest.mark.kafka),
]


@pytest.mark.parametrize(("queue", "server"), BROKERS)
def test_naive_doubles_and_loses_where_hardened_holds(queue: QueueName, server: SharedName, tmp_path: Path) -> None:
    installed(server)
    schedule = make_schedule(make_orders(ORDERS, 11), 11, queue)
    write_schedule(schedule, tmp_path / "schedule.json")
    page = tmp_path / "report.html"
    variants = "naive,tutorial,hardened"
    arguments = ("--schedule", str(tmp_path / "schedule.json"), "--html", str(page), "--variants", variants)
    proof = prove(tmp_path / "r.json", *arguments)
    assert (proof.code, proof.document["reasons"]) == (0, []), proof.out
    assert proof.document["queue"] == queue
    assert f"{ORDERS} orders on {queue}, seed 11" in proof.out
    assert queue in page.read_text(encoding="utf-8")
    naive, hardened = proof.variant("naive"), proof.variant("hardened")
    assert naive["double_charged_orders"] > 0
    assert naive["lost_events"] > 0
    assert [hardened[key] for key in HARM] == [0, 0, 0, 0]
    for variant in (naive, hardened):
        assert {name: fault["fired"] for name, fault in variant["faults"].items()} == schedule.planned()
        assert variant["faults"]["kill-broker"]["fired"] == 1
    _assert_struck_from_outside_only(proof.variant("tutorial"))
    assert "It is struck from outside only" in page.read_text(encoding="utf-8")


def _assert_struck_from_outside_only(tutorial: dict[str, Any]) -> None:
    assert tutorial["outside_only"] is True
    assert tutorial["double_charged_orders"] > 0
    for name, fault in tutorial["faults"].items():
        assert fault["fired" if strikes_from_outside(name) else "unreached"] == fault["planned"], name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "tutorial is not there for pgmq"),
        (["--queue", "sqs", "--threads", "8"], "leave out --threads and --prefetch"),
    ],
)
def test_what_a_tutorial_does_not_have_is_refused(arguments: list[str], says: str) -> None:
    out, _ = (process := start("--variants", "tutorial,hardened", *arguments)).communicate(timeout=30)
    assert process.returncode == 2, out
    assert says in " ".join(out.split())


def test_every_broker_has_its_tutorial() -> None:
    assert {"pgmq", *TUTORIALS} == set(QUEUES)


@pytest.mark.parametrize(("outside_only", "progress"), [(True, 1), (False, 0)])
def test_the_first_charge_of_an_order_is_progress_where_no_ack_is_reported(outside_only: bool, progress: int) -> None:
    controller = Controller(Schedule(1, "sqs", (), (), ()), {}, {}, outside_only=outside_only)
    charged = Report(Boundary.RESPONSE, message_type="order.placed", order="O-1")
    for _ in range(2):
        controller._answer(Place(Boundary.RESPONSE, "order.placed", "O-1"), charged, None)
    assert controller._progress == progress


@pytest.mark.sqs
def test_a_cut_that_lets_the_ack_through_is_inconclusive(tmp_path: Path) -> None:
    installed("sqs")
    orders = make_orders(12, 5)
    aimed = (Aimed("cut-at-ack-charge", orders[0].id), Aimed("kill-after-charge", orders[1].id))
    write_schedule(Schedule(5, "sqs", tuple(orders), aimed, ()), tmp_path / "schedule.json")
    was = "                writer.transport.abort()\n"
    becomes = "                writer.write(chunk)\n                await writer.drain()\n"
    scratch = sabotaged(tmp_path / "scratch", "brokers/recorder.py", was, becomes, package=PROOF)
    proof = prove(tmp_path / "r.json", "--schedule", str(tmp_path / "schedule.json"), source=scratch)
    assert proof.document["verdict"] == "inconclusive", proof.out
    assert [variant["faults"]["cut-at-ack-charge"]["unseen"] for variant in proof.document["variants"]] == [1, 1]


def test_the_command_knows_every_queue_and_the_client_of_each() -> None:
    assert QUEUES == QUEUE_NAMES
    assert {"pgmq", *CLIENTS} == set(QUEUES)


@pytest.mark.parametrize("mode", [["--ablate"], ["--for", "5s"], ["--every-syscall"]])
def test_what_runs_on_pgmq_alone_says_so(mode: list[str]) -> None:
    out, _ = (process := start(*mode, "--queue", "sqs")).communicate(timeout=30)
    assert process.returncode == 2, out
    assert "leave out --queue sqs" in out


def test_a_schedule_for_another_queue_is_refused(tmp_path: Path) -> None:
    write_schedule(make_schedule(make_orders(30, 1), 1, "pgmq"), tmp_path / "s.json")
    out, _ = (process := start("--schedule", str(tmp_path / "s.json"), "--queue", "kafka")).communicate(timeout=30)
    assert process.returncode == 2, out
    assert "a schedule for pgmq, not for kafka" in out
