"""The soak: it goes on until it is told, keeps nothing of what is finished, and sees what grows."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from tests.proof.prove_run import KEY_PER_CALL, ROOT, alive, family, prove, sabotaged, start

from onceward.day_partitions import upkeep
from onceward_proof.bundled import payments_folder
from onceward_proof.commands.arguments import duration
from onceward_proof.prove.faults import AIMED, Boundary, Place, Signal
from onceward_proof.prove.live import LiveWorker
from onceward_proof.prove.moments import Kind, Moment
from onceward_proof.prove.schedule import Timed
from onceward_proof.report.pages.soak import render
from onceward_proof.soak.due_day import JUDGED_AFTER_SECONDS, DueDay, Kept
from onceward_proof.soak.endless import BATCH, EndlessController, make_batch
from onceward_proof.soak.measure import (
    KINDS,
    SLOPE_BYTES_MIN,
    SLOPE_FACTOR_MAX,
    WAL_BYTES_MAX,
    Finding,
    Sample,
    judge,
    level,
    slope,
    values_in_words,
)
from onceward_proof.soak.run import Soaked
from onceward_proof.workers.reports import Note, Report

LEVEL = next(kind for kind in KINDS if kind.name == "nursery_bytes")


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_short_soak_holds_and_says_what_it_measured(tmp_path: Path) -> None:
    proof = prove(tmp_path / "r.json", "--for", "35s", "--rate", "6", "--seed", "3", "--html", str(tmp_path / "r.html"))
    assert proof.code == 0, proof.out
    soak = proof.document["soak"]
    assert (soak["doubled"], soak["lost"]) == (0, 0)
    assert soak["parked"] == soak["predicted_parked"]
    assert soak["orders"] > 100
    assert soak["kills"] > 10
    assert soak["faults"]["kill-random"]["fired"] > 0
    assert len(set(soak["money"].values())) == 1
    assert set(soak["samples"][0]) == {"seconds", "orders", *(kind.name for kind in KINDS)}
    assert not any(finding["drifts"] for finding in soak["drift"])
    assert all(finding["last"] <= finding["limit"] for finding in soak["drift"]), "what HELD means can be read off"
    assert "HELD 0 doubled, 0 lost; nothing grew beyond its limit" in proof.out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "HELD" in page
    assert_spared_workers_lived(soak)
    assert_due_day_was_dropped_alone(soak)


def assert_spared_workers_lived(soak: dict[str, Any]) -> None:
    """One of each role, in one process from beginning to end, though hundreds of faults struck around them."""
    assert {worker["name"] for worker in soak["spared_workers"]} == {"charge-0", "ledger-0", "relay-0"}
    for worker in soak["spared_workers"]:
        assert worker["lifetime_seconds"] > 0.8 * soak["seconds"]
        assert min(worker["first_bytes"], worker["last_bytes"]) > 1_000_000


def assert_due_day_was_dropped_alone(soak: dict[str, Any]) -> None:
    assert soak["partitions_dropped"] == 2, "inbox and intents of the day that was due"
    assert [each["consumer"] for each in soak["inbox_rows"]] == ["payments.charge", "ledger"]
    for each in soak["inbox_rows"]:
        assert each["rows"] == each["messages"] > 100, "no row of the days at hand went with it"


def test_ctrl_c_ends_a_soak_with_its_report_and_leaves_nothing(tmp_path: Path) -> None:
    """The signal goes to the whole group, as a terminal sends it: servers and workers must outlive it."""
    report = tmp_path / "r.json"
    command = [sys.executable, "-m", "onceward", "prove", "--for", "10m", "--rate", "15", "--json", str(report)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "orders" in line and "under way" in line)
        members = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out = process.stdout.read()
    assert process.returncode == 0, out
    document = json.loads(report.read_text(encoding="utf-8"))
    assert document["soak"]["interrupted"]
    assert document["soak"]["orders"] > 0
    assert (document["soak"]["doubled"], document["soak"]["lost"]) == (0, 0)
    psutil.wait_procs(members, timeout=5)
    assert alive(members) == []


def test_the_first_double_charge_ends_a_soak_that_fails(tmp_path: Path) -> None:
    source = sabotaged(tmp_path / "copy", *KEY_PER_CALL)
    proof = prove(tmp_path / "r.json", "--for", "80s", "--rate", "25", "--seed", "4", source=source)
    assert proof.code == 1, proof.out
    assert proof.document["soak"]["doubled"] > 0
    assert proof.document["soak"]["seconds"] < 60, "it goes on after the first harm"
    assert "charged or booked twice" in proof.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--for", "90"], "90s, 30m or 2h"),
        (["--for", "0s"], "90s, 30m or 2h"),
        (["--for", "5s", "--orders", "9"], "--orders"),
        (["--for", "5s", "--rate", "0"], "--rate"),
        (["--rate", "5"], "--for"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_two(arguments: list[str], says: str) -> None:
    out, _ = (process := start(*arguments)).communicate(timeout=30)
    assert process.returncode == 2, out
    assert says in out
    assert "Traceback" not in out


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_duration_needs_its_unit() -> None:
    assert [duration(text) for text in ("90s", "30m", "2h", "1.5m")] == [90, 1800, 7200, 90]
    for text in ("90", "m", "-3s", "1d", "0m", "1e3s", ""):
        with pytest.raises(ArgumentTypeError, match="30m"):
            duration(text)


def test_a_batch_is_made_from_its_seed_and_number_alone_and_holds_every_fault() -> None:
    one, again, other = make_batch(7, 3), make_batch(7, 3), make_batch(7, 4)
    assert one == again
    assert one != other
    assert not {order.id for order in one.orders} & {order.id for order in other.orders}
    assert {entry.fault for entry in one.aimed} == set(AIMED)
    assert all(3 * BATCH < entry.progress <= 4 * BATCH for entry in one.timed)


def test_orders_that_are_held_or_whose_last_ack_nobody_saw_are_not_under_way() -> None:
    """They never come to their last ack: counted as backlog, they would stop a long soak's giving in the end."""
    controller = EndlessController(1, 10.0, {}, {})
    taken = controller.give(50 * BATCH)
    assert len(controller.predicted) >= 50
    assert controller.backlog == len(taken) - len(controller.predicted)
    *acked, unseen = set(taken) - controller.predicted
    for order in acked:
        controller.order_booked(order)
    assert controller.backlog == 1
    controller.forget({unseen})
    assert controller.backlog == 0


def kept(controller: EndlessController) -> int:
    """How much is kept of orders: what must not grow with those that are finished."""
    by_order = (controller.moments, controller._passed, controller._seen, controller._armed)
    return sum(map(len, (*by_order, controller.given_at, controller._under_way)))


def test_nothing_is_kept_of_a_finished_order() -> None:
    controller = EndlessController(1, 10.0, {}, {})
    taken = controller.give(2 * BATCH)
    armed = {order for batch in (make_batch(1, 0), make_batch(1, 1)) for _, _, order in batch.armed()}
    assert kept(controller) > len(armed) >= 2 * len(AIMED) - 4
    for order in taken:
        controller._passed.add(Place(Boundary.ACK_BEFORE, "order.paid", order))
        controller._seen.add(("order.paid", "id", order))
        controller._add_moment(order, Moment(1.0, Kind.RECEIVED, "charge-0", "order.placed"))
    last = next(reversed(taken))
    controller.forget(set(taken) - {last})
    assert set(controller.moments) == set(controller.given_at) == {last}
    controller.forget({last})
    assert kept(controller) == 0
    assert len(controller.ordered) == 2 * BATCH, "the amounts stay: the checker needs them at the end"


MEGABYTES = {
    "level": ([50.0] * 60, False),
    "a saw": ([50.0 + n % 7 * 5 for n in range(60)], False),
    "a step early on": ([50.0] * 14 + [90.0] * 46, False),
    "a spike": ([50.0] * 30 + [300.0] + [50.0] * 29, False),
    "a warm-up": ([10.0 + 40 * (1 - math.exp(-n / 3)) for n in range(60)], False),
    "a leak": ([50.0 + n for n in range(60)], True),
    "a leak under a saw": ([50.0 + n + n % 7 * 3 for n in range(60)], True),
    "a leak too small to matter": ([50.0 + n / 20 for n in range(60)], False),
}


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_leak_drifts_and_nothing_else_does(name: str) -> None:
    values, leaks = MEGABYTES[name]
    finding = level(LEVEL, [(float(second), value * 1e6) for second, value in enumerate(values)])
    assert finding is not None
    assert finding.drifts is leaks


def test_too_few_samples_say_nothing() -> None:
    assert level(LEVEL, [(float(second), second * 1e9) for second in range(8)]) is None
    assert judge([]) == []


def test_tables_may_grow_with_the_orders_and_not_faster() -> None:
    def drifts(bytes_of: dict[int, float]) -> bool:
        empty = {kind.name: 0.0 for kind in KINDS}
        samples = [Sample(float(o), o, empty | {"table_bytes": value}) for o, value in bytes_of.items()]
        return next(finding.drifts for finding in judge(samples) if finding.kind.name == "table_bytes")

    orders = range(0, 4000, 100)
    assert not drifts({o: 2000.0 * o for o in orders})
    assert not drifts({o: 8192.0 * (2000 * o // 8192) for o in orders})
    assert drifts({o: 2000.0 * o + o**2 for o in orders})


def test_wal_beyond_its_limit_is_found_whatever_its_course() -> None:
    empty = {kind.name: 0.0 for kind in KINDS}
    samples = [Sample(0.0, 0, empty), Sample(1.0, 1, empty | {"wal_bytes": WAL_BYTES_MAX + 1.0}), Sample(2.0, 2, empty)]
    assert [finding.kind.name for finding in judge(samples) if finding.drifts] == ["wal_bytes"]


def test_the_page_says_held_of_the_soak_and_parked_of_an_order() -> None:
    """One word, one meaning; and the limit that growth is judged by stands beside the growth."""
    text = " ".join(render(Soaked(seed=1, asked_seconds=60, rate=30, finished=True)).split())
    assert "HELD" in text.upper()
    assert "parked, as predicted" in text
    assert not re.search(r"held, as|are held", text)
    assert f"{SLOPE_FACTOR_MAX:g} times the first half's and {SLOPE_BYTES_MIN:g} bytes more" in text


def test_what_the_supervisor_is_stands_beside_its_name() -> None:
    assert LEVEL.title == "memory of the supervisor (starts the workers)"


@pytest.fixture
def victims() -> Iterator[tuple[EndlessController, LiveWorker, LiveWorker]]:
    """A controller of two real processes: the first charge worker, which is spared, and the second."""
    line = cast("asyncio.StreamWriter", object())
    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        spared = LiveWorker(first.pid, "charge", 0, writer=line)
        other = LiveWorker(second.pid, "charge", 1, writer=line)
        controller = EndlessController(1, 10.0, {"charge": 2}, {})
        controller._workers = {worker.pid: worker for worker in (spared, other)}
        yield controller, spared, other
        first.kill()
        second.kill()


def is_running(worker: LiveWorker) -> bool:
    return bool(psutil.Process(worker.pid).status() != psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("slot", range(2))
def test_a_random_kill_never_strikes_a_spared_worker(
    victims: tuple[EndlessController, LiveWorker, LiveWorker], slot: int
) -> None:
    """Though both of them hold a delivery, and whichever of the two the schedule has drawn."""
    controller, spared, other = victims
    assert controller.spared == {"charge-0": spared.pid}
    for worker in (spared, other):
        worker.hands.receive(Report(Note.RECEIVED, message_type="order.placed", order="A"))
    struck = psutil.Process(other.pid)
    asyncio.run(controller._kill_random(Timed("kill-random", 1, slot=slot, delay_ms=0.0)))
    psutil.wait_procs([struck], timeout=5)
    assert (is_running(spared), alive([struck]), controller.counts.unseen["kill-random"]) == (True, [], 1)


def test_a_fault_that_would_kill_a_spared_worker_misses_and_the_passage_counts(
    victims: tuple[EndlessController, LiveWorker, LiveWorker],
) -> None:
    controller, spared, _ = victims
    controller.give(BATCH)
    kills = [place for place, fault in controller._armed.items() if fault.action is Signal.KILL]
    for place in kills:
        passage = Report(place.boundary, message_type=place.message_type, order=place.order)
        controller._pass_by(place, passage, spared, cast("asyncio.StreamWriter", object()))
    assert kills
    struck = controller.counts.fired + controller.counts.unseen
    assert (is_running(spared), struck.total(), set(kills) <= controller._passed) == (True, 0, True)


GOOD: dict[str, Any] = {"seed": 1, "asked_seconds": 60.0, "rate": 30.0, "finished": True, "seconds": 60.0}


def test_a_soak_that_kept_everything_has_no_reason_to_fail() -> None:
    kept = [Kept("ledger", 7, 7)]
    assert Soaked(**GOOD, kept=kept).why_failed() == []


def test_a_row_of_the_days_at_hand_that_is_gone_fails_a_soak() -> None:
    soaked = Soaked(**GOOD, kept=[Kept("payments.charge", 9, 9), Kept("ledger", 6, 7)])
    assert soaked.why_failed() == ["ledger has 6 inbox rows for 7 messages of the days at hand"]
    assert not soaked.to_json()["ok"]


def test_a_day_that_is_due_and_stays_fails_a_soak_that_was_long_enough() -> None:
    long = GOOD | {"seconds": JUDGED_AFTER_SECONDS + 1}
    assert Soaked(**long).why_failed() == ["a day that was due was not dropped in 101 s of work"]
    assert Soaked(**long, dropped_after_seconds=20.0, partitions_dropped=2).why_failed() == []


def test_a_figure_beyond_its_limit_says_so_with_the_limit() -> None:
    finding = level(LEVEL, [(float(second), (50.0 + second) * 1e6) for second in range(60)])
    assert finding is not None
    assert finding.limit is not None
    assert finding.last > finding.limit
    assert Soaked(**GOOD, findings=[finding]).why_failed()[0].endswith(f"(limit {finding.limit / 1e6:,.1f} MB)")


def test_evidence_of_before_there_were_limits_is_still_shown() -> None:
    old = Finding("nursery_bytes", per_order=False, first=1e6, last=2e6, drifts=False)
    assert values_in_words(old) == "1.0 MB, then 2.0 MB"


def test_the_due_day_is_made_and_its_rows_are_not_those_of_the_days_at_hand(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute((payments_folder() / "payments" / "schema.sql").read_bytes())
    due = DueDay(dsn)
    assert (due.dropped(), due.look(1.0)) == (0, False)
    assert due.kept() == [Kept("payments.charge", 0, 0), Kept("ledger", 0, 0)]
    assert len(upkeep(db).dropped) == 2
    assert (due.look(2.0), due.look(3.0), due.dropped_after_seconds, due.dropped()) == (True, True, 2.0, 2)
    db.execute("INSERT INTO orders (id, amount) VALUES ('O-1', 5)")
    assert due.kept()[0] == Kept("payments.charge", 0, 1), "a message without its row is seen"


def test_a_slope_is_bytes_per_order() -> None:
    assert slope([(0, 5), (10, 25), (20, 45)]) == pytest.approx(2.0)
    assert slope([(3, 1), (3, 9)]) == 0
