"""The ablation as an HTML page: which fault comes through where a layer is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onceward_proof.ablation.rows import FIGURES, LEG, ROWS, Trial, ablation_summary, trial_json, why_not_as_expected
from onceward_proof.prove.schedule import Schedule
from onceward_proof.report.pages.orders import NAMES, outcomes
from onceward_proof.report.pages.page import render_template

SHOWN: Final = [figure for figure in FIGURES if figure is not LEG]  # the leg stands below each row, and leads to its text


def render(schedule: Schedule, trials: Sequence[Trial]) -> str:
    """The page's text."""
    aimed = {fault for trial in trials for fault in trial.row.faults}
    orders = {fault: of_fault for fault, of_fault in schedule.alone().items() if fault in aimed}
    return render_template(
        "ablation.html",
        schedule=schedule,
        trials=trials,
        has_all_rows=len(trials) == len(ROWS),
        reasons=why_not_as_expected(trials),
        summary=ablation_summary(trials),
        figures=SHOWN,
        rows=[(trial.row, trial_json(trial), max(trial.result.verdict.orders, 1)) for trial in trials],
        outcomes=[
            (trial.row.without, [outcomes(trial.result, of_fault) for of_fault in orders.values()]) for trial in trials
        ],
        columns=list(orders),
        kinds=NAMES,
    )
