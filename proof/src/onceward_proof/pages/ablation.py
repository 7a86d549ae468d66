"""The ablation as an HTML page: which fault comes through where a layer is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from onceward_proof.ablation import FIGURES, LEG, ROWS, Trial, trial_json, why_not_as_expected
from onceward_proof.pages.page import render_template
from onceward_proof.pages.pictures import draw_layers
from onceward_proof.schedule import Schedule

SHOWN: Final = [figure for figure in FIGURES if figure is not LEG]  # the leg stands below each row, and leads to its text


def render(schedule: Schedule, trials: Sequence[Trial]) -> str:
    """The page's text."""
    return render_template("ablation.html", **_content(schedule, trials))


def _content(schedule: Schedule, trials: Sequence[Trial]) -> dict[str, Any]:
    problems = why_not_as_expected(trials)
    breaks = sum(trial.row.expected == "breaks" for trial in trials)
    return {
        "what": "ablation",
        "mood": "broken" if problems else "proven",
        "headline": "not as expected" if problems else "as expected",
        "summary": f"Rows that break the guarantee: {breaks}. Rows that hold: {len(trials) - breaks}.",
        "reasons": problems,
        "seed": schedule.seed,
        "orders": f"{len(schedule.orders):,}",
        "facts": [
            ("orders per row", f"{len(schedule.orders):,}"),
            ("faults per row", f"{sum(schedule.planned().values()):,}"),
            ("rows", str(len(trials))),
            ("seed", str(schedule.seed)),
            ("queue", schedule.queue),
        ],
        "figures": SHOWN,
        "rows": [_row(trial) for trial in trials],
        "picture": draw_layers(schedule, trials) if trials else None,
        "command": f"onceward prove --ablate{_rows_named(trials)} --seed {schedule.seed} --orders {len(schedule.orders)}",
        "again": "The same seed makes the same orders and the same schedule of faults.",
    }


def _rows_named(trials: Sequence[Trial]) -> str:
    names = [trial.row.without for trial in trials]
    return "" if len(names) == len(ROWS) else f" {','.join(names)}"


def _row(trial: Trial) -> dict[str, Any]:
    """The row, its cells with their heat (the share of harmed orders, in per cent), and whether it is as expected."""
    orders = max(len(trial.result.planned), trial.result.verdict.orders, 1)
    found = trial_json(trial)
    return {
        "row": trial.row,
        "cells": [
            (figure.cell(found), round(100 * figure.read(found) / orders) if figure.is_harm else 0) for figure in SHOWN
        ],
        "ok": found["ok"],
    }
