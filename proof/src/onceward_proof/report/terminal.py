"""The proof on a terminal: progress while it runs, tables and verdict at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from onceward_proof.ablation.rows import Trial, ablation_summary, ablation_table, trial_json, why_not_as_expected
from onceward_proof.prove.control import Controller
from onceward_proof.prove.faults import kills
from onceward_proof.prove.live import Counts
from onceward_proof.prove.options import ProveOptions
from onceward_proof.prove.outcome import Verdict, counted, faults, judge, summary
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Schedule
from onceward_proof.report.lines import count_of, print_verdict
from onceward_proof.report.made import made
from onceward_proof.report.tables import to_terminal

WIDE: Final = 120
BAR_WIDTH_MAX: Final = 30
COLOURS: Final[dict[Verdict, str]] = {"proven": "green", "broken": "red", "inconclusive": "yellow"}


class Live:
    """One bar per variant: orders done, kills so far.

    Where there is no terminal, each variant has a line on standard error when it begins and when it ends. Only the bar
    gives way when the terminal is narrow: names, counts and clock are never cut at 80 columns.
    """

    def __init__(self, console: Console, orders: int) -> None:
        self._orders = orders
        self._tasks: dict[str, TaskID] = {}
        self._in_lines = not console.is_terminal
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
        if placed and controller.outside_only:
            doing = count_of(counts.kills, "kill")  # what it has booked, it does not say
        self._progress.update(self._task(variant), completed=done, doing=doing)

    def end(self, result: Result) -> None:
        """The variant is over: its bar is full, and its clock stands."""
        # Full also where orders were lost: they will not come any more.
        task, counts = self._task(result.variant), result.counts
        booked = f"{counts.acked}/{self._orders} booked, {_struck(counts, again=True)}"
        doing = count_of(counts.kills, "kill") if result.outside_only else booked
        self._progress.update(task, completed=self._orders, doing=doing)
        self._progress.stop_task(task)
        if self._in_lines:
            sys.stderr.write(f"onceward: {result.variant}: over after {result.wall_seconds:.0f} s; {doing}\n")

    def _task(self, variant: str) -> TaskID:
        if variant not in self._tasks:
            self._tasks[variant] = self._progress.add_task(variant, total=self._orders, doing="")
            if self._in_lines:
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
    """The table of layers, and whether their absence did what was expected."""
    head, rows = ablation_table([trial_json(trial) for trial in trials], wide=console.width >= WIDE)
    console.print(to_terminal("Hardened, less one layer", head, rows))
    problems = why_not_as_expected(trials)
    word, style = ("NOT AS EXPECTED", "red") if problems else ("AS EXPECTED", "green")
    print_verdict(console, word, style, ablation_summary(trials), problems)


def print_plan(console: Console, schedule: Schedule, path: str) -> None:
    planned = schedule.planned()
    where = "" if schedule.queue == "pgmq" else f" on {schedule.queue}"
    console.print(
        f"{len(schedule.orders)} orders{where}, seed {schedule.seed}, {sum(planned.values())} faults planned, "
        f"{kills(planned)} of them SIGKILLs of a worker or a server",
        highlight=False,
    )
    console.print(f"schedule: {path}", highlight=False, soft_wrap=True)


def print_report(console: Console, schedule: Schedule, results: Sequence[Result]) -> None:
    """The figures, the faults, and the verdict with its reasons."""
    variants = [result.variant for result in results]
    title = "The same faults, counted by an independent checker"
    console.print(to_terminal(title, ["", *variants], counted(results)))
    notes = "what happens" if console.width >= WIDE else ""
    console.print(to_terminal("Faults planned and fired", ["fault", "planned", *variants], faults(results), notes))
    verdict, reasons = judge(results)
    print_verdict(console, verdict.upper(), COLOURS[verdict], summary(verdict, schedule, results), reasons)


def write_files(options: ProveOptions, console: Console, document: dict[str, Any], page: str = "", *shown: Any) -> None:
    """Write the JSON and the HTML that were asked for. The JSON also says what it was made with.

    `page` names the module whose `render(*shown)` makes the HTML.
    """
    if options.json is not None:
        facts = made(queue=document.get("queue", "pgmq"))
        options.json.write_text(json.dumps({"made": facts} | document, indent=2) + "\n", encoding="utf-8")
        console.print(f"JSON: {options.json}", highlight=False, soft_wrap=True)
    if options.html is not None:
        # Imported only now: a run without a page need not wait for the templates.
        render = import_module(f"onceward_proof.report.pages.{page}").render
        options.html.write_text(render(*shown), encoding="utf-8")
        console.print(f"HTML: {options.html}", highlight=False, soft_wrap=True)
