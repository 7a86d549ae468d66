"""The ablation: what counts as expected, the schedule of its rows, and two rows of it for real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.proof.prove_run import prove, start, write_schedule
from tests.proof.test_page import a_verdict
from tests.support.browser import show_on_a_phone

from onceward.errors import UsageError
from onceward.statements import statements
from onceward_proof.ablation.harms import HARMS, Harm
from onceward_proof.ablation.layer_removal import LAYERS, STATEMENTS
from onceward_proof.ablation.rows import (
    BY_NAME,
    ROWS,
    Trial,
    ablation_summary,
    ablation_table,
    choose_rows,
    make_ablation_schedule,
    trial_json,
)
from onceward_proof.prove.live import Counts
from onceward_proof.prove.moments import Kind, Moment
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.workload import make_orders
from onceward_proof.report.pages.ablation import render
from onceward_proof.report.pages.orders import outcomes

SCHEDULE = make_ablation_schedule(make_orders(120, 1), 1, "pgmq")


PAID = 1_000
# The sum that a harm of a row moves, as it does in a run: the good one has 1,000 of each.
MOVED: dict[str, dict[str, int]] = {
    "double_charged": {"charged": PAID + 500},
    "lost_second_hop": {"booked": PAID - 500},
    "doubled_writes": {"booked": PAID + 500},
}


def a_trial(
    without: str,
    *,
    finished: bool = True,
    struck: bool = True,
    predicted: frozenset[str] = frozenset(),
    charged: tuple[str, ...] = (),
    money: dict[str, int] | None = None,
    **harm: Any,
) -> Trial:
    """A row in which these orders came to harm, and the sums moved as they do with it, unless `money` says otherwise."""
    planned = SCHEDULE.planned()
    moments = {"O-0001": [Moment(1.0, Kind.FINISHED, "c", "order.placed"),
                          Moment(1.25, Kind.PUBLISHED, "relay-0", "order.paid")]}  # fmt: skip
    moments |= {order: [Moment(1.0, Kind.CHARGED, "provider", "order.placed")] for order in charged}
    sums = dict.fromkeys(("charged", "paid", "booked"), PAID)
    for name in harm:
        sums |= MOVED.get(name, {})
    result = Result(
        variant=f"without-{without}", verdict=a_verdict(money=sums | (money or {}), **harm),
        counts=Counts(fired=Counter(planned if struck else {})),
        planned=planned, predicted_parked=predicted, finished=finished, wall_seconds=1.0, moments=moments,
    )  # fmt: skip
    return Trial(BY_NAME[without], result)


SHOWING: dict[Harm, str] = {
    "double_charged_orders": "double_charged", "lost_first_hop": "lost_first_hop", "lost_second_hop": "lost_second_hop",
    "doubled_writes": "doubled_writes",
}  # fmt: skip


def as_expected(without: str, **changes: Any) -> Trial:
    """A row that shows all that it must, and what `changes` adds."""
    return a_trial(without, **{SHOWING[harm]: ("O-1",) for harm in BY_NAME[without].must_show} | changes)


# ---- what is expected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", BY_NAME)
def test_a_row_that_shows_what_it_must_and_nothing_else_is_as_expected(without: str) -> None:
    assert as_expected(without).problems() == []


@pytest.mark.parametrize(("without", "harm"), [(row.without, harm) for row in ROWS for harm in row.must_show], ids=str)
def test_a_row_that_does_not_show_what_it_must_is_a_problem(without: str, harm: Harm) -> None:
    shown: dict[str, Any] = {SHOWING[other]: ("O-1",) for other in BY_NAME[without].must_show if other != harm}
    assert f"without {without}: no {HARMS[harm]}, but it should break" in a_trial(without, **shown).problems()


OTHER_HARMS: dict[str, Any] = {
    "double_charged": ("O-9",), "phantom": ("ch_9",), "wrong_charge": ("O-9",), "lost_first_hop": ("O-9",),
    "lost_second_hop": ("O-9",), "doubled_writes": ("O-9",),
}  # fmt: skip


BESIDE_ITS_OWN = [
    (row.without, harm) for row in ROWS for harm in OTHER_HARMS if harm not in {SHOWING[must] for must in row.must_show}
]


@pytest.mark.parametrize(("without", "harm"), BESIDE_ITS_OWN)
def test_a_row_in_which_anything_else_breaks_is_not_as_expected(without: str, harm: str) -> None:
    """Whatever the row's own harm is: with another beside it, the table would not say which layer holds what."""
    trial = as_expected(without, **{harm: OTHER_HARMS[harm]})
    assert trial.problems()
    assert trial_json(trial)["unexpected"]
    assert not trial_json(trial)["ok"]


@pytest.mark.parametrize("without", [row.without for row in ROWS if row.expected == "holds"])
@pytest.mark.parametrize("sums", [{"charged": PAID - 1}, {"charged": PAID + 1}, {"booked": PAID - 1}, {"booked": PAID + 1}])
def test_money_that_moves_without_a_harm_that_moves_it_is_not_as_expected(without: str, sums: dict[str, int]) -> None:
    trial = as_expected(without, money=dict.fromkeys(("charged", "paid", "booked"), PAID) | sums)
    assert trial.problems()


@pytest.mark.parametrize("without", BY_NAME)
def test_a_row_that_parked_one_order_too_many_is_not_as_expected(without: str) -> None:
    """The predicted one is; the other is not, whatever the row may park for a reason of its own."""
    parked: dict[str, Any] = {"parked": ("O-7", "O-8"), "predicted": frozenset({"O-7"})}
    reasons = {"O-7": frozenset({"unknown"}), "O-8": frozenset({"poison"})}
    trial = as_expected(without, park_reasons=reasons, **parked)
    assert trial.problems()[-1].endswith("1 orders are parked that the schedule does not predict (O-8: poison)")
    assert trial_json(trial)["unexpected"] == ["parked"]


def test_a_row_may_park_for_its_own_reason_and_only_where_that_can_be() -> None:
    unknown: dict[str, Any] = {"parked": ("O-8",), "park_reasons": {"O-8": frozenset({"unknown"})}}
    assert as_expected("nothing-late", **unknown).problems() == []
    assert as_expected("nothing-late", charged=("O-8",), **unknown).problems(), "the look-up would have found the charge"
    assert as_expected("heartbeat", **unknown).problems()
    both = {"O-1": frozenset({"two answers"})}
    assert as_expected("intent", parked=("O-1",), park_reasons=both).problems() == []
    assert as_expected("intent", parked=("O-5",), park_reasons={"O-5": both["O-1"]}).problems(), "it was charged once"
    assert as_expected("fencing", parked=("O-1",), park_reasons=both).problems()


def test_an_order_that_should_be_parked_and_is_not_is_a_problem_unless_its_retry_is_a_new_call() -> None:
    missing: dict[str, Any] = {"predicted": frozenset({"O-7"})}
    assert "should be parked and are not (O-7)" in as_expected("heartbeat", **missing).problems()[0]
    assert as_expected("idempotency-key", **missing).problems() == []


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
    assert (found["unexpected"], found["predicted_parked"]) == ([], 0)


def test_every_harm_that_is_counted_is_in_the_json_and_has_a_name() -> None:
    trial = a_trial("nothing")
    assert set(trial.counted) == set(HARMS) == set(get_args(Harm))
    assert {*HARMS, "lost_events", "parked", "park_reasons"} <= set(trial_json(trial))


def test_the_terminal_shows_what_is_parked_beside_what_is_predicted() -> None:
    trials = [as_expected("fencing", parked=("O-7",), predicted=frozenset({"O-7", "O-8"}))]
    for wide in (True, False):
        head, [row] = ablation_table([trial_json(trial) for trial in trials], wide=wide)
        cells = dict(zip(head[1:], (cell.text for cell in row.cells), strict=True))
        assert cells["parked (predicted)"] == "1 (2)"


def test_a_green_verdict_says_why_its_rows_break() -> None:
    good, bad = [as_expected("fencing"), as_expected("heartbeat")], [a_trial("fencing")]
    assert ablation_summary(good) == (
        "Each row shows what its missing layer prevents, and nothing else. Rows that should break: 1; that should hold: 1."
    )
    assert ablation_summary(bad).startswith("Not every row")


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


def test_without_keys_a_charge_whose_answer_was_never_heard_is_made_again(tmp_path: Path) -> None:
    orders = make_orders(4, 1)
    write_schedule(
        Schedule(1, "pgmq", tuple(orders), (Aimed("kill-after-charge", orders[0].id),), ()), tmp_path / "schedule.json"
    )
    proof = prove(tmp_path / "r.json", "--schedule", str(tmp_path / "schedule.json"), "--ablate", "idempotency-key")
    assert proof.code == 0, proof.out
    [without] = proof.document["ablation"]
    assert (without["expected"], without["double_charged_orders"], without["lost_events"]) == ("breaks", 1, 0)


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
