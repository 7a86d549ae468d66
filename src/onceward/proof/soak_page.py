"""A soak as one HTML page that stands alone: the verdict, the counts, and what was measured over time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onceward import __version__
from onceward.proof.measure import KINDS, MEGABYTE, in_words
from onceward.proof.pictures import Series, draw_lines
from onceward.proof.soak import Soaked


def write_page(path: Path, soaked: Soaked) -> None:
    """Write the page; what was at `path` is replaced."""
    environment = Environment(
        loader=PackageLoader("onceward.proof", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    path.write_text(environment.get_template("soak.html").render(**_content(soaked)), encoding="utf-8")


def _content(soaked: Soaked) -> dict[str, Any]:
    document, reasons = soaked.to_json()["soak"], soaked.why_failed()
    picture = draw_lines(list(_series(soaked)), "What was measured over time")
    return {
        "version": __version__,
        "held": not reasons,
        "reasons": reasons,
        "soak": document,
        "seconds": f"{soaked.seconds:,.0f}",
        "findings": [(in_words(finding), finding.drifts) for finding in soaked.findings],
        "faults": document["faults"],
        "lines": Markup(picture.wide + picture.narrow),  # noqa: S704 - our own drawing
        "facts": [
            ("orders", f"{document['orders']:,}"),
            ("orders per second", document["orders_per_second"]),
            ("SIGKILLs", f"{document['kills']:,}"),
            ("SIGKILLs per second", document["kills_per_second"]),
            ("redeliveries", f"{document['redeliveries']:,}"),
            ("charges", f"{document['charges']:,}"),
            ("held, as predicted", f"{document['parked']} of {document['predicted_parked']}"),
            ("seed", document["seed"]),
        ],
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
