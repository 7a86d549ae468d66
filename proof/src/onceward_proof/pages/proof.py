"""The proof as an HTML page, for a manager and an engineer.

Every number is the checker's or the controller's; the page only adds and formats. Amounts are cents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from onceward_proof.faults import LEG_OF
from onceward_proof.lines import count_of
from onceward_proof.outcome import counted, faults, judge, kills, summary
from onceward_proof.pages.lanes import draw_lanes
from onceward_proof.pages.legs import LEGS
from onceward_proof.pages.page import money, render_template
from onceward_proof.pages.pictures import alone, draw_bars, draw_variants
from onceward_proof.pages.story import Story, choose_story, faults_by_order
from onceward_proof.run import Result
from onceward_proof.schedule import Schedule, make_schedule
from onceward_proof.tables import Cell, Mood, Row
from onceward_proof.workload import make_orders

NO_FAULT: Final = "no aimed fault"


@dataclass(frozen=True, slots=True)
class Account:
    """What one variant did to people and money, in sentences."""

    variant: str
    sentences: tuple[tuple[str, bool], ...]  # and whether it is harm
    clean: bool


def render(schedule: Schedule, results: Sequence[Result]) -> str:
    """The page's text."""
    return render_template("report.html", **_content(schedule, results))


def _content(schedule: Schedule, results: Sequence[Result]) -> dict[str, Any]:
    verdict, reasons = judge(results)
    story = choose_story(schedule, results)
    command, meaning = run_again(schedule, results)
    return {
        "what": "proof",
        "mood": verdict,
        "headline": verdict,
        "summary": summary(verdict, schedule, results),
        "reasons": reasons,
        "seed": schedule.seed,
        "orders": f"{len(schedule.orders):,}",
        "facts": _facts(schedule, results),
        "variants": [result.variant for result in results],
        "accounts": [tell_account(schedule, result) for result in results],
        "counted": counted(results),
        "sums": list(_sums(schedule, results)),
        "bars": draw_bars(results) if results else None,
        "story": story,
        "lanes": draw_lanes(story, _lanes_title(story)) if story else None,
        "by_leg": leg_rows(schedule, results),
        "by_fault": heat_rows(schedule, results),
        "outcomes": draw_variants(schedule, results) if results else None,
        "heads": [[name for name, _ in _kinds(result)] for result in results],
        "faults": faults(results),
        "command": command,
        "again": meaning,
    }


def _facts(schedule: Schedule, results: Sequence[Result]) -> list[tuple[str, str]]:
    killed = ", ".join(f"{kills(result.counts.fired):,} {result.variant}" for result in results)
    return [
        ("orders", f"{len(schedule.orders):,}"),
        ("faults planned", f"{sum(schedule.planned().values()):,}"),
        ("SIGKILLs fired", killed or "none"),
        ("seed", str(schedule.seed)),
        ("queue", schedule.queue),
    ]


def tell_account(schedule: Schedule, result: Result) -> Account:
    """Harm first, in words and money; where there is none, one sentence says so."""
    harms = [sentence for happened, sentence in _harms_in_words(schedule, result) if happened]
    if not result.finished:
        harms.append(f"It stopped making progress ({result.why_stalled}).")
    unharmed = []
    if not harms:
        unharmed.append("Nobody was charged twice, nothing was lost, nothing was booked twice.")
        unharmed.append(
            f"{money(result.verdict.money.get('paid', 0))} charged, paid and booked: the three agree to the cent."
        )
    if parked := len(result.verdict.parked):
        unharmed.append(f"{count_of(parked, 'order')} {'waits' if parked == 1 else 'wait'} for a decision (parked).")
    sentences = (*((each, True) for each in harms), *((each, False) for each in unharmed))
    return Account(result.variant, sentences, clean=not harms)


def _harms_in_words(schedule: Schedule, result: Result) -> Iterator[tuple[bool, str]]:
    """Whether it happened, and the sentence for it."""
    verdict, amounts = result.verdict, {order.id: order.amount for order in schedule.orders}
    charged, paid, booked = (verdict.money.get(name, 0) for name in ("charged", "paid", "booked"))

    def lost(orders: Sequence[str]) -> str:
        worth = money(sum(amounts.get(order, 0) for order in orders))
        return f"{count_of(len(orders), 'order')} worth {worth} {_were(len(orders))}"

    sums = f"{money(charged)} was taken for paid orders of {money(paid)}"
    yield charged > paid, f"Customers were charged {money(charged - paid)} too much: {sums}."
    yield charged < paid, f"{money(paid - charged)} too little was charged: {sums}."
    named = (
        (verdict.double_charged, "order", "charged twice or more"),
        (verdict.phantom, "charge", "made for no order at all"),
        (verdict.wrong_charge, "order", "marked paid by a charge that does not fit"),
        (verdict.doubled_writes, "account", "booked twice or more"),
    )
    for names, noun, what in named:
        yield bool(names), f"{count_of(len(names), noun)} {_were(len(names))} {what}."
    yield bool(verdict.lost_first_hop), f"{lost(verdict.lost_first_hop)} lost: placed, never paid."
    yield bool(verdict.lost_second_hop), f"{lost(verdict.lost_second_hop)} paid, but the event was lost: never booked."
    yield booked != paid, f"The books say {money(booked)}, the paid orders {money(paid)}."


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _sums(schedule: Schedule, results: Sequence[Result]) -> Iterator[Row]:
    """The three sums that must agree; what differs from the paid orders is bad."""
    yield Row("ordered", tuple(Cell(money(sum(order.amount for order in schedule.orders))) for _ in results))
    for name, source in (
        ("paid", "orders marked paid, in the database"),
        ("charged", "in the provider's ledger"),
        ("booked", "account balances, in the database"),
    ):
        cells = []
        for result in results:
            sums = result.verdict.money
            mood: Mood = "" if name == "paid" else "good" if sums.get(name) == sums.get("paid") else "bad"
            cells.append(Cell(money(sums.get(name, 0)), mood))
        yield Row(name, tuple(cells), source)


def _lanes_title(story: Story) -> str:
    outcomes = " ".join(f"{course.variant}: {course.outcome}" for course in story.courses)
    return f"Timeline of order {story.order}. {outcomes} The steps are listed below."


def _kinds(result: Result) -> list[tuple[str, frozenset[str]]]:
    """The columns of one variant in the heat table; `held` only where something is held."""
    kinds = [
        ("charged twice", frozenset(result.verdict.double_charged)),
        ("lost", frozenset(result.verdict.lost)),
        ("booked twice", frozenset(result.verdict.doubled_writes)),
    ]
    return [*kinds, ("held", frozenset(result.verdict.parked))] if result.verdict.parked else kinds


def heat_rows(schedule: Schedule, results: Sequence[Result]) -> list[Row]:
    """What became of the orders that bore exactly one aimed fault; last, of those with none."""
    struck = faults_by_order(schedule)
    groups = alone(schedule) | {NO_FAULT: {order.id for order in schedule.orders if order.id not in struck}}
    return [_heat(name, LEG_OF.get(name, ""), orders, results) for name, orders in groups.items() if orders]


def leg_rows(schedule: Schedule, results: Sequence[Result]) -> list[Row]:
    """The same per leg: every leg whose faults are aimed at orders."""
    groups: dict[str, set[str]] = {leg: set() for leg in LEGS}
    for name, orders in alone(schedule).items():
        groups[LEG_OF[name]] |= orders
    return [_heat(leg, leg, orders, results) for leg, orders in groups.items() if orders]


def _heat(name: str, leg: str, orders: set[str], results: Sequence[Result]) -> Row:
    cells = tuple(_hot(orders, kind, hit) for result in results for kind, hit in _kinds(result))
    return Row(name, cells, leg=leg, total=len(orders))


def _hot(orders: set[str], kind: str, hit: frozenset[str]) -> Cell:
    count = len(orders & hit)
    mood: Mood = "" if not count else "held" if kind == "held" else "bad"
    return Cell(f"{count:,}", mood, round(100 * count / len(orders)))


def run_again(schedule: Schedule, results: Sequence[Result]) -> tuple[str, str]:
    """What to type, and what it gives: from the seed if possible, else from the schedule's file."""
    names = [result.variant for result in results]
    variants = "" if names == ["naive", "hardened"] or not names else f" --variants {','.join(names)}"
    seed, queue, count = schedule.seed, schedule.queue, len(schedule.orders)
    if count and make_schedule(make_orders(count, seed), seed, queue) == schedule:
        meaning = "The same seed makes the same orders and the same schedule of faults."
        return f"onceward prove --seed {seed} --orders {count}{variants}", meaning
    if make_schedule(schedule.orders, seed, queue) == schedule:
        meaning = "These orders came from a file: with the same file, the same seed makes the same schedule of faults."
        return f"onceward prove --seed {seed} --orders-from ORDERS.csv{variants}", meaning
    meaning = "This schedule was changed by hand, or made by another version: only its file brings the same faults back."
    return f"onceward prove --schedule SCHEDULE.json{variants}", meaning
