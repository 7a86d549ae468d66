"""What a whole proof comes to: figures, verdict, and the JSON that is a public contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, assert_never

from onceward_proof.prove.faults import LEG_OF, STORIES, kills, strikes_from_outside
from onceward_proof.prove.harm import RESENT, became
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Schedule
from onceward_proof.prove.variants import TUTORIAL
from onceward_proof.report.lines import count_of, some_of
from onceward_proof.report.tables import Cell, Figure, Row

Verdict = Literal["proven", "broken", "inconclusive"]
EXIT_CODES: Final[dict[Verdict, int]] = {"proven": 0, "broken": 1, "inconclusive": 3}


def _told(read: Callable[[Result], int]) -> Callable[[Result], int | None]:
    """What workers report of their deliveries; None of those that report nothing."""
    return lambda result: None if result.outside_only else read(result)


def _hit_rate(result: Result) -> float:
    counts = result.counts
    return round(counts.dedup_hits / counts.dedup_checks, 4) if counts.dedup_checks else 0.0


# What a variant comes to, in the order of every table and of the JSON.
FIGURES: Final[tuple[Figure[Result], ...]] = (
    Figure("orders", lambda r: r.verdict.orders, "orders"),
    Figure("charges at the provider", lambda r: r.verdict.charges, "charges"),
    Figure("orders charged twice or more", lambda r: len(r.verdict.double_charged), "double_charged_orders", is_harm=True),
    Figure("charges without an order", lambda r: len(r.verdict.phantom), "phantom_charges", is_harm=True),
    Figure("events lost", lambda r: len(r.verdict.lost_first_hop) + len(r.verdict.lost_second_hop), "lost_events",
           is_harm=True, shown=False),
    Figure("events lost: never paid", lambda r: len(r.verdict.lost_first_hop), is_harm=True),
    Figure("events lost: paid, never booked", lambda r: len(r.verdict.lost_second_hop), is_harm=True),
    Figure("accounts booked twice or more", lambda r: len(r.verdict.doubled_writes), "doubled_writes", is_harm=True),
    Figure("waiting for a decision (parked)", lambda r: len(r.verdict.parked), "parked"),
    Figure("ended by a person (settled)", lambda r: len(r.resolved), "resolved"),
    Figure("predicted to be parked", lambda r: len(r.predicted_parked), "predicted_parked", shown=False),
    Figure("deliveries", _told(lambda r: r.counts.deliveries), "deliveries"),
    Figure("redelivered", _told(lambda r: r.counts.redeliveries), "redeliveries", part_of_above=True),
    Figure("looked up in the inbox", lambda r: r.counts.dedup_checks, "dedup_checks", shown=False),
    Figure("turned away by the inbox", lambda r: r.counts.dedup_hits, "dedup_hits", part_of_above=True),
    Figure("share of them turned away", _hit_rate, "dedup_hit_rate", shown=False),
    Figure("SIGKILLs", lambda r: kills(r.counts.fired), "kills"),
    Figure("of a consumer", lambda r: r.counts.kills_of_consumers, "kills_of_consumers", part_of_above=True),
    Figure("that held a delivery", _told(lambda r: r.counts.kills_holding), "kills_holding",
           part_of_above=True),
    Figure("seconds", lambda r: round(r.wall_seconds, 1)),
)  # fmt: skip
BY_KEY: Final = {figure.key: figure for figure in FIGURES}


def counted(results: Sequence[Result]) -> list[Row]:
    """The table of before and after: a row per figure, a cell per variant."""
    rows = [figure.row(map(figure.read, results)) for figure in FIGURES if figure.shown]
    if any(result.outside_only for result in results):
        rows.append(Row("struck", tuple(Cell("from outside only" if r.outside_only else "everywhere") for r in results)))
    return rows


def faults(results: Sequence[Result]) -> list[Row]:
    """A row per fault: how many were planned, and how many fired in each variant."""
    planned = results[0].planned if results else {}
    return [
        Row(name, (Cell(f"{count:,}"), *(_fired(name, result) for result in results)), STORIES[name], LEG_OF[name])
        for name, count in planned.items()
    ]


def _fired(name: str, result: Result) -> Cell:
    fault = result.faults()[name]
    if result.outside_only and not strikes_from_outside(name):
        return Cell("outside only")
    missing = [f"{fault[what]:,} {what}" for what in ("unreached", "unseen") if fault[what]]
    return Cell(f"{fault['fired']:,} ({', '.join(missing)})", "warn") if missing else Cell(f"{fault['fired']:,}")


def judge(results: Sequence[Result]) -> tuple[Verdict, list[str]]:
    """The verdict, and each reason in a sentence (none when it is proven)."""
    by_name = {result.variant: result for result in results}
    hardened, naive = by_name.get("hardened"), _what_must_break(by_name)
    # First of all: harm to the hardened variant is a fact, however little the rest of the run may prove.
    broken = why_broken(hardened) if hardened is not None else []
    if broken:
        return "broken", broken
    reasons: list[str] = []
    if hardened is None:
        reasons.append("the hardened variant was not run")
    if naive is None:
        reasons.append("the naive variant was not run: that hardened held proves nothing unless something else breaks")
    else:
        reasons += _why_naive_proves_nothing(naive)
    resend = by_name.get("resend")
    reasons += _why_resend_proves_nothing(resend) if resend is not None else []
    reasons += [reason for result in (naive, hardened) if result is not None for reason in _why_not_all_fired(result)]
    return ("inconclusive", reasons) if reasons else ("proven", [])


def _what_must_break(by_name: Mapping[str, Result]) -> Result | None:
    """The run without which hardened's proves nothing: naive, or the tutorials' service where naive was left out."""
    return by_name.get("naive") or by_name.get(TUTORIAL)


def summary(verdict: Verdict, schedule: Schedule, results: Sequence[Result]) -> str:
    """The verdict in a sentence, which begins with what was counted; where it is not proven, the reasons follow.

    A run under faults that were drawn at random is evidence of those faults, and of nothing else.
    """
    by_name = {result.variant: result for result in results}
    hardened, naive = by_name.get("hardened"), _what_must_break(by_name)
    under = _faults_in_words(hardened or next(iter(results), None), schedule)
    match verdict:
        case "inconclusive":
            return f"{under} struck. This run proves nothing, either way:"
        case "broken":
            return f"{under} struck. The hardened consumer broke its guarantee:"
        case "proven":
            doubled, lost = (len(naive.verdict.double_charged), len(naive.verdict.lost)) if naive else (0, 0)
            name = "naive service"
            if naive is not None and naive.outside_only:
                name = f"service of the client's tutorials, struck {_how_often(naive)} and from outside only,"
            held = _what_was_held(hardened) if hardened else ""
            return (
                f"No double charge, no lost event in {under}. Under the same schedule, the {name} charged "
                f"{count_of(doubled, 'order')} twice and lost {count_of(lost, 'order')}.{held}"
            )
    assert_never(verdict)


def _what_was_held(result: Result) -> str:
    """What became of the orders that a correct consumer must hold, as the end of a sentence; '' when nobody need know."""
    if result.resolution is not None:
        told = result.resolution.told()
        return (
            f" Held, as the schedule predicts, and then ended by a person: {len(result.resolved):,}"
            f"{f' ({told})' if told else ''}; each of the {result.verdict.orders:,} orders was charged once."
        )
    parked = len(result.verdict.parked)
    return f" Orders that wait for a decision, as the schedule predicts: {parked:,}." if parked else ""


def _how_often(result: Result) -> str:
    fired = sum(fault["fired"] for fault in result.faults().values())
    return "once" if fired == 1 else f"{fired:,} times"


def _faults_in_words(result: Result | None, schedule: Schedule) -> str:
    """How many faults struck this variant, of how many kinds, and how many of them were SIGKILLs; without one, planned."""
    fired = {name: fault["fired"] for name, fault in result.faults().items()} if result else schedule.planned()
    kinds = sum(1 for count in fired.values() if count)
    return f"{count_of(sum(fired.values()), 'fault')} of {count_of(kinds, 'kind')} ({count_of(kills(fired), 'SIGKILL')})"


def why_broken(result: Result) -> list[str]:
    """Every way in which this variant broke its guarantee; empty when it kept it."""
    verdict, parked, predicted = result.verdict, frozenset(result.verdict.parked), result.predicted_parked
    if result.resolution is not None:
        parked = frozenset(result.resolution.scenes)  # what was held before anybody decided
    counted = (
        (verdict.double_charged, "orders were charged more than once"),
        (verdict.phantom, "charges have no committed order"),
        (verdict.lost_first_hop, "orders were neither paid nor parked"),
        (verdict.lost_second_hop, "paid orders were never booked, nor parked"),
        (verdict.doubled_writes, "accounts hold more than was paid"),
        (verdict.wrong_charge, "paid orders name a charge that the provider does not have"),
        (parked - predicted, "orders are parked that the schedule does not predict"),
        (predicted - parked, "orders should be parked and are not"),
    )
    reasons = [f"{result.variant}: {len(names)} {what} ({some_of(names)})" for names, what in counted if names]
    money = verdict.money
    if len(set(money.values())) > 1:
        sums = ", ".join(f"{name} {amount}" for name, amount in money.items())
        reasons.append(f"{result.variant}: the sums differ: {sums}")
    reasons += _why_not_ended(result)
    if not result.finished:
        reasons.append(f"{result.variant}: no progress for {result.stalled_seconds:g} s ({result.why_stalled})")
    return reasons


def _why_not_ended(result: Result) -> list[str]:
    """What is wrong with the end of the orders that were held; nothing where nobody was to end them."""
    if result.resolution is None:
        return []
    verdict, reasons = result.verdict, list(result.resolution.flaws)
    if verdict.parked:
        reasons.append(f"{len(verdict.parked)} orders are held after people decided ({some_of(verdict.parked)})")
    if verdict.charges != verdict.orders:
        reasons.append(f"{verdict.orders} orders, each to be charged once, have {verdict.charges} charges")
    return [f"{result.variant}: {reason}" for reason in reasons]


def _why_naive_proves_nothing(naive: Result) -> list[str]:
    reasons = []
    if not naive.verdict.double_charged:
        reasons.append(f"{naive.variant}: no order was charged twice, so the faults prove nothing")
    # What loses an event strikes at its publish, which nothing from outside is aimed at.
    if not naive.verdict.lost and not naive.outside_only:
        reasons.append(f"{naive.variant}: no event was lost, so the faults prove nothing")
    if not naive.finished:
        reasons.append(f"{naive.variant}: no progress for {naive.stalled_seconds:g} s ({naive.why_stalled})")
    return reasons


def _why_resend_proves_nothing(resend: Result) -> list[str]:
    """It was run for leg 1: none of that leg's faults harms naive, which gives up where it should send again."""
    if any(became(resend.verdict, resend.alone.get(fault, ()))[harm] for fault, harm in RESENT.items()):
        return []
    return ["resend: no order was doubled by a lost confirmation, so the faults of leg 1 prove nothing"]


def _why_not_all_fired(result: Result) -> list[str]:
    reasons = []
    for name, fault in result.faults().items():
        if result.outside_only and not strikes_from_outside(name):
            continue
        if fault["unreached"]:
            reasons.append(f"{result.variant}: {fault['unreached']} of {name} never struck")
        if fault["unseen"]:
            reasons.append(
                f"{result.variant}: {fault['unseen']} of {name} struck, and no effect of it was seen from outside"
            )
    return reasons


def concurrency(threads: int, prefetch: int) -> str:
    """How many deliveries a consumer process may hold at once, in words."""
    return f"{count_of(threads, 'thread')} and a prefetch of {prefetch:,} in each consumer process"


def to_json(schedule: Schedule, schedule_file: str, results: Sequence[Result]) -> dict[str, Any]:
    """The public form.

    `lost_events` counts both hops; `deliveries` are counted by the wrapped source.
    """
    verdict, reasons = judge(results)
    at_once = {"threads": results[0].threads, "prefetch": results[0].prefetch}
    variants = [variant_json(result) for result in results]
    return document(schedule, schedule_file, verdict, reasons) | at_once | {"variants": variants}


def document(schedule: Schedule, schedule_file: str, verdict: str, reasons: list[str]) -> dict[str, Any]:
    """What the JSON of every run under a schedule begins with."""
    return {
        "seed": schedule.seed,
        "orders": len(schedule.orders),
        "queue": schedule.queue,
        "schedule": schedule_file,
        "verdict": verdict,
        "reasons": reasons,
    }


def variant_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.variant,
        "outside_only": result.outside_only,
        **{figure.key: figure.read(result) for figure in FIGURES if figure.key},
        "faults": result.faults(),
        "alone": {fault: _alone_json(result, orders) for fault, orders in result.alone.items()},
        "wall_seconds": round(result.wall_seconds, 2),
        "money": dict(result.verdict.money),
    }


def _alone_json(result: Result, orders: Collection[str]) -> dict[str, int]:
    """What became of the orders that nothing struck but this fault."""
    harms = {name.replace(" ", "_"): count for name, count in became(result.verdict, orders).items()}
    return {"orders": len(orders), **harms}
