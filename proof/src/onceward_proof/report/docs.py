"""The tables of docs/guarantees.md, written from the evidence that is kept beside the text.

The evidence is JSON that the tools wrote. `onceward docs refresh` puts each table between its markers; `--check` only says
whether the tables match. The figures are those of the runs in docs/evidence, not of this machine at this moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from onceward.errors import UsageError
from onceward_proof.ablation.rows import ablation_table
from onceward_proof.prove.faults import kills
from onceward_proof.prove.outcome import FIGURES
from onceward_proof.report.tables import row_of, to_markdown
from onceward_proof.soak.figures import figure_rows, finding_rows

Document = Mapping[str, Any]
CUTS: Final = {"before": "before the server had COMMIT", "after": "after it, before the answer"}
BOUNDS: Final = ("workers", "messages", "faults", "redrives", "lanes")


def refresh(text: str, evidence: Path) -> str:
    """`text` with every marked table rewritten from the evidence that there is.

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
    variants = document["variants"]
    # Evidence that was made before a figure was thought of does not have it.
    figures = [figure for figure in FIGURES if figure.key and all(figure.key in variant for variant in variants)]
    rows = [figure.row(variant[figure.key] for variant in variants) for figure in figures]
    fired = [{name: fault["fired"] for name, fault in variant["faults"].items()} for variant in variants]
    rows.append(row_of("SIGKILLs", *map(kills, fired)))
    resolve = " --resolve" if any(variant.get("resolved") for variant in variants) else ""
    command = f"`onceward prove{resolve} --orders {document['orders']} --seed {document['seed']}`: {document['verdict']}."
    return _with_command(to_markdown(["", *(variant["name"] for variant in variants)], rows), command)


def layers_table(document: Document) -> str:
    command = f"`onceward prove --ablate --orders {document['orders']} --seed {document['seed']}`: {document['verdict']}."
    return _with_command(to_markdown(*ablation_table(document["ablation"])), command)


def explore_table(document: Document) -> str:
    """Each passage is exhaustive within its own bound; together they have none."""
    rows = [
        row_of(p["name"], *(p["bound"].get(name, 0) for name in BOUNDS), p["states"], "yes" if p["exhausted"] else "no")
        for p in document["passages"]
    ]
    total = f"`onceward explore`: {document['states']:,} distinct states; violations: {len(document['violations'])}."
    return _with_command(to_markdown(["passage", *BOUNDS, "states", "exhausted"], rows), total)


def syscalls_table(document: Document) -> str:
    swept = [
        row_of(who, d["calls"], d["kills"], d["doubled"], d["lost"])
        for who, d in document["syscalls"].items()
        if isinstance(d, Mapping)
    ]
    cuts = [
        row_of(f"{shape}, {CUTS[cut]}", "yes" if d["committed"] else "no", d["redelivery"], d["doubled"], d["lost"])
        for shape, each in document["ambiguous"].items()
        for cut, d in each.items()
    ]
    table = to_markdown(["process", "system calls", "SIGKILLs", "doubled", "lost"], swept)
    table += "\n" + to_markdown(["connection cut", "committed", "the redelivery was", "doubled", "lost"], cuts)
    return _with_command(table, f"`onceward prove --every-syscall`: {'held' if document['ok'] else 'broken'}.")


def soak_table(document: Document) -> str:
    """What was counted, and of everything that was measured whether it grew."""
    soak = document["soak"]
    ended = "held" if document["ok"] else "broken: " + "; ".join(document["reasons"])
    command = f"`onceward prove --for {soak['asked_seconds']:g}s --seed {soak['seed']}`: {ended}."
    return _with_command(to_markdown(["", f"{soak['seconds']:,.0f} s"], [*figure_rows(soak), *finding_rows(soak)]), command)


def _with_command(table: str, command: str) -> str:
    return f"{table}\n{command}\n"


_MARKED: Final = re.compile(r"<!-- begin: (?P<name>[\w-]+) -->\n.*?<!-- end: (?P=name) -->", re.DOTALL)
TABLES: Final[dict[str, Callable[[Document], str]]] = {
    "prove": prove_table,
    "ablation": layers_table,
    "explore": explore_table,
    "syscalls": syscalls_table,
    "soak": soak_table,
}
