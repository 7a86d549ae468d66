"""The proof as an HTML page, for a manager and an engineer.

Every number is the checker's or the controller's; the page only adds and formats. Amounts are cents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from onceward_proof.faults import LEG_OF, STORIES
from onceward_proof.outcome import judge, saying
from onceward_proof.pages.legs import LEGS
from onceward_proof.pages.page import money, render_template
from onceward_proof.pages.pictures import Harm, draw_bars, draw_lanes
from onceward_proof.pages.story import Story, choose_story, faults_by_order
from onceward_proof.pages.tiles import alone, draw_variants
from onceward_proof.report import ROWS
from onceward_proof.run import Result
from onceward_proof.schedule import Schedule, make_schedule
from onceward_proof.workload import make_orders

HARMS: Final[tuple[tuple[str, str, Callable[[Result], Sequence[str]]], ...]] = (
    ("charged twice", "Charged twice or more", lambda r: r.verdict.double_charged),
    ("never paid", "Lost: never paid", lambda r: r.verdict.lost_first_hop),
    ("never booked", "Lost: paid, never booked", lambda r: r.verdict.lost_second_hop),
    ("booked twice", "Booked twice or more", lambda r: r.verdict.doubled_writes),
)
NO_FAULT: Final = "no aimed fault"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: its name, and a cell per variant (or per harm of a variant)."""

    name: str
    cells: tuple[Cell, ...]
    note: str = ""
    orders: int = 0
    leg: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """`mood` is bad, good, or nothing; `heat` is the share of harmed orders, in per cent."""

    text: str
    mood: str = ""
    heat: int = 0


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
    typed, meaning = run_again(schedule, results)
    return {
        "what": "proof",
        "mood": verdict,
        "headline": verdict,
        "saying": saying(verdict, schedule, results),
        "reasons": reasons,
        "seed": schedule.seed,
        "orders": f"{len(schedule.orders):,}",
        "facts": _facts(schedule, results),
        "variants": [result.variant for result in results],
        "accounts": [tell_account(schedule, result) for result in results],
        "counted": [_counted(name, read, results, is_harm=is_harm) for name, read, is_harm in ROWS],
        "sums": list(_sums(schedule, results)),
        "bars": draw_bars(_harms(results), _bars_title(results)) if results else None,
        "story": story,
        "lanes": draw_lanes(story, _lanes_title(story)) if story else None,
        "by_leg": leg_rows(schedule, results),
        "by_fault": heat_rows(schedule, results),
        "outcomes": draw_variants(schedule, results) if results else None,
        "heads": [[name for name, _ in _kinds(result)] for result in results],
        "faults": [_fault(name, count, results) for name, count in schedule.planned().items()],
        "command": typed,
        "again": meaning,
    }


# ---- the head --------------------------------------------------------------------------------------------------------


def _facts(schedule: Schedule, results: Sequence[Result]) -> list[tuple[str, str]]:
    kills = ", ".join(f"{_kills(result):,} {result.variant}" for result in results)
    return [
        ("orders", f"{len(schedule.orders):,}"),
        ("faults planned", f"{sum(schedule.planned().values()):,}"),
        ("SIGKILLs fired", kills or "none"),
        ("seed", str(schedule.seed)),
        ("queue", schedule.queue),
    ]


def _kills(result: Result) -> int:
    return sum(count for name, count in result.counts.fired.items() if name.startswith("kill"))


def tell_account(schedule: Schedule, result: Result) -> Account:
    """Harm first, in words and money; where there is none, one sentence says so."""
    harms = [sentence for happened, sentence in _told_harms(schedule, result) if happened]
    if not result.finished:
        harms.append(f"It stopped making progress ({result.why_stalled}).")
    calm = []
    if not harms:
        calm.append("Nobody was charged twice, nothing was lost, nothing was booked twice.")
        calm.append(f"{money(result.verdict.money.get('paid', 0))} charged, paid and booked: the three agree to the cent.")
    if parked := len(result.verdict.parked):
        calm.append(f"{_count(parked, 'order')} {_are(parked)} held for a person to decide.")
    sentences = (*((each, True) for each in harms), *((each, False) for each in calm))
    return Account(result.variant, sentences, clean=not harms)


def _told_harms(schedule: Schedule, result: Result) -> Iterator[tuple[bool, str]]:
    """Whether it happened, and the sentence for it."""
    verdict, amounts = result.verdict, {order.id: order.amount for order in schedule.orders}
    charged, paid, booked = (verdict.money.get(name, 0) for name in ("charged", "paid", "booked"))

    def lost(orders: Sequence[str]) -> str:
        worth = money(sum(amounts.get(order, 0) for order in orders))
        return f"{_count(len(orders), 'order')} worth {worth} {_were(len(orders))}"

    sums = f"{money(charged)} was taken for paid orders of {money(paid)}"
    yield charged > paid, f"Customers were charged {money(charged - paid)} too much: {sums}."
    yield charged < paid, f"{money(paid - charged)} too little was charged: {sums}."
    counted = (
        (verdict.double_charged, "order", "charged twice or more"),
        (verdict.phantom, "charge", "made for no order at all"),
        (verdict.wrong_charge, "order", "marked paid by a charge that does not fit"),
        (verdict.doubled_writes, "account", "booked twice or more"),
    )
    for names, noun, what in counted:
        yield bool(names), f"{_count(len(names), noun)} {_were(len(names))} {what}."
    yield bool(verdict.lost_first_hop), f"{lost(verdict.lost_first_hop)} lost: placed, never paid."
    yield bool(verdict.lost_second_hop), f"{lost(verdict.lost_second_hop)} paid, but the event was lost: never booked."
    yield booked != paid, f"The books say {money(booked)}, the paid orders {money(paid)}."


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


# ---- the tables ------------------------------------------------------------------------------------------------------


def _counted(name: str, read: Callable[[Result], float], results: Sequence[Result], *, is_harm: bool) -> Row:
    values = [read(result) for result in results]
    moods = [("bad" if value else "good") if is_harm else "" for value in values]
    cells = tuple(Cell(f"{value:,}", mood) for value, mood in zip(values, moods, strict=True))
    return Row(name.strip(), cells, "sub" if name.startswith(" ") else "")


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
            mood = "" if name == "paid" else "good" if sums.get(name) == sums.get("paid") else "bad"
            cells.append(Cell(money(sums.get(name, 0)), mood))
        yield Row(name, tuple(cells), source)


def _harms(results: Sequence[Result]) -> list[Harm]:
    return [Harm(title, tuple((r.variant, len(read(r))) for r in results)) for _, title, read in HARMS]


def _bars_title(results: Sequence[Result]) -> str:
    counted = (
        f"{harm.name}: " + ", ".join(f"{variant} {count:,}" for variant, count in harm.counts) for harm in _harms(results)
    )
    return "Bars per kind of harm and variant. " + "; ".join(counted) + "."


def _lanes_title(story: Story) -> str:
    told = [each for each in (story.doubled, story.beside) if each is not None]
    said = " ".join(f"{each.variant}: {each.outcome}" for each in told)
    return f"Timeline of order {story.order}. {said} The steps are listed below."


def _kinds(result: Result) -> list[tuple[str, frozenset[str]]]:
    """The columns of one variant in the heat table; `held` only where something is held."""
    kinds = [
        ("charged twice", frozenset(result.verdict.double_charged)),
        ("lost", frozenset(result.verdict.lost)),
        ("booked twice", frozenset(result.verdict.doubled_writes)),
    ]
    return [*kinds, ("held", frozenset(result.verdict.parked))] if result.verdict.parked else kinds


def heat_rows(schedule: Schedule, results: Sequence[Result]) -> list[Row]:
    """What became of the orders that bore exactly one aimed fault, per fault and variant; last, of those with none."""
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
    return Row(name, cells, orders=len(orders), leg=leg)


def _hot(orders: set[str], kind: str, hit: frozenset[str]) -> Cell:
    count = len(orders & hit)
    mood = "" if not count else "held" if kind == "held" else "bad"
    return Cell(f"{count:,}", mood, round(100 * count / len(orders)))


def _fault(name: str, planned: int, results: Sequence[Result]) -> Row:
    cells = []
    for result in results:
        fired = result.counts.fired[name]
        missed = f" ({planned - fired:,} unreached)" if fired < planned else ""
        cells.append(Cell(f"{fired:,}{missed}", "bad" if missed else ""))
    return Row(name, tuple(cells), STORIES[name], planned, LEG_OF[name])


# ---- again -----------------------------------------------------------------------------------------------------------


def run_again(schedule: Schedule, results: Sequence[Result]) -> tuple[str, str]:
    """What to type, and what it gives: from the seed where the seed makes this very schedule, else from its file."""
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
