"""What stands on a terminal of 80 columns: no line is wider, no word is cut, and a bar that is over is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from tests.acceptance.processes import onceward
from tests.proof.test_page import SCHEDULE, hardened, naive

from onceward_proof.ablation.rows import ROWS
from onceward_proof.demos import DEMOS
from onceward_proof.demos.narrator import Narrator
from onceward_proof.prove.control import Controller
from onceward_proof.prove.outcome import judge, summary
from onceward_proof.prove.run import Result
from onceward_proof.prove.variants import PROCESS_COUNTS
from onceward_proof.report.lines import print_beside
from onceward_proof.report.terminal import Live, print_report

WIDTHS = (80, 61)
LONG = "UPDATE inbox SET state = 'done' ... WHERE state = 'pending' AND token = mine; no row: it is not ours any more."
COMMANDS: tuple[str, ...] = ("", "prove", "demo", "dev", "provider", "bench", "bench local", "explore", "docs")
COMMANDS += ("migrate", "upkeep", "queue", "queue create", "queue list", "run", "relay", "parked", "parked list")
COMMANDS += ("parked show", "parked redrive", "parked settle", "parked discard", "parked decisions")
COMMANDS += ("outbox", "outbox list", "outbox show", "outbox retry", "outbox discard", "status")


def lines_of(show: Callable[[Console], object], width: int) -> list[str]:
    """What `show` prints on a terminal of this width, without its colours."""
    console = Console(width=width, file=StringIO(), force_terminal=True, color_system=None, highlight=False)
    show(console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def assert_whole(lines: Sequence[str], width: int, *said: str) -> None:
    assert [line for line in lines if len(line.rstrip()) > width] == []
    shown = " ".join(" ".join(lines).split())
    assert [text for text in said if " ".join(text.split()) not in shown] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_verdict_is_broken_between_words(width: int) -> None:
    results = [naive(), hardened()]
    verdict, reasons = judge(results)
    lines = lines_of(lambda console: print_report(console, SCHEDULE, results), width)
    assert_whole(lines, width, summary(verdict, SCHEDULE, results), *reasons)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_demo_is_told_between_words_and_below_itself(width: int) -> None:
    def tell(console: Console) -> None:
        narrator = Narrator(console, fast=True)
        narrator.heading("Hardened: the first statement of the finish is fenced, and refused when it comes too late", LONG)
        narrator.tell("worker-1", LONG)
        narrator.verdict(LONG, True)
        narrator.verdict(LONG, False)

    lines = lines_of(tell, width)
    assert_whole(lines, width, "refused when it comes too late")
    told = next(number for number, line in enumerate(lines) if "T=0.0" in line)
    column = lines[told].index("UPDATE")
    assert lines[told + 1][:column].isspace()
    assert not lines[told + 1][column].isspace()
    whole = " ".join(" ".join(lines).split())
    assert whole.count(LONG) == 4


def test_what_is_said_in_brackets_is_not_taken_for_a_colour() -> None:
    assert lines_of(lambda console: print_beside(console, "  - ", "[red]: not a colour"), 80) == ["  - [red]: not a colour"]


@pytest.mark.parametrize("columns", [80, 61])
def test_the_list_of_demos_is_broken_between_words(columns: int) -> None:
    titles = [title for _, title in DEMOS.values()]
    assert_whole(onceward("demo", "--list", COLUMNS=str(columns)).stdout.splitlines(), columns, *titles)
    refused = onceward("demo", COLUMNS=str(columns)).stderr.splitlines()
    assert [line for line in refused if len(line) > columns] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_fits_a_terminal(command: str) -> None:
    """Its usage is argparse's own, and a command stays in one piece."""
    helped = onceward(*command.split(), "--help", COLUMNS="80").stdout.partition("\n\n")[2].splitlines()
    commands = [line for line in helped if line.startswith("  onceward ") and "  " not in line.strip()]
    assert [line for line in helped if len(line) > 80 and line not in commands] == []


def test_an_example_is_continued_below_its_explanation() -> None:
    helped = onceward("explore", "--help", COLUMNS="70").stdout.splitlines()
    first = next(number for number, line in enumerate(helped) if "every world within" in line)
    column = helped[first].index("every world")
    assert helped[first + 1][:column].isspace()
    assert all(len(line) <= 70 for line in helped)


# ---- progress --------------------------------------------------------------------------------------------------------


def controller_of(result: Result) -> Controller:
    controller = Controller(SCHEDULE, PROCESS_COUNTS["hardened"], {})
    controller.counts = result.counts
    controller.all_placed = True
    return controller


def test_a_variant_that_is_over_has_a_full_bar_and_a_clock_that_stands() -> None:
    """Also where orders were lost: they will not come any more."""
    live = Live(Console(file=StringIO(), force_terminal=True, width=80), len(SCHEDULE.orders))
    live("naive", controller_of(naive()))
    assert not live._progress.tasks[0].finished
    live.end(naive())
    live("hardened", controller_of(hardened()))
    over, begun = live._progress.tasks
    assert (over.percentage, over.stop_time is not None) == (100, True)
    assert begun.stop_time is None


@pytest.mark.parametrize("name", ["naive", *(row.subject.name for row in ROWS)])
def test_neither_counts_nor_clock_are_cut(name: str) -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system=None, width=80)
    live = Live(console, 1000)
    result = naive()
    result.counts.acked, result.counts.kills, result.counts.redeliveries = 1000, 1418, 2517
    live(name, controller_of(result))
    console.print(live._progress.get_renderable())
    assert isinstance(console.file, StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert len(line.rstrip()) <= 80
    assert name in line
    assert "1000/1000 booked, 1,418 kills, 2,517 again 0:00:00" in " ".join(line.split())


def test_one_kill_is_one_kill() -> None:
    live = Live(Console(file=StringIO(), force_terminal=True, width=80), 1000)
    result = naive()
    result.counts.kills = 1
    live("naive", controller_of(result))
    assert "1 kill," in live._progress.tasks[0].fields["doing"]


def test_where_there_is_no_terminal_each_variant_is_told_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    console, results = Console(file=StringIO(), width=80), [naive(), hardened()]
    with Live(console, 1000) as live:
        for result in results:
            live(result.variant, controller_of(result))
            live.end(result)
    told: Any = capsys.readouterr().err.splitlines()
    begun = [f"onceward: {result.variant}: begins, with 1,000 orders" for result in results]
    assert [told[0], told[2]] == begun
    assert [line.split(";")[0] for line in told[1::2]] == [
        f"onceward: {result.variant}: over after {result.wall_seconds:.0f} s" for result in results
    ]
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().strip() == ""
