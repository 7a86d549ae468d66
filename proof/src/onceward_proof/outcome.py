"""What a whole proof came to: the verdict over all variants, and the JSON that is a public contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from onceward_proof.run import Result
from onceward_proof.schedule import Schedule

Verdict = Literal["proven", "broken", "inconclusive"]
EXIT_CODES: Final[dict[Verdict, int]] = {"proven": 0, "broken": 1, "inconclusive": 3}


def judge(results: Sequence[Result]) -> tuple[Verdict, list[str]]:
    """The verdict, and each reason in a sentence (none when it is proven)."""
    by_name = {result.variant: result for result in results}
    hardened, naive = by_name.get("hardened"), by_name.get("naive")
    broken = why_broken(hardened) if hardened is not None else []
    if broken:
        return "broken", broken
    reasons: list[str] = []
    if hardened is None:
        reasons.append("the hardened variant was not run")
    if naive is None:
        reasons.append("the naive variant was not run: that nothing broke proves nothing unless something else breaks")
    else:
        reasons += _why_naive_proves_nothing(naive)
    reasons += [reason for result in (naive, hardened) if result is not None for reason in _why_not_all_fired(result)]
    return ("inconclusive", reasons) if reasons else ("proven", [])


def saying(verdict: Verdict, schedule: Schedule, results: Sequence[Result]) -> str:
    """The verdict in a sentence; where it is not proven, the reasons follow."""
    if verdict == "inconclusive":
        return "This run proves nothing, either way:"
    if verdict == "broken":
        return "The hardened consumer broke its guarantee:"
    parked = next(len(result.verdict.parked) for result in results if result.variant == "hardened")
    held = f" Held for a person, as the schedule predicts: {parked:,}." if parked else ""
    faults = f"Under the same {sum(schedule.planned().values()):,} faults"
    return f"{faults}, the naive service charged twice and lost orders; the hardened one did neither.{held}"


def why_broken(result: Result) -> list[str]:
    """Every way in which this variant broke its guarantee; empty when it kept it."""
    verdict = result.verdict
    counted = (
        (verdict.double_charged, "orders were charged more than once"),
        (verdict.phantom, "charges have no committed order"),
        (verdict.lost_first_hop, "orders were neither paid nor parked"),
        (verdict.lost_second_hop, "paid orders were never booked, nor parked"),
        (verdict.doubled_writes, "accounts hold more than was paid"),
        (verdict.wrong_charge, "paid orders name a charge that the provider does not have"),
    )
    reasons = [f"{result.variant}: {len(names)} {what} ({_some(names)})" for names, what in counted if names]
    reasons += _why_parked_differs(result)
    money = verdict.money
    if len(set(money.values())) > 1:
        sums = ", ".join(f"{name} {amount}" for name, amount in money.items())
        reasons.append(f"{result.variant}: the sums differ: {sums}")
    if not result.finished:
        reasons.append(f"{result.variant}: no progress for 20 s ({result.why_stalled})")
    return reasons


def _why_parked_differs(result: Result) -> list[str]:
    parked = set(result.verdict.parked)
    more, fewer = sorted(parked - result.predicted_parked), sorted(result.predicted_parked - parked)
    reasons = []
    if more:
        reasons.append(
            f"{result.variant}: {len(more)} orders are parked that the schedule does not predict ({_some(more)})"
        )
    if fewer:
        reasons.append(f"{result.variant}: {len(fewer)} orders should be parked and are not ({_some(fewer)})")
    return reasons


def _why_naive_proves_nothing(naive: Result) -> list[str]:
    reasons = []
    if not naive.verdict.double_charged:
        reasons.append("naive: no order was charged twice, so the faults prove nothing")
    if not naive.verdict.lost:
        reasons.append("naive: no event was lost, so the faults prove nothing")
    if not naive.finished:
        reasons.append(f"naive: no progress for 20 s ({naive.why_stalled})")
    return reasons


def _why_not_all_fired(result: Result) -> list[str]:
    return [f"{result.variant}: {count} of {name} never struck" for name, count in result.unreached().items()]


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def to_json(schedule: Schedule, schedule_file: str, results: Sequence[Result]) -> dict[str, Any]:
    """The public form. `lost_events` counts both hops; `deliveries` come from the wrapped source."""
    verdict, reasons = judge(results)
    return {
        "seed": schedule.seed,
        "orders": len(schedule.orders),
        "queue": schedule.queue,
        "schedule": schedule_file,
        "verdict": verdict,
        "reasons": reasons,
        "variants": [variant_json(result) for result in results],
    }


def variant_json(result: Result) -> dict[str, Any]:
    verdict, counts = result.verdict, result.counts
    return {
        "name": result.variant,
        "orders": verdict.orders,
        "charges": verdict.charges,
        "double_charged_orders": len(verdict.double_charged),
        "phantom_charges": len(verdict.phantom),
        "lost_events": len(verdict.lost_first_hop) + len(verdict.lost_second_hop),
        "doubled_writes": len(verdict.doubled_writes),
        "parked": len(verdict.parked),
        "predicted_parked": len(result.predicted_parked),
        "deliveries": counts.deliveries,
        "redeliveries": counts.redeliveries,
        "dedup_checks": counts.dedup_checks,
        "dedup_hits": counts.dedup_hits,
        "dedup_hit_rate": round(counts.dedup_hits / counts.dedup_checks, 4) if counts.dedup_checks else 0.0,
        "faults": {name: _fault_json(result, name, planned) for name, planned in result.planned.items()},
        "wall_seconds": round(result.wall_seconds, 2),
        "money": dict(verdict.money),
    }


def _fault_json(result: Result, name: str, planned: int) -> dict[str, int]:
    fired = result.counts.fired[name]
    return {"planned": planned, "fired": fired, "unreached": planned - fired}
