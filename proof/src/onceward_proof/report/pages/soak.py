"""A soak as one HTML page: the verdict, the counts, and what was measured over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from onceward_proof.prove.faults import LEG_OF
from onceward_proof.report.pages.page import render_template
from onceward_proof.soak.figures import figure_rows, finding_rows
from onceward_proof.soak.measure import KINDS, SLOPE_BYTES_MIN, SLOPE_FACTOR_MAX
from onceward_proof.soak.run import Soaked


class Series(NamedTuple):
    """One thing over time: seconds and values, already in the unit that its title names."""

    title: str
    points: Sequence[tuple[float, float]]
    bad: bool = False


def render(soaked: Soaked) -> str:
    """The page's text."""
    soak = soaked.to_json()["soak"]
    return render_template(
        "soak.html",
        soak=soak,
        rate=soaked.rate,
        reasons=soaked.why_failed(),
        figures=figure_rows(soak),
        findings=finding_rows(soak),
        cost_factor=SLOPE_FACTOR_MAX,
        cost_bytes=SLOPE_BYTES_MIN,
        legs_of=LEG_OF,
        series=list(_series(soaked)),
    )


def _series(soaked: Soaked) -> Iterator[Series]:
    """Orders per second, and each kind that was measured."""
    samples = soaked.samples
    rates = [
        (after.seconds, (after.orders - before.orders) / (after.seconds - before.seconds))
        for before, after in pairwise(samples[:: max(1, len(samples) // 60)])
        if after.seconds > before.seconds
    ]
    yield Series("orders per second", rates)
    drifting = {finding.kind for finding in soaked.findings if finding.drifts}
    for kind in KINDS:
        points = [(sample.seconds, kind.scaled(sample.values[kind.name])) for sample in samples]
        yield Series(f"{kind.title}, {kind.unit}" if kind.unit else kind.title, points, kind in drifting)
