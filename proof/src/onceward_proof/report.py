"""The proof on a terminal: live progress while it runs, the before/after table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self

from rich.box import HEAVY_HEAD, SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from onceward_proof.ablation import Trial, publish_wait_ms, why_not_as_expected
from onceward_proof.control import Controller, Counts
from onceward_proof.faults import STORIES
from onceward_proof.lines import count_of, print_beside, print_verdict
from onceward_proof.options import ProveOptions
from onceward_proof.outcome import Verdict, judge, saying
from onceward_proof.run import Result
from onceward_proof.schedule import Schedule

SAYINGS: Final[dict[Verdict, str]] = {
    "proven": "PROVEN",
    "broken": "BROKEN",
    "inconclusive": "INCONCLUSIVE",
}
WIDE: Final = 120
BAR_WIDTH_MAX: Final = 30
FEW: Final = 3
COLOURS: Final[dict[Verdict, str]] = {"proven": "green", "broken": "red", "inconclusive": "yellow"}


class Live:
    """One bar per variant: orders done, kills so far. Where there is no terminal, a line on standard error at its end.

    Only the bar gives way when the terminal is narrow: names, counts and clock are never cut at 80 columns.
    """

    def __init__(self, console: Console, orders: int) -> None:
        self._orders = orders
        self._tasks: dict[str, TaskID] = {}
        self._told = not console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=None, table_column=Column(max_width=BAR_WIDTH_MAX)),
            TextColumn("{task.fields[doing]}"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            console=console,
            refresh_per_second=5,
            disable=not console.is_terminal,
        )

    def __call__(self, variant: str, controller: Controller) -> None:
        counts, placed = controller.counts, controller.all_placed
        done, verb = (counts.acked, "booked") if placed else (counts.placed, "placed")
        doing = f"{done}/{self._orders} {verb}, {_struck(counts, again=placed)}"
        self._progress.update(self._task(variant), completed=done, doing=doing)

    def end(self, result: Result) -> None:
        """This variant is over: its bar is full whatever it has lost on the way, and its clock stands."""
        task, counts = self._task(result.variant), result.counts
        doing = f"{counts.acked}/{self._orders} booked, {_struck(counts, again=True)}"
        self._progress.update(task, completed=self._orders, doing=doing)
        self._progress.stop_task(task)
        if self._told:
            sys.stderr.write(f"onceward: {result.variant}: over after {result.wall_seconds:.0f} s; {doing}\n")

    def _task(self, variant: str) -> TaskID:
        if variant not in self._tasks:
            self._tasks[variant] = self._progress.add_task(variant, total=self._orders, doing="")
            if self._told:
                sys.stderr.write(f"onceward: {variant}: begins, with {count_of(self._orders, 'order')}\n")
        return self._tasks[variant]

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.stop()


def _struck(counts: Counts, *, again: bool) -> str:
    return count_of(counts.kills, "kill") + (f", {counts.redeliveries:,} again" if again else "")


def print_ablation(console: Console, trials: Sequence[Trial]) -> None:
    """The matrix of layers and what came of their absence, and whether that is what was expected."""
    console.print(matrix(trials, console.width))
    problems = why_not_as_expected(trials)
    if problems:
        console.print(Text("NOT AS EXPECTED", style="bold red"))
    else:
        breaks = sum(trial.row.expected == "breaks" for trial in trials)
        print_verdict(console, "AS EXPECTED", "green", f"rows that break: {breaks}; that hold: {len(trials) - breaks}.")
    for problem in problems:
        print_beside(console, "  - ", problem)


def matrix(trials: Sequence[Trial], width: int) -> Table:
    table = Table(title="Hardened, less one layer", title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("without", no_wrap=True)
    wide = width >= WIDE
    if wide:
        table.add_column("leg that it closes", no_wrap=True)
    for name in ("charged\ntwice", "events\nlost", "booked\ntwice", "delivered\nagain", "publish\nwait"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("expected", no_wrap=True)
    for trial in trials:
        wait = publish_wait_ms(trial.result)
        table.add_row(
            trial.row.without,
            *([trial.row.leg] if wide else []),
            *(_cell(count, is_harm=True) for count in trial.counted.values()),
            f"{trial.result.counts.redeliveries:,}",
            "" if wait is None else f"{wait} ms",
            Text(
                f"{trial.row.expected} ✗" if trial.problems() else f"{trial.row.expected} ✓",
                "red" if trial.problems() else "",
            ),
        )
    return table


def print_plan(console: Console, schedule: Schedule, path: str) -> None:
    planned = schedule.planned()
    console.print(
        f"{len(schedule.orders)} orders, seed {schedule.seed}, {sum(planned.values())} faults planned, "
        f"{schedule.kills()} of them SIGKILLs of a worker or a server",
        highlight=False,
    )
    console.print(f"schedule: {path}", highlight=False, soft_wrap=True)


def print_report(console: Console, schedule: Schedule, results: Sequence[Result]) -> None:
    """The table, the faults, and the verdict with its reasons."""
    console.print(before_after(results))
    console.print(faults_table(results, console.width))
    verdict, reasons = judge(results)
    print_verdict(console, SAYINGS[verdict], COLOURS[verdict], saying(verdict, schedule, results))
    for reason in reasons:
        print_beside(console, "  - ", reason)


ROWS: Final = (
    ("orders", lambda r: r.verdict.orders, False),
    ("charges at the provider", lambda r: r.verdict.charges, False),
    ("orders charged twice or more", lambda r: len(r.verdict.double_charged), True),
    ("charges without an order", lambda r: len(r.verdict.phantom), True),
    ("events lost: never paid", lambda r: len(r.verdict.lost_first_hop), True),
    ("events lost: paid, never booked", lambda r: len(r.verdict.lost_second_hop), True),
    ("accounts booked twice or more", lambda r: len(r.verdict.doubled_writes), True),
    ("held for a person (parked)", lambda r: len(r.verdict.parked), False),
    ("deliveries", lambda r: r.counts.deliveries, False),
    ("  of them again", lambda r: r.counts.redeliveries, False),
    ("  turned away by the inbox", lambda r: r.counts.dedup_hits, False),
    ("SIGKILLs", lambda r: sum(n for name, n in r.counts.fired.items() if name.startswith("kill")), False),
    ("seconds", lambda r: round(r.wall_seconds, 1), False),
)


def before_after(results: Sequence[Result]) -> Table:
    table = _beside("The same faults, counted by an independent checker", "", results)
    for name, read, is_harm in ROWS:
        values = [read(result) for result in results]
        table.add_row(name, *(_cell(value, is_harm=is_harm) for value in values))
    return table


def _beside(title: str, first: str, results: Sequence[Result]) -> Table:
    """A column per variant; of many, narrow enough for 80 characters."""
    many = len(results) > FEW
    table = Table(title=title, title_justify="left", box=SIMPLE if many else HEAVY_HEAD, pad_edge=not many)
    table.add_column(first, overflow="fold")
    for result in results:
        table.add_column(result.variant.replace("-", "-\n") if many else result.variant, justify="right")
    return table


def _cell(value: float, *, is_harm: bool) -> Text:
    return Text(f"{value:,}", style=("bold red" if value else "bold green") if is_harm else "")


def faults_table(results: Sequence[Result], width: int) -> Table:
    table = _beside("Faults fired / planned", "fault", results)
    wide = width >= WIDE
    if wide:
        table.add_column("what happens")
    planned = results[0].planned if results else {}
    for name, count in planned.items():
        cells = [
            Text(f"{r.counts.fired[name]}/{count}", style="" if r.counts.fired[name] == count else "yellow")
            for r in results
        ]
        table.add_row(name, *cells, *([STORIES[name]] if wide else []))
    return table


def write_files(options: ProveOptions, console: Console, document: dict[str, Any], page: str = "", *shown: Any) -> None:
    """The JSON and the HTML that were asked for; `page` names the module whose `render(*shown)` makes the page."""
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"JSON: {options.json}", highlight=False, soft_wrap=True)
    if options.html is not None:
        render = import_module(f"onceward_proof.pages.{page}").render  # only now: the plotting library is slow to import
        options.html.write_text(render(*shown), encoding="utf-8")
        console.print(f"HTML: {options.html}", highlight=False, soft_wrap=True)
