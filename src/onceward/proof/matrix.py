"""The ablation as an HTML page that stands alone, and what both pages show as a picture: faults by outcome."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onceward import __version__
from onceward.proof.ablation import COUNTERS, WORDS, Trial, publish_wait_ms, why_not_as_expected
from onceward.proof.pictures import Picture, Tiles, draw_outcomes
from onceward.proof.run import Result
from onceward.proof.schedule import Schedule
from onceward.proof.story import faults_by_order


def alone(schedule: Schedule) -> dict[str, set[str]]:
    """Per fault, the orders that bore it and no other aimed fault."""
    found: dict[str, set[str]] = {name: set() for name in schedule.planned()}
    for order, names in faults_by_order(schedule).items():
        if len(names) == 1:
            found[names[0]].add(order)
    return {name: orders for name, orders in found.items() if orders}


def outcomes(result: Result, orders: set[str]) -> tuple[int, ...]:
    """How many of these orders had each outcome, each order its worst, in the order of `pictures.OUTCOMES`."""
    verdict = result.verdict
    left, counts = set(orders), []
    for harmed in (verdict.double_charged, verdict.lost, verdict.doubled_writes, verdict.parked):
        hit = left & set(harmed)
        counts.append(len(hit))
        left -= hit
    return (*counts, len(left))


def draw_variants(schedule: Schedule, results: Sequence[Result]) -> Picture:
    """A row per fault, a column per variant."""
    rows = [
        Tiles(fault, tuple(outcomes(result, orders) for result in results)) for fault, orders in alone(schedule).items()
    ]
    title = "What became of the orders that bore one fault, per fault and variant. The same numbers are in the table below."
    return draw_outcomes(rows, [result.variant for result in results], title)


def draw_layers(schedule: Schedule, trials: Sequence[Trial]) -> Picture:
    """A row per layer that was taken away, a column per aimed fault."""
    orders = alone(schedule)
    wanted = {fault for trial in trials for fault in trial.row.faults}
    faults = [fault for fault in orders if fault in wanted]
    rows = [Tiles(trial.row.without, tuple(outcomes(trial.result, orders[fault]) for fault in faults)) for trial in trials]
    return draw_outcomes(
        rows, faults, "What became of the orders that bore one aimed fault, per layer that was taken away."
    )


def write_page(path: Path, schedule: Schedule, trials: Sequence[Trial]) -> None:
    """Write the ablation's page; what was at `path` is replaced."""
    path.write_text(render(schedule, trials), encoding="utf-8")


def render(schedule: Schedule, trials: Sequence[Trial]) -> str:
    """The page's text."""
    environment = Environment(
        loader=PackageLoader("onceward.proof", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("ablation.html").render(**_content(schedule, trials))


def _content(schedule: Schedule, trials: Sequence[Trial]) -> dict[str, Any]:
    problems = why_not_as_expected(trials)
    picture = draw_layers(schedule, trials) if trials else None
    breaks = sum(trial.row.expected == "breaks" for trial in trials)
    return {
        "verdict": "broken" if problems else "proven",
        "headline": "not as expected" if problems else "as expected",
        "saying": f"{breaks} layers break the guarantee when they are taken away; {len(trials) - breaks} rows hold.",
        "reasons": problems,
        "facts": [
            ("orders per row", f"{len(schedule.orders):,}"),
            ("faults per row", f"{sum(schedule.planned().values()):,}"),
            ("rows", str(len(trials))),
            ("seed", str(schedule.seed)),
            ("queue", schedule.queue),
        ],
        "counters": [WORDS[counter] for counter in COUNTERS],
        "rows": [_row(trial) for trial in trials],
        "picture": Markup(picture.wide + picture.narrow) if picture else None,  # noqa: S704 - escaped where it was drawn
        "command": f"onceward prove --ablate --seed {schedule.seed} --orders {len(schedule.orders)}",
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
    }


def _row(trial: Trial) -> dict[str, Any]:
    row, orders = trial.row, max(len(trial.result.planned), trial.result.verdict.orders, 1)
    wait = publish_wait_ms(trial.result)
    return {
        "without": row.without,
        "leg": row.leg,
        "late": row.late,
        "faults": row.faults,
        "cells": [(f"{count:,}", "hit" if count else "", round(100 * count / orders)) for count in trial.counted.values()],
        "redeliveries": f"{trial.result.counts.redeliveries:,}",
        "wait": "" if wait is None else f"{wait:,} ms",
        "expected": row.expected,
        "ok": not trial.problems(),
        "why": row.why,
    }
