"""The proof as an HTML page, for a manager and an engineer.

Every number is the checker's or the controller's; the page only adds and formats. Amounts are cents.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from importlib import import_module
from typing import Final

from onceward_proof.prove.faults import LEG_OF, kills
from onceward_proof.prove.outcome import FIGURES, counted, faults, judge, summary
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Schedule, make_schedule
from onceward_proof.prove.variants import TUTORIAL, module_of
from onceward_proof.prove.workload import make_orders
from onceward_proof.report.pages.lanes import lanes_of
from onceward_proof.report.pages.legs import HEADINGS
from onceward_proof.report.pages.orders import HARMS, NAMES, outcomes
from onceward_proof.report.pages.page import render_template
from onceward_proof.report.pages.story import choose_story
from onceward_proof.report.tables import Cell, Mood, Row
from onceward_proof.workers.setting import QueueName

OUTSIDE_ONLY: Final = "It is struck from outside only: no fault at a publish or at an ack can reach it."


def render(schedule: Schedule, results: Sequence[Result]) -> str:
    """The page's text."""
    verdict, reasons = judge(results)
    story = choose_story(schedule, results)
    command, again = run_again(schedule, results)
    return render_template(
        "report.html",
        schedule=schedule,
        results=results,
        notes={result.variant: note(result.variant, schedule.queue) for result in results},
        verdict=verdict,
        summary=summary(verdict, schedule, results),
        reasons=reasons,
        kills=kills,
        counted=counted(results),
        bars=[
            (figure, [figure.read(result) for result in results]) for figure in FIGURES if figure.is_harm and figure.shown
        ],
        story=story,
        lanes=lanes_of(story) if story else [],
        by_leg=leg_rows(schedule, results),
        by_fault=heat_rows(schedule, results),
        outcomes=[(name, [outcomes(result, orders) for result in results]) for name, orders in schedule.alone().items()],
        kinds=NAMES,
        heads=[list(_kinds(result)) for result in results],
        faults=faults(results),
        command=command,
        again=again,
    )


def note(variant: str, queue: QueueName = "pgmq") -> str:
    """What this variant of the service is: the first line of its module's docstring."""
    module = module_of(variant, queue)
    told = (import_module(module).__doc__ or "").partition("\n")[0] if module else ""
    return f"{told} {OUTSIDE_ONLY}" if variant == TUTORIAL else told


def _kinds(result: Result) -> dict[str, frozenset[str]]:
    """The columns of one variant in the heat table; `held` only where something is held."""
    kinds = {name: frozenset(read(result.verdict)) for name, _, read in HARMS}
    return {name: orders for name, orders in kinds.items() if orders or name != "held"}


def heat_rows(schedule: Schedule, results: Sequence[Result]) -> list[Row]:
    """What became of the orders that bore exactly one aimed fault; last, of those with none."""
    struck = schedule.faults_by_order()
    groups = schedule.alone()
    groups["no aimed fault"] = frozenset(order.id for order in schedule.orders if order.id not in struck)
    return [_heat(name, LEG_OF.get(name, ""), orders, results) for name, orders in groups.items() if orders]


def leg_rows(schedule: Schedule, results: Sequence[Result]) -> list[Row]:
    """The same per leg: every leg whose faults are aimed at orders."""
    groups: dict[str, set[str]] = {leg: set() for leg in HEADINGS}
    for name, orders in schedule.alone().items():
        groups[LEG_OF[name]] |= orders
    return [_heat(leg, leg, orders, results) for leg, orders in groups.items() if orders]


def _heat(name: str, leg: str, orders: Set[str], results: Sequence[Result]) -> Row:
    cells = tuple(_hot(orders, kind, hit) for result in results for kind, hit in _kinds(result).items())
    return Row(name, cells, leg=leg, total=len(orders))


def _hot(orders: Set[str], kind: str, hit: frozenset[str]) -> Cell:
    count = len(orders & hit)
    mood: Mood = "" if not count else "held" if kind == "held" else "bad"
    return Cell(f"{count:,}", mood, round(100 * count / len(orders)))


def run_again(schedule: Schedule, results: Sequence[Result]) -> tuple[str, str]:
    """What to type, and what it gives: from the seed if possible, else from the schedule's file."""
    names = [result.variant for result in results]
    variants = "" if names == ["naive", "hardened"] or not names else f" --variants {','.join(names)}"
    if results and (results[0].threads, results[0].prefetch) != (1, 0):
        variants += f" --threads {results[0].threads} --prefetch {results[0].prefetch}"
    variants += " --resolve" if any(result.resolution is not None for result in results) else ""
    seed, queue, count = schedule.seed, schedule.queue, len(schedule.orders)
    variants += "" if queue == "pgmq" else f" --queue {queue}"
    if count and make_schedule(make_orders(count, seed), seed, queue) == schedule:
        meaning = "The same seed makes the same orders and the same schedule of faults."
        return f"onceward prove --seed {seed} --orders {count}{variants}", meaning
    if make_schedule(schedule.orders, seed, queue) == schedule:
        meaning = "These orders came from a file: with the same file, the same seed makes the same schedule of faults."
        return f"onceward prove --seed {seed} --orders-from ORDERS.csv{variants}", meaning
    meaning = "This schedule was changed by hand, or made by another version: only its file brings the same faults back."
    return f"onceward prove --schedule SCHEDULE.json{variants}", meaning
