"""A soak as one HTML page: the verdict, the counts, and what was measured over time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from onceward_proof.faults import LEG_OF
from onceward_proof.pages.page import render_template
from onceward_proof.pages.pictures import Series, draw_lines
from onceward_proof.soak.figures import figure_rows, finding_rows
from onceward_proof.soak.measure import KINDS, MEGABYTE, SLOPE_BYTES_MIN, SLOPE_FACTOR_MAX
from onceward_proof.soak.run import Soaked


def render(soaked: Soaked) -> str:
    """The page's text."""
    return render_template("soak.html", **_content(soaked))


def _content(soaked: Soaked) -> dict[str, Any]:
    soak, reasons = soaked.to_json()["soak"], soaked.why_failed()
    early = ", ended early by hand" if soaked.interrupted else ""
    return {
        "what": "soak",
        "mood": "broken" if reasons else "proven",
        "headline": "broken" if reasons else "held",
        "summary": f"{soak['doubled']} doubled, {soak['lost']} lost in {soaked.seconds:,.0f} s of faults{early}.",
        "reasons": reasons,
        "seed": soaked.seed,
        "orders": f"{soak['orders']:,}",
        "findings": finding_rows(soak),
        "cost_factor": f"{SLOPE_FACTOR_MAX:g}",
        "cost_bytes": f"{SLOPE_BYTES_MIN:g}",
        "faults": soak["faults"],
        "legs_of": LEG_OF,
        "lines": draw_lines(list(_series(soaked)), "What was measured over time"),
        "command": f"onceward prove --for {soaked.asked_seconds:g}s --rate {soaked.rate:g} --seed {soaked.seed}",
        "again": "The same seed gives the same orders and aims the same faults at them; how fast is the machine's part.",
        "facts": [(row.name, row.cells[0].text) for row in figure_rows(soak)] + [("seed", soak["seed"])],
    }


def _series(soaked: Soaked) -> Iterator[Series]:
    """Orders per second, and each kind that was measured."""
    samples = soaked.samples
    rates = [
        (after.seconds, (after.orders - before.orders) / (after.seconds - before.seconds))
        for before, after in pairwise(samples[:: max(1, len(samples) // 60)])
        if after.seconds > before.seconds
    ]
    yield Series("orders per second", rates)
    drifting = {finding.kind.name for finding in soaked.findings if finding.drifts}
    for kind in KINDS:
        scale, unit = (1, "") if kind.name == "connections" else (MEGABYTE, ", MB")
        points = [(sample.seconds, sample.values[kind.name] / scale) for sample in samples]
        yield Series(kind.title + unit, points, kind.name in drifting)
