"""The tables of the pages in docs, written from the evidence that is kept beside them.

The evidence is JSON that the tools wrote. `onceward docs refresh` puts each table between its markers, and below it what
its run was made with; `--check` only says whether the tables match, and whether the core is still the one that ran. The
figures are those of the runs in docs/evidence, not of this machine at this moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from onceward.errors import UsageError
from onceward_proof.ablation.rows import ablation_table
from onceward_proof.prove.faults import AIMED, GLOBAL, KILL_RANDOM, LEG_OF, kills, struck
from onceward_proof.prove.outcome import FIGURES
from onceward_proof.queue_settings.rows import HARMS, settings_table
from onceward_proof.report.kept_runs import BROKERS, KEPT_RUNS, QUEUES
from onceward_proof.report.made import core_checksum, to_sentence
from onceward_proof.report.tables import Cell, row_of, to_markdown
from onceward_proof.soak.figures import figure_rows, finding_rows

Document = Mapping[str, Any]
CUTS: Final = {"before": "before the server had COMMIT", "after": "after it, before the answer"}
NO_PROVENANCE: Final = "The commit and the machine of this run were not recorded."
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


def missing(evidence: Path) -> list[str]:
    """Which runs are not kept, and the command that makes each."""
    return [
        f"{run}.json is not there: `{_making(run, evidence)}`" for run in RUNS if not (evidence / f"{run}.json").exists()
    ]


def _making(run: str, evidence: Path) -> str:
    return f"{KEPT_RUNS[run]} --json {evidence / f'{run}.json'}"


def outdated(evidence: Path) -> list[str]:
    """Which kept runs are of another core than this one, and the command that makes each again."""
    found = []
    for run in RUNS:
        document = _read(run, evidence)
        facts, now = document.get("made"), core_checksum(queue=document.get("queue", "pgmq"))
        if facts is not None and facts["core"] != now:
            again = f"{facts['command']} --json {evidence / f'{run}.json'}"
            found.append(f"{run}.json is of core {facts['core']}, the core is now {now}: `{again}`")
    return found


def without_provenance(evidence: Path) -> set[str]:
    """The kept runs that do not say what they were made with."""
    return {run for run in RUNS if (document := _read(run, evidence)) and "made" not in document}


def marked_pages(folder: Path) -> list[Path]:
    """The pages of this folder, and the README beside it, that hold a table of ours."""
    files = [*sorted(folder.glob("*.md")), *folder.parent.glob("README.md")]
    pages = [(page, _MARKED.finditer(page.read_text(encoding="utf-8"))) for page in files]
    # Other tools have markers of their own.
    return [page for page, marks in pages if any(mark["name"] in TABLES for mark in marks)]


def _read(run: str, evidence: Path) -> Document:
    file = evidence / f"{run}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _table(name: str, evidence: Path) -> str:
    runs, write = TABLES[name]
    kept = {run: document for run in runs if (document := _read(run, evidence))}
    lines = [f"*({run} is not made yet: `{KEPT_RUNS[run]}`)*\n" for run in runs if run not in kept]
    try:
        written = [f"{write(*kept.values())}\n{_sources(kept)}\n"] if kept else []
    except (ValueError, KeyError, TypeError) as error:
        files = ", ".join(f"{run}.json" for run in kept)
        raise UsageError(f"{evidence / files} is not what the tool writes: {type(error).__name__}: {error}") from error
    return "\n".join(written + lines)


def _sources(kept: Mapping[str, Document]) -> str:
    """What each run was made with; runs that were made with the same share a line."""
    by_source: dict[str, list[str]] = {}
    for document in kept.values():
        source = to_sentence(document["made"]) if "made" in document else NO_PROVENANCE
        by_source.setdefault(source, []).append(document.get("queue", ""))
    if len(kept) == 1:
        return next(iter(by_source))
    return "\n".join(f"- {', '.join(queues)}: {source}" for source, queues in by_source.items())


def prove_table(document: Document) -> str:
    variants = document["variants"]
    # Evidence that was made before a figure was thought of does not have it.
    rows = [figure.row(v[figure.key] for v in variants) for figure in FIGURES if figure.key in variants[0]]
    if "kills" not in variants[0]:  # evidence from before the JSON had them
        fired = [{name: fault["fired"] for name, fault in variant["faults"].items()} for variant in variants]
        rows.append(row_of("SIGKILLs", *map(kills, fired)))
    return _with_command(to_markdown(["", *(variant["name"] for variant in variants)], rows), _prove_command(document))


def _prove_command(document: Document) -> str:
    names = ",".join(variant["name"] for variant in document["variants"])
    variants = "" if names == "naive,hardened" else f" --variants {names}"
    at_once = "".join(f" --{name} {document[name]}" for name in ("threads", "prefetch") if name in document)
    resolve = " --resolve" if any(variant.get("resolved") for variant in document["variants"]) else ""
    queue = "" if document["queue"] == "pgmq" else f" --queue {document['queue']}"
    command = f"onceward prove{queue}{resolve} --orders {document['orders']} --seed {document['seed']}{at_once}{variants}"
    return f"`{command}`: {document['verdict']}."


def faults_table(document: Document) -> str:
    """Per fault: whom it strikes, what is expected of it, and what became of the orders that it alone struck."""
    variants = document["variants"]
    head = ["fault", "leg", "strikes, naive and resend", "strikes, hardened", "expected to harm"]
    rows = [
        row_of(f"`{name}`", LEG_OF[name], *struck(name), _expected(name), *(_harmed(name, v) for v in variants))
        for name in (*AIMED, KILL_RANDOM, *GLOBAL)
    ]
    return _with_command(to_markdown([*head, *(variant["name"] for variant in variants)], rows), _prove_command(document))


def _expected(name: str) -> str:
    fault = AIMED.get(name)
    if fault is None:
        return "whatever work it meets"
    by_harm: dict[str, list[str]] = {}
    for variant, harm in fault.harms.items():
        by_harm.setdefault(harm, []).append(variant)
    harms = [f"{', '.join(variants)}: {harm}" for harm, variants in by_harm.items()]
    if not fault.is_control:
        return "; ".join(harms)
    return "; ".join(["**control group** here", *harms, fault.why])


def _harmed(name: str, variant: Document) -> str:
    """How many of the orders that this fault alone struck were harmed; a hyphen where the run does not say."""
    found = variant.get("alone", {}).get(name)
    if not found:
        return "-"
    harmed = sum(found[harm] for harm in ("charged_twice", "lost", "booked_twice"))
    held = f", {found['held']} held" if found["held"] else ""
    return f"{harmed} of {found['orders']}{held}"


def layers_table(document: Document) -> str:
    command = f"`onceward prove --ablate --orders {document['orders']} --seed {document['seed']}`: {document['verdict']}."
    return _with_command(to_markdown(*ablation_table(document["ablation"])), command)


def queue_settings_table(document: Document) -> str:
    return _with_command(to_markdown(*settings_table(document["settings"], document["queue"])), _settings_command(document))


def _settings_command(document: Document) -> str:
    queue = "" if document["queue"] == "pgmq" else f" --queue {document['queue']}"
    arguments = f"--orders {document['orders']} --seed {document['seed']}"
    return f"`onceward prove --queue-settings{queue} {arguments}`: {document['verdict']}."


def broker_settings_table(*documents: Document) -> str:
    """A row per queue and setting of its own."""
    head: list[str] = []
    rows = []
    for document in documents:
        (_, *titles), settings = settings_table(document["settings"], document["queue"])
        head = ["queue", "setting", *titles]
        rows += [replace(row, name=document["queue"], cells=(Cell(row.name), *row.cells)) for row in settings]
    return _with_command(to_markdown(head, rows), "\n".join(f"- {_settings_command(document)}" for document in documents))


def brokers_table(*documents: Document) -> str:
    """The same proof on every queue: a row per queue."""
    counted = " · ".join(HARMS.values())
    head = ["queue", "orders", "SIGKILLs", f"naive: {counted}", "hardened: the same", "parked (predicted)", "verdict"]
    rows = []
    for document in documents:
        naive, hardened = ({v["name"]: v for v in document["variants"]}[name] for name in ("naive", "hardened"))
        counts = (" · ".join(f"{v[harm]:,}" for harm in HARMS) for v in (naive, hardened))
        parked = f"{hardened['parked']:,} ({hardened['predicted_parked']:,})"
        rows.append(row_of(document["queue"], document["orders"], hardened["kills"], *counts, parked, document["verdict"]))
    return _with_command(to_markdown(head, rows), "\n".join(f"- {_prove_command(document)}" for document in documents))


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
    table = to_markdown(["one thread of", "system calls", "SIGKILLs", "doubled", "lost"], swept)
    table += "\n" + to_markdown(["connection cut", "committed", "the redelivery was", "doubled", "lost"], cuts)
    return _with_command(
        table, f"`onceward prove --every-syscall`: {document.get('verdict', 'held' if document['ok'] else 'broken')}."
    )


def soak_table(document: Document) -> str:
    """What was counted, and of everything that was measured whether it grew."""
    soak = document["soak"]
    ended = "held" if document["ok"] else "broken: " + "; ".join(document["reasons"])
    command = f"`onceward prove --for {soak['asked_seconds']:g}s --seed {soak['seed']}`: {ended}."
    return _with_command(to_markdown(["", f"{soak['seconds']:,.0f} s"], [*figure_rows(soak), *finding_rows(soak)]), command)


def _with_command(table: str, command: str) -> str:
    return f"{table}\n{command}\n"


_MARKED: Final = re.compile(r"<!-- begin: (?P<name>[\w-]+) -->\n.*?<!-- end: (?P=name) -->", re.DOTALL)
# Marker -> the runs that are kept in files of these names, and how their table is written.
TABLES: Final[dict[str, tuple[tuple[str, ...], Callable[..., str]]]] = {
    "prove": (("prove",), prove_table),
    "faults": (("prove",), faults_table),
    "defaults": (("defaults",), prove_table),
    "resolve": (("resolve",), prove_table),
    "ablation": (("ablation",), layers_table),
    "queue-settings": (("queue-settings",), queue_settings_table),
    "explore": (("explore",), explore_table),
    "syscalls": (("syscalls",), syscalls_table),
    "soak": (("soak",), soak_table),
    "brokers": (tuple(f"prove-{queue}" for queue in QUEUES), brokers_table),
    "broker-settings": (tuple(f"queue-settings-{queue}" for queue in BROKERS), broker_settings_table),
}
RUNS: Final = tuple(KEPT_RUNS)
