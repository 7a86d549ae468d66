"""`onceward prove`: make or read the schedule, run the variants, report."""

from __future__ import annotations

import logging
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from onceward.errors import UsageError
from onceward_proof.ablation import Trial, ablation_json, choose_rows, make_ablation_schedule, run_row
from onceward_proof.clusters import Clusters, start_clusters
from onceward_proof.kept import keep_schedule
from onceward_proof.options import ProveOptions
from onceward_proof.outcome import EXIT_CODES, judge, to_json
from onceward_proof.report import Live, print_ablation, print_plan, print_report, write_files
from onceward_proof.run import Result, run_variant
from onceward_proof.schedule import Schedule, make_schedule, read_schedule
from onceward_proof.variants import PROCESS_COUNTS
from onceward_proof.workload import make_orders, read_orders


def run_proof(options: ProveOptions) -> int:
    """Run it; returns 0 proven, 1 hardened broke, 3 inconclusive.

    Raises `UsageError` before anything is started.

    The ablation returns 0 when every row is as expected, else 1.
    """
    _check(options)
    schedule = _schedule(options)
    console = Console()
    logging.getLogger("onceward").setLevel(logging.ERROR)
    kept_folder = _make_kept_folder(options)
    schedule_file = options.schedule or keep_schedule(schedule, kept_folder)
    print_plan(console, schedule, str(schedule_file))
    with _replayable(schedule_file):
        if options.ablate is None:
            exit_code = _prove(options, schedule, schedule_file, console, kept_folder)
        else:
            exit_code = _ablate(options, schedule, schedule_file, console, kept_folder)
    if kept_folder is not None:
        console.print(f"kept: {kept_folder}", highlight=False, soft_wrap=True)
    return exit_code


def _prove(
    options: ProveOptions, schedule: Schedule, schedule_file: Path, console: Console, kept_folder: Path | None
) -> int:
    results: list[Result] = []
    with _started(schedule, console, kept_folder) as (clusters, live):
        for variant in options.variants:
            results.append(run_variant(clusters, schedule, schedule_file.resolve(), variant, live))
            live.end(results[-1])
    print_report(console, schedule, results)
    write_files(options, console, to_json(schedule, str(schedule_file), results), "proof", schedule, results)
    return EXIT_CODES[judge(results)[0]]


def _ablate(
    options: ProveOptions, schedule: Schedule, schedule_file: Path, console: Console, kept_folder: Path | None
) -> int:
    trials: list[Trial] = []
    with _started(schedule, console, kept_folder) as (clusters, live):
        for row in choose_rows(options.ablate or ()):
            trials.append(run_row(clusters, schedule, schedule_file.resolve(), row, live))
            live.end(trials[-1].result)
    print_ablation(console, trials)
    document = ablation_json(schedule, str(schedule_file), trials)
    write_files(options, console, document, "ablation", schedule, trials)
    return 1 if document["reasons"] else 0


@contextmanager
def _started(schedule: Schedule, console: Console, kept_folder: Path | None) -> Iterator[tuple[Clusters, Live]]:
    """The clusters and the progress.

    With --keep, their files are copied, whatever became of the run.
    """
    with start_clusters() as clusters, Live(console, len(schedule.orders)) as live:
        try:
            yield clusters, live
        finally:
            if kept_folder is not None:  # sockets are left out: "c" is the controller's
                shutil.copytree(
                    clusters.folder, kept_folder / "files", ignore=shutil.ignore_patterns("c"), dirs_exist_ok=True
                )


def _check(options: ProveOptions) -> None:
    if options.queue != "pgmq":
        raise UsageError(f"--queue {options.queue}: there is pgmq, and nothing else yet")
    unknown = [name for name in options.variants if name not in PROCESS_COUNTS]
    if unknown or not options.variants:
        raise UsageError(f"--variants: unknown {', '.join(unknown) or 'nothing'}; there are: {', '.join(PROCESS_COUNTS)}")
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
def _replayable(file: Path) -> Iterator[None]:
    """A run that is interrupted says how to have the same faults again."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"onceward: interrupted; the same faults again: --schedule {file}\n")
        raise


def _make_kept_folder(options: ProveOptions) -> Path | None:
    """With --keep, a new folder for all that a run leaves: ./prove-1, ./prove-2, …"""
    if not options.keep:
        return None
    number = 1
    while (folder := Path(f"prove-{number}")).exists():
        number += 1
    folder.mkdir()
    return folder
