"""What a soak comes to, read from its JSON: for the terminal, the page and the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from onceward_proof.prove.faults import GLOBAL
from onceward_proof.report.tables import Cell, Figure, Row
from onceward_proof.soak.measure import Finding, values_in_words

Soak = Mapping[str, Any]


def _server_kills(soak: Soak) -> int:
    return sum(fault["fired"] for name, fault in soak["faults"].items() if name in GLOBAL)


FIGURES: Final[tuple[Figure[Soak], ...]] = (
    Figure("orders", itemgetter("orders")),
    Figure("orders per second", itemgetter("orders_per_second")),
    Figure("SIGKILLs of workers and relays", itemgetter("kills")),
    Figure("SIGKILLs of them per second", itemgetter("kills_per_second")),
    Figure("SIGKILLs of database servers", _server_kills),
    Figure("redelivered", itemgetter("redeliveries")),
    Figure("charges at the provider", itemgetter("charges")),
    Figure("doubled", itemgetter("doubled"), is_harm=True),
    Figure("lost", itemgetter("lost"), is_harm=True),
    Figure("parked, as predicted", lambda soak: f"{soak['parked']:,} of {soak['predicted_parked']:,}"),
)
# What evidence of an earlier version does not have.
NEWER: Final[tuple[Figure[Soak], ...]] = (
    Figure("partitions of a day that was due, dropped", itemgetter("partitions_dropped")),
    Figure("inbox rows of the days at hand", lambda soak: _rows_kept(soak["inbox_rows"])),
    Figure("workers that no fault strikes", lambda soak: _lives(soak["spared_workers"])),
)


def _rows_kept(inbox_rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(each['rows'] for each in inbox_rows):,} of {sum(each['messages'] for each in inbox_rows):,}"


def _lives(spared: Sequence[Mapping[str, Any]]) -> str:
    """How many there are, and how long the shortest-lived of them was watched."""
    if not spared:
        return "none was seen"
    return f"{len(spared)}, each for {min(each['lifetime_seconds'] for each in spared):,.0f} s or more"


def figure_rows(soak: Soak) -> list[Row]:
    figures = [*FIGURES, *(NEWER if "spared_workers" in soak else ())]
    return [figure.row([figure.read(soak)]) for figure in figures]


def finding_rows(soak: Soak) -> list[Row]:
    """Of everything that was measured: its first and last level, and whether it grew."""
    findings = [(finding, values_in_words(finding)) for finding in (Finding(**each) for each in soak["drift"])]
    return [Row(f.kind.title, (Cell(f"{values} (grows)", "bad") if f.drifts else Cell(values),)) for f, values in findings]
