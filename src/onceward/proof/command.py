"""`onceward prove`: make or read the schedule, run the variants, report."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from onceward.errors import UsageError
from onceward.proof.ablation import (
    Row,
    Trial,
    ablation_json,
    choose_rows,
    make_ablation_schedule,
    run_row,
)
from onceward.proof.options import ProveOptions
from onceward.proof.outcome import EXIT_CODES, judge, to_json
from onceward.proof.place import Place, place
from onceward.proof.report import Live, print_ablation, print_plan, print_report, write_files
from onceward.proof.run import Result, run_variant
from onceward.proof.schedule import Schedule, make_schedule, read_schedule, write_schedule
from onceward.proof.variants import CREWS
from onceward.proof.workload import make_orders, read_orders


def prove(options: ProveOptions) -> int:
    """Run it; returns 0 proven, 1 hardened broke, 3 inconclusive. Raises `UsageError` before anything is started.

    The ablation returns 0 when every row is as expected, else 1.
    """
    _check(options)
    schedule = _schedule(options)
    if options.ablate is not None:
        return _ablate(options, schedule, choose_rows(options.ablate))
    console = Console()
    logging.getLogger("onceward").setLevel(logging.ERROR)
    with _kept(options) as kept:
        schedule_file = options.schedule or _written(schedule, kept)
        print_plan(console, schedule, str(schedule_file))
        results = _run(options, schedule, schedule_file, console, kept)
        print_report(console, schedule, results)
        document = to_json(schedule, str(schedule_file), results)
        write_files(options, console, document, "proof", schedule, results)
        if options.keep:
            console.print(f"kept: {kept}", highlight=False, soft_wrap=True)
    return EXIT_CODES[judge(results)[0]]


def _check(options: ProveOptions) -> None:
    if options.queue != "pgmq":
        raise UsageError(f"--queue {options.queue}: there is pgmq, and nothing else yet")
    unknown = [name for name in options.variants if name not in CREWS]
    if unknown or not options.variants:
        raise UsageError(f"--variants: unknown {', '.join(unknown) or 'nothing'}; there are: {', '.join(CREWS)}")
    if len(set(options.variants)) != len(options.variants):
        raise UsageError("--variants: each variant once")
    choose_rows(options.ablate or ())
    if options.schedule is not None and (options.orders_from is not None or options.seed is not None):
        raise UsageError("--schedule brings its own orders and seed: leave out --orders-from and --seed")


def _schedule(options: ProveOptions) -> Schedule:
    if options.schedule is not None:
        return read_schedule(options.schedule)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    orders = read_orders(options.orders_from) if options.orders_from else make_orders(options.orders, seed)
    make = make_schedule if options.ablate is None else make_ablation_schedule
    return make(orders, seed, options.queue)


@contextmanager
def _kept(options: ProveOptions) -> Iterator[Path]:
    """The folder that the schedule is written to: a new ./prove-1, ./prove-2, … with --keep, else the temporary folder."""
    if options.keep:
        number = 1
        while (folder := Path(f"prove-{number}")).exists():
            number += 1
        folder.mkdir()
        yield folder
        return
    yield Path(tempfile.gettempdir())


def _written(schedule: Schedule, folder: Path) -> Path:
    path = folder / f"onceward-schedule-{schedule.seed}-{len(schedule.orders)}.json"
    write_schedule(schedule, path)
    return path


def _run(options: ProveOptions, schedule: Schedule, schedule_file: Path, console: Console, kept: Path) -> list[Result]:
    results: list[Result] = []
    with place() as where, Live(console, len(schedule.orders)) as live:
        try:
            for variant in options.variants:
                result = run_variant(where, schedule, schedule_file.resolve(), variant, live)
                results.append(result)
        finally:
            if options.keep:
                _keep_files(where, kept)
    return results


def _ablate(options: ProveOptions, schedule: Schedule, rows: Sequence[Row]) -> int:
    console = Console()
    logging.getLogger("onceward").setLevel(logging.ERROR)
    with _kept(options) as kept:
        schedule_file = options.schedule or _written(schedule, kept)
        print_plan(console, schedule, str(schedule_file))
        trials = _run_rows(options, schedule, schedule_file, rows, console, kept)
        print_ablation(console, trials)
        document = ablation_json(schedule, str(schedule_file), trials)
        write_files(options, console, document, "ablation", schedule, trials)
        if options.keep:
            console.print(f"kept: {kept}", highlight=False, soft_wrap=True)
    return 1 if document["reasons"] else 0


def _run_rows(
    options: ProveOptions, schedule: Schedule, schedule_file: Path, rows: Sequence[Row], console: Console, kept: Path
) -> list[Trial]:
    with place() as where, Live(console, len(schedule.orders)) as live:
        try:
            return [run_row(where, schedule, schedule_file.resolve(), row, live) for row in rows]
        finally:
            if options.keep:
                _keep_files(where, kept)


def _keep_files(where: Place, kept: Path) -> None:
    """Logs, ledgers and server logs, for looking into a run afterwards; sockets are left out."""
    shutil.copytree(where.folder, kept / "files", ignore=shutil.ignore_patterns("c"), dirs_exist_ok=True)
