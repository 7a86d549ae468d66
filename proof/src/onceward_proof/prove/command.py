"""`onceward prove`: make or read the schedule, run the variants, report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Final

from rich.console import Console

from onceward.errors import UsageError
from onceward_proof.ablation.rows import Trial, ablation_json, choose_rows, make_ablation_schedule
from onceward_proof.brokers.find import find_broker
from onceward_proof.prove.clusters import start_clusters
from onceward_proof.prove.kept import keep_schedule
from onceward_proof.prove.options import ProveOptions
from onceward_proof.prove.outcome import EXIT_CODES, concurrency, judge, to_json
from onceward_proof.prove.processes import Subject
from onceward_proof.prove.run import Result, run_subject
from onceward_proof.prove.schedule import Schedule, make_schedule, read_schedule
from onceward_proof.prove.variants import PROCESS_COUNTS, TUTORIAL, TUTORIALS
from onceward_proof.prove.workload import make_orders, read_orders
from onceward_proof.report.terminal import Live, print_ablation, print_plan, print_report, write_files
from onceward_proof.workers.setting import QueueName

# Eight threads of eleven consumers, each with a connection to either server; and those that kills have left behind.
SETTINGS: Final = {"max_connections": "400"}


def run_proof(options: ProveOptions) -> int:
    """Run it; returns 0 proven, 1 hardened broke, 3 inconclusive.

    Raises `UsageError` before anything is started.

    The ablation returns 0 when every row is as expected, else 1.
    """
    _check(options)
    rows = choose_rows(options.ablate) if options.ablate is not None else ()
    schedule = _schedule(options)
    _check_tutorial(options, schedule.queue)
    find_broker(schedule.queue).check()
    console = Console()
    logging.getLogger("onceward").setLevel(logging.ERROR)
    kept_folder = _make_kept_folder() if options.keep else None
    schedule_file = options.schedule or keep_schedule(schedule, kept_folder)
    print_plan(console, schedule, str(schedule_file))
    if not rows:
        console.print(concurrency(options.threads, options.prefetch), highlight=False)
    subjects = [row.subject for row in rows] or [
        Subject(name=name, variant=name, threads=options.threads, prefetch=options.prefetch, is_resolved=options.resolve)
        for name in options.variants
    ]
    try:
        results = _run(subjects, schedule, schedule_file, console, kept_folder)
    except KeyboardInterrupt:
        sys.stderr.write(f"onceward: interrupted; the same faults again: --schedule {schedule_file}\n")
        raise
    if rows:
        trials = [Trial(row, result) for row, result in zip(rows, results, strict=True)]
        print_ablation(console, trials)
        document = ablation_json(schedule, str(schedule_file), trials)
        write_files(options, console, document, "ablation", schedule, trials)
        exit_code = 1 if document["reasons"] else 0
    else:
        print_report(console, schedule, results)
        write_files(options, console, to_json(schedule, str(schedule_file), results), "proof", schedule, results)
        exit_code = EXIT_CODES[judge(results)[0]]
    if kept_folder is not None:
        console.print(f"kept: {kept_folder}", highlight=False, soft_wrap=True)
    return exit_code


def _run(
    subjects: Sequence[Subject], schedule: Schedule, schedule_file: Path, console: Console, kept_folder: Path | None
) -> list[Result]:
    """One after another, on the same clusters; with --keep, the files are copied, whatever became of the run."""
    results: list[Result] = []
    with (
        start_clusters(SETTINGS, schedule.queue) as clusters,
        Live(console, len(schedule.orders)) as live,
        ExitStack() as stack,
    ):
        if kept_folder is not None:  # sockets are left out: "c" is the controller's
            stack.callback(copytree, clusters.folder, kept_folder / "files", ignore=ignore_patterns("c"))
        for subject in subjects:
            results.append(run_subject(clusters, schedule, schedule_file.resolve(), subject, live))
            live.end(results[-1])
    return results


def _check(options: ProveOptions) -> None:
    unknown = [name for name in options.variants if name not in PROCESS_COUNTS]
    if unknown:
        raise UsageError(f"--variants: unknown {', '.join(unknown)}; there are: {', '.join(PROCESS_COUNTS)}")
    if len(set(options.variants)) != len(options.variants):
        raise UsageError("--variants: each variant once")
    if options.schedule is not None and (options.orders_from is not None or options.seed is not None):
        raise UsageError("--schedule brings its own orders and seed: leave out --orders-from and --seed")


def _check_tutorial(options: ProveOptions, queue: QueueName) -> None:
    """Raises `UsageError` for what the tutorials' service does not have."""
    if TUTORIAL not in options.variants or options.ablate is not None:
        return
    if queue not in TUTORIALS:
        raise UsageError(f"--variants: {TUTORIAL} is not there for {queue}; name a queue: --queue {', '.join(TUTORIALS)}")
    if (options.threads, options.prefetch) != (1, 0):
        raise UsageError(f"--variants: {TUTORIAL} handles one message at a time: leave out --threads and --prefetch")


def _schedule(options: ProveOptions) -> Schedule:
    if options.schedule is not None:
        return read_schedule(options.schedule, options.queue)
    seed = options.chosen_seed()
    orders = read_orders(options.orders_from) if options.orders_from else make_orders(options.orders, seed)
    make = make_schedule if options.ablate is None else make_ablation_schedule
    return make(orders, seed, options.queue or "pgmq")


def _make_kept_folder() -> Path:
    """A new folder for all that a run leaves: ./prove-1, ./prove-2, …"""
    folder = next(folder for number in count(1) if not (folder := Path(f"prove-{number}")).exists())
    folder.mkdir()
    return folder
