"""The command: one schedule, and under each setting of the queue both variants, one after another."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from onceward_proof.prove.clusters import start_clusters
from onceward_proof.prove.kept import keep_schedule
from onceward_proof.prove.options import ProveOptions
from onceward_proof.prove.run import Result, run_subject
from onceward_proof.prove.schedule import Schedule, read_schedule
from onceward_proof.prove.workload import make_orders, read_orders
from onceward_proof.queue_settings.rows import (
    SETTINGS,
    TOGETHER,
    Compared,
    Trial,
    make_settings_schedule,
    settings_json,
    settings_table,
    subject_of,
    trial_json,
    why_not_as_expected,
)
from onceward_proof.report.lines import print_verdict
from onceward_proof.report.tables import to_terminal
from onceward_proof.report.terminal import WIDE, Live, print_plan, write_files

ORDERS: Final = 100


def prove_queue_settings(options: ProveOptions) -> int:
    """Run it; returns 0 when every setting is as expected, else 1. Raises `UsageError` before anything is started."""
    schedule = _schedule(options)
    console = Console()
    logging.getLogger("onceward").setLevel(logging.ERROR)
    schedule_file = options.schedule or keep_schedule(schedule)
    print_plan(console, schedule, str(schedule_file))
    longest = max(setting.lease_seconds for setting in SETTINGS.values())
    told = f"{len(SETTINGS)} settings of the queue, about eight minutes: a redelivery takes up to {longest} s"
    console.print(told, highlight=False)
    try:
        trials = _run(schedule, schedule_file.resolve(), console)
    except KeyboardInterrupt:
        sys.stderr.write(f"onceward: interrupted; the same faults again: --schedule {schedule_file}\n")
        raise
    print_trials(console, trials)
    document = settings_json(schedule, str(schedule_file), trials)
    write_files(options, console, document, "queue_settings", schedule, trials)
    return 1 if document["reasons"] else 0


def print_trials(console: Console, trials: Sequence[Trial]) -> None:
    """The table of settings, and whether each is as expected."""
    wide = console.width >= WIDE
    head, rows = settings_table([trial_json(trial) for trial in trials], wide=wide)
    console.print(to_terminal("The same faults under each setting of the queue", head, rows))
    if not wide:
        console.print(f"naive and hardened: {TOGETHER}", highlight=False)
    problems = why_not_as_expected(trials)
    word, style = ("NOT AS EXPECTED", "red") if problems else ("AS EXPECTED", "green")
    held = sum(not trial.problems() for trial in trials)
    sentence = f"settings under which naive doubles and loses, and hardened holds: {held} of {len(trials)}."
    print_verdict(console, word, style, sentence, problems)


def _run(schedule: Schedule, schedule_file: Path, console: Console) -> list[Trial]:
    with start_clusters() as clusters, Live(console, len(schedule.orders)) as live:

        def run(name: str, variant: Compared) -> Result:
            result = run_subject(clusters, schedule, schedule_file, subject_of(name, variant), live)
            live.end(result)
            return result

        return [_try(name, run) for name in SETTINGS]


def _try(name: str, run: Callable[[str, Compared], Result]) -> Trial:
    return Trial(name, SETTINGS[name], naive=run(name, "naive"), hardened=run(name, "hardened"))


def _schedule(options: ProveOptions) -> Schedule:
    if options.schedule is not None:
        return read_schedule(options.schedule)
    seed = options.chosen_seed()
    orders = read_orders(options.orders_from) if options.orders_from else make_orders(options.orders, seed)
    return make_settings_schedule(orders, seed, "pgmq")
