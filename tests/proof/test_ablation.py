"""The ablation: what counts as expected, the schedule of its rows, and two rows of it for real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.proof.prove_run import prove, start, write_schedule
from tests.proof.test_page import a_verdict
from tests.support.browser import show_on_a_phone

from onceward.errors import UsageError
from onceward.statements import statements
from onceward_proof.ablation.layer_removal import LAYERS, STATEMENTS
from onceward_proof.ablation.rows import BY_NAME, ROWS, Trial, choose_rows, make_ablation_schedule, trial_json
from onceward_proof.prove.control import Counts
from onceward_proof.prove.moments import Kind, Moment
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.workload import make_orders
from onceward_proof.report.pages.ablation import render
from onceward_proof.report.pages.orders import outcomes

SCHEDULE = make_ablation_schedule(make_orders(120, 1), 1, "pgmq")


def a_trial(without: str, *, finished: bool = True, struck: bool = True, **harm: Any) -> Trial:
    planned = SCHEDULE.planned()
    moments = {"O-0001": [Moment(1.0, Kind.FINISHED, "c", "order.placed"),
                          Moment(1.25, Kind.PUBLISHED, "relay-0", "order.paid")]}  # fmt: skip
    result = Result(
        variant=f"without-{without}", verdict=a_verdict(**harm), counts=Counts(fired=Counter(planned if struck else {})),
        planned=planned, predicted_parked=frozenset(), finished=finished, wall_seconds=1.0, moments=moments,
    )  # fmt: skip
    return Trial(BY_NAME[without], result)


# ---- what is expected ------------------------------------------------------------------------------------------------


def test_a_row_that_breaks_as_it_should_is_as_expected() -> None:
    assert a_trial("fencing", doubled_writes=("O-1",)).problems() == []
    assert a_trial("outbox", lost_first_hop=("O-1",)).problems() == []
    assert a_trial("outbox", lost_second_hop=("O-1",)).problems() == []


def test_a_row_that_should_break_and_holds_is_a_problem() -> None:
    assert a_trial("fencing").problems() == ["without fencing: no doubled writes, but it should break"]
    assert "no double charges" in a_trial("inbox-and-intent", doubled_writes=("O-1",)).problems()[0], "each that is named"


@pytest.mark.parametrize("harm", ["double_charged", "lost_first_hop", "lost_second_hop", "doubled_writes", "phantom"])
def test_a_row_that_should_hold_and_does_any_harm_is_a_problem(harm: str) -> None:
    changed: dict[str, Any] = {harm: ("O-1",)}
    assert a_trial("heartbeat").problems() == []
    assert len(a_trial("heartbeat", **changed).problems()) == 1


def test_a_row_whose_fault_never_struck_or_that_got_stuck_says_nothing() -> None:
    assert "never struck" in a_trial("fencing", struck=False, doubled_writes=("O-1",)).problems()[0]
    assert "no progress" in a_trial("heartbeat", finished=False).problems()[0]


def test_the_table_is_whole() -> None:
    layers = {layer for row in ROWS for layer in row.subject.without}
    assert layers == {*LAYERS}
    assert sum(row.expected == "breaks" for row in ROWS) >= 6
    assert sum(row.expected == "holds" for row in ROWS) >= 2
    assert all(bool(row.must_show) == (row.expected == "breaks") and row.why for row in ROWS)


def test_the_json_of_a_row() -> None:
    found = trial_json(a_trial("window-guard", double_charged=("O-1", "O-2")))
    assert found["without"] == "window-guard"
    assert (found["double_charged_orders"], found["lost_events"], found["doubled_writes"]) == (2, 0, 0)
    assert (found["expected"], found["ok"], found["publish_wait_ms"]) == ("breaks", True, 250)
    assert found["why"]


# ---- the schedule ----------------------------------------------------------------------------------------------------


def test_every_rows_fault_is_added_to_orders_that_bear_nothing() -> None:
    plain = make_schedule(SCHEDULE.orders, SCHEDULE.seed, "pgmq")
    added = SCHEDULE.aimed[len(plain.aimed) :]
    assert SCHEDULE.aimed[: len(plain.aimed)] == plain.aimed
    assert {entry.fault for entry in added} == {fault for row in ROWS for fault in row.faults}
    assert max(Counter(entry.order for entry in added).values()) == 1
    assert not {entry.order for entry in added} & {entry.order for entry in plain.aimed}


def test_too_few_orders_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(UsageError, match="needs at least") as refused:
        make_ablation_schedule(make_orders(20, 1), 1, "pgmq")
    enough = int(str(refused.value).split("at least ")[1].split()[0])
    for seed in range(20):
        assert make_ablation_schedule(make_orders(enough, seed), seed, "pgmq")


# ---- the seams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", STATEMENTS)
def test_what_is_cut_from_a_statement_is_in_it_once(layer: str) -> None:
    cut = STATEMENTS[layer]
    assert statements()[cut.statement].count(cut.was) == 1


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_can_be_taken_away(layer: str) -> None:
    """In a process of its own: there is no way back."""
    code = f"from onceward_proof.ablation.layer_removal import remove_layer; remove_layer({layer!r}, None)"
    if layer in STATEMENTS:
        name = STATEMENTS[layer].module.__name__
        code += f"; import {name} as m; assert m.statements() != __import__('onceward.statements').statements.statements()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# ---- the pages -------------------------------------------------------------------------------------------------------


def test_an_order_has_the_worst_that_happened_to_it() -> None:
    trial = a_trial("fencing", double_charged=("a",), lost_first_hop=("a", "b"), doubled_writes=("c",), parked=("d", "b"))
    assert outcomes(trial.result, {"a", "b", "c", "d", "e"}) == (1, 1, 1, 1, 1)


def test_the_page_shows_each_row_and_says_what_is_not_as_expected() -> None:
    page = render(SCHEDULE, [a_trial("fencing"), a_trial("heartbeat")])
    assert "NOT AS EXPECTED" in page
    assert "no doubled writes, but it should break" in page
    assert page.count('<tr class="why">') == 2
    assert "AS EXPECTED" in render(SCHEDULE, [a_trial("heartbeat")])


def test_a_phone_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    show_on_a_phone(render(SCHEDULE, [a_trial(row.without) for row in ROWS]), tmp_path).assert_sound()


# ---- for real --------------------------------------------------------------------------------------------------------


def test_without_fencing_a_woken_worker_books_twice_and_without_a_heartbeat_nothing_happens(tmp_path: Path) -> None:
    orders = make_orders(12, 1)
    wanted = ("freeze-after-charge", "freeze-after-charge", "slow-charge", "slow-charge")
    aimed = tuple(Aimed(fault, order.id) for fault, order in zip(wanted, orders, strict=False))
    write_schedule(Schedule(1, "pgmq", tuple(orders), aimed, ()), tmp_path / "schedule.json")
    arguments = ("--schedule", str(tmp_path / "schedule.json"), "--ablate", "fencing,heartbeat")
    proof = prove(tmp_path / "r.json", *arguments, "--html", str(tmp_path / "r.html"))
    assert proof.code == 0, proof.out
    assert "AS EXPECTED" in proof.out
    fencing, heartbeat = proof.document["ablation"]
    assert (fencing["without"], fencing["expected"], fencing["doubled_writes"]) == ("fencing", "breaks", 2)
    assert fencing["double_charged_orders"] == 0, "both sent the same key"
    assert (heartbeat["without"], heartbeat["expected"], heartbeat["ok"]) == ("heartbeat", "holds", True)
    assert heartbeat["redeliveries"] >= 2
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_without_the_outbox_only_what_was_not_published_is_lost(tmp_path: Path) -> None:
    orders = make_orders(6, 1)
    aimed = (Aimed("kill-before-publish-placed", orders[0].id), Aimed("kill-before-publish-paid", orders[1].id))
    write_schedule(Schedule(1, "pgmq", tuple(orders), aimed, ()), tmp_path / "schedule.json")
    proof = prove(tmp_path / "r.json", "--schedule", str(tmp_path / "schedule.json"), "--ablate", "outbox")
    assert proof.code == 0, proof.out
    [outbox] = proof.document["ablation"]
    assert (outbox["expected"], outbox["lost_events"], outbox["double_charged_orders"]) == ("breaks", 2, 0)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_unknown_layer_is_answered_with_the_list() -> None:
    with pytest.raises(UsageError, match="there are: nothing, "):
        choose_rows(["outbox", "luck"])
    out, _ = (process := start("--ablate", "luck")).communicate(timeout=30)
    assert process.returncode == 2, out
    assert "luck" in out
    assert all(name in " ".join(out.split()) for name in BY_NAME)


def test_ablate_and_variants_together_are_refused() -> None:
    out, _ = (process := start("--ablate", "--variants", "naive")).communicate(timeout=30)
    assert process.returncode == 2, out
    assert "leave out --variants" in out
