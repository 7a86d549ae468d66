"""The pictures of the reports: bars of harm, what became of the orders, lines over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from onceward_proof.ablation import Trial
from onceward_proof.outcome import FIGURES
from onceward_proof.pages.picture import render_picture, ticks
from onceward_proof.pages.story import faults_by_order
from onceward_proof.run import Result
from onceward_proof.schedule import Schedule

# What can become of an order, and its colour in the stylesheet. The worst comes first: an order counts as that.
OUTCOMES: Final = (
    ("charged twice", "bad"),
    ("lost", "ink"),
    ("booked twice", "warn"),
    ("held", "held"),
    ("paid once", "good"),
)


def draw_bars(results: Sequence[Result]) -> Markup:
    """One bar per variant and kind of harm, all on one scale; nothing is a green nought."""
    harms = [
        (figure.title, [(result.variant, figure.read(result)) for result in results])
        for figure in FIGURES
        if figure.is_harm and figure.shown
    ]
    most = max((count for _, counts in harms for _, count in counts), default=0) or 1
    words = (f"{title}: " + ", ".join(f"{variant} {count:,}" for variant, count in counts) for title, counts in harms)
    return render_picture("bars", f"Bars per kind of harm and variant. {'; '.join(words)}.", harms, most)


def alone(schedule: Schedule) -> dict[str, set[str]]:
    """Per fault, the orders that bore it and no other aimed fault."""
    orders: dict[str, set[str]] = {name: set() for name in schedule.planned()}
    for order, faults in faults_by_order(schedule).items():
        if len(faults) == 1:
            orders[faults[0]].add(order)
    return {name: of_fault for name, of_fault in orders.items() if of_fault}


def outcomes(result: Result, orders: set[str]) -> tuple[int, ...]:
    """How many of these orders had each outcome of OUTCOMES; each order counts as its worst."""
    verdict = result.verdict
    unharmed, counts = set(orders), []
    for harmed in (verdict.double_charged, verdict.lost, verdict.doubled_writes, verdict.parked):
        hit = unharmed & set(harmed)
        counts.append(len(hit))
        unharmed -= hit
    return (*counts, len(unharmed))


def draw_variants(schedule: Schedule, results: Sequence[Result]) -> Markup:
    """A row per fault, a column per variant."""
    rows = [(name, [outcomes(result, orders) for result in results]) for name, orders in alone(schedule).items()]
    title = "What became of the orders that bore one fault, per fault and variant. The same numbers are in the table below."
    return render_picture("outcomes", title, rows, [result.variant for result in results], OUTCOMES)


def draw_layers(schedule: Schedule, trials: Sequence[Trial]) -> Markup:
    """A row per layer that was removed, a column per aimed fault."""
    orders = alone(schedule)
    aimed = {fault for trial in trials for fault in trial.row.faults}
    faults = [fault for fault in orders if fault in aimed]
    rows = [(trial.row.without, [outcomes(trial.result, orders[fault]) for fault in faults]) for trial in trials]
    title = "What became of the orders that bore one aimed fault, per layer that was removed."
    return render_picture("outcomes", title, rows, faults, OUTCOMES)


@dataclass(frozen=True, slots=True)
class Series:
    """One thing over time: seconds and values, already in the unit that its title names."""

    title: str
    points: Sequence[tuple[float, float]]
    bad: bool = False

    @property
    def minutes(self) -> float:
        return max((seconds for seconds, _ in self.points), default=60.0) / 60 or 1.0

    @property
    def most(self) -> float:
        return max((value for _, value in self.points), default=1.0) * 1.1 or 1.0


def draw_lines(series: Sequence[Series], title: str) -> Markup:
    """Small pictures side by side, each on its own scale from nought, all over the same time."""
    return render_picture("lines", title, series, ticks)
