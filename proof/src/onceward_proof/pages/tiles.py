"""What became of the orders, per fault: by variant, or by the layer that was taken away. Numbers, and their picture."""

from __future__ import annotations

from collections.abc import Sequence

from onceward_proof.ablation import Trial
from onceward_proof.pages.canvas import Picture
from onceward_proof.pages.pictures import Tiles, draw_outcomes
from onceward_proof.pages.story import faults_by_order
from onceward_proof.run import Result
from onceward_proof.schedule import Schedule


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
