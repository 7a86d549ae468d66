"""The tables of docs/guarantees.md, written from evidence: JSON that the tools wrote, kept beside the text.

`onceward docs refresh` puts each table between its markers; `--check` only says whether they are what they should be. The
figures are those of the runs in docs/evidence, not of this machine at this moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from onceward.errors import UsageError
from onceward_proof.faults import GLOBAL
from onceward_proof.soak.measure import KINDS, Finding, in_words

Document = Mapping[str, Any]
CUTS: Final = {"before": "before the server had COMMIT", "after": "after it, before the answer"}
BOUNDS: Final = ("workers", "messages", "faults", "redrives", "lanes")


def refresh(text: str, evidence: Path) -> str:
    """`text` with every marked table written anew from the evidence that there is.

    Raises `UsageError` for a marker that no table is known for, or evidence that cannot be read.
    """

    def write(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise UsageError(f"no table is called {name!r}; there are: {', '.join(TABLES)}")
        return f"<!-- begin: {name} -->\n{_table(name, evidence)}<!-- end: {name} -->"

    return _MARKED.sub(write, text)


def _table(name: str, evidence: Path) -> str:
    file = evidence / f"{name}.json"
    if not file.exists():
        return f"*(no run is kept in {evidence.name}/{name}.json yet)*\n"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return TABLES[name](document)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not what the tool writes: {type(error).__name__}: {error}") from error


def prove_table(document: Document) -> str:
    rows = (
        ("orders", "orders"),
        ("charges at the provider", "charges"),
        ("**orders charged twice or more**", "double_charged_orders"),
        ("**events lost**", "lost_events"),
        ("**accounts booked twice or more**", "doubled_writes"),
        ("charges without an order", "phantom_charges"),
        ("held for a person, as predicted", "parked"),
        ("redeliveries", "redeliveries"),
        ("turned away by the inbox", "dedup_hits"),
    )
    variants = document["variants"]
    lines = _grid([""] + [v["name"] for v in variants], [[title, *(v[key] for v in variants)] for title, key in rows])
    kills = [sum(f["fired"] for name, f in v["faults"].items() if name.startswith("kill")) for v in variants]
    lines.append(_row(["SIGKILLs", *kills]))
    said = f"`onceward prove --orders {document['orders']} --seed {document['seed']}`: {document['verdict']}."
    return "\n".join([*lines, "", said, ""])


def ablation_table(document: Document) -> str:
    head = [
        "without",
        "leg",
        "double-charged",
        "lost",
        "doubled writes",
        "held",
        "delivered again",
        "expected",
        "as expected",
    ]
    keys = [
        "without", "leg", "double_charged_orders", "lost_events", "doubled_writes", "parked", "redeliveries", "expected",
    ]  # fmt: skip
    rows = [[*(row[key] for key in keys), "yes" if row.get("ok", True) else "**no**"] for row in document["ablation"]]
    said = f"`onceward prove --ablate --orders {document['orders']} --seed {document['seed']}`: {document['verdict']}."
    return "\n".join([*_grid(head, rows), "", said, ""])


def explore_table(document: Document) -> str:
    """Each passage is exhaustive within its own bound; no bound is claimed for all of them together."""
    head = ["passage", *BOUNDS, "states", "exhausted"]
    rows = [
        [p["name"], *(p["bound"].get(name, 0) for name in BOUNDS), p["states"], "yes" if p["exhausted"] else "no"]
        for p in document["passages"]
    ]
    total = f"`onceward explore`: {document['states']:,} distinct states; violations: {len(document['violations'])}."
    return "\n".join([*_grid(head, rows), "", total, ""])


def syscalls_table(document: Document) -> str:
    rows = [
        [who, d["calls"], d["kills"], d["doubled"], d["lost"]]
        for who, d in document["syscalls"].items()
        if isinstance(d, Mapping)
    ]
    cuts = [
        [f"{shape}, {CUTS[cut]}", "yes" if met["committed"] else "no", met["redelivery"], met["doubled"], met["lost"]]
        for shape, each in document["ambiguous"].items()
        for cut, met in each.items()
    ]
    swept = _grid(["process", "system calls", "SIGKILLs", "doubled", "lost"], rows)
    cut_off = _grid(["connection cut", "committed", "the redelivery was", "doubled", "lost"], cuts)
    said = f"`onceward prove --every-syscall`: {'held' if document['ok'] else 'broken'}."
    return "\n".join([*swept, "", *cut_off, "", said, ""])


def soak_table(document: Document) -> str:
    """What was counted, and of everything that was measured whether it grew."""
    soak = document["soak"]
    servers = sum(fault["fired"] for name, fault in soak["faults"].items() if name in GLOBAL)
    rows = [
        ["orders", soak["orders"]],
        ["SIGKILLs of workers and relays", soak["kills"]],
        ["SIGKILLs of database servers", servers],
        ["redeliveries", soak["redeliveries"]],
        ["**doubled**", soak["doubled"]],
        ["**lost**", soak["lost"]],
        ["parked for a person, as predicted", f"{soak['parked']} of {soak['predicted_parked']}"],
    ]
    rows += [_grown(found) for found in soak["drift"]]
    ended = "held" if document["ok"] else "broken: " + "; ".join(document["reasons"])
    said = f"`onceward prove --for {soak['asked_seconds']:g}s --seed {soak['seed']}`: {ended}."
    return "\n".join([*_grid(["", f"{soak['seconds']:,.0f} s"], rows), "", said, ""])


def _grown(found: Mapping[str, Any]) -> list[str]:
    kind = next(kind for kind in KINDS if kind.name == found["name"])
    words = in_words(Finding(kind, found["first"], found["last"], found["drifts"]))
    title, _, values = words.partition(": ")
    return [title, values + (" (**grows**)" if found["drifts"] else "")]


def _grid(head: list[Any], rows: list[list[Any]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"


_MARKED: Final = re.compile(r"<!-- begin: (?P<name>[\w-]+) -->\n.*?<!-- end: (?P=name) -->", re.DOTALL)
TABLES: Final[dict[str, Callable[[Document], str]]] = {
    "prove": prove_table,
    "ablation": ablation_table,
    "explore": explore_table,
    "syscalls": syscalls_table,
    "soak": soak_table,
}
