"""The command: one schedule, and under each setting of the queue both variants, one after another."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from onceward_proof.brokers.find import find_broker
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
from onceward_proof.report.lines import count_of, print_verdict
from onceward_proof.report.tables import to_terminal
from onceward_proof.report.terminal import WIDE, Live, print_plan, write_files
from onceward_proof.workers.setting import QueueName, QueueSetting

ORDERS: Final = 100


def prove_queue_settings(options: ProveOptions) -> int:
    """Run it; returns 0 when every setting is as expected, else 1. Raises `UsageError` before anything is started."""
    schedule = _schedule(options)
    find_broker(schedule.queue).check()
    console = Console()
    logging.getLogger("onceward").setLevel(logging.ERROR)
    schedule_file = options.schedule or keep_schedule(schedule)
    print_plan(console, schedule, str(schedule_file))
    settings = SETTINGS[schedule.queue]
    longest = max(setting.lease_seconds for setting in settings.values())
    told = f"{count_of(len(settings), 'setting')} of the queue: a redelivery takes up to {longest} s"
    console.print(told, highlight=False)
    try:
        trials = _run(schedule, schedule_file.resolve(), console)
    except KeyboardInterrupt:
        sys.stderr.write(f"onceward: interrupted; the same faults again: --schedule {schedule_file}\n")
        raise
    print_trials(console, schedule.queue, trials)
    document = settings_json(schedule, str(schedule_file), trials)
    write_files(options, console, document, "queue_settings", schedule, trials)
    return 1 if document["reasons"] else 0


def print_trials(console: Console, queue: QueueName, trials: Sequence[Trial]) -> None:
    """The table of settings, and whether each is as expected."""
    wide = console.width >= WIDE
    head, rows = settings_table([trial_json(trial) for trial in trials], queue, wide=wide)
    console.print(to_terminal("The same faults under each setting of the queue", head, rows))
    if not wide:
        console.print(f"naive and hardened: {TOGETHER}", highlight=False)
    problems = why_not_as_expected(trials)
    word, style = ("NOT AS EXPECTED", "red") if problems else ("AS EXPECTED", "green")
    held = sum(not trial.problems() for trial in trials)
    sentence = f"settings under which naive doubles and loses, and hardened holds: {held} of {len(trials)}."
    print_verdict(console, word, style, sentence, problems)


def _run(schedule: Schedule, schedule_file: Path, console: Console) -> list[Trial]:
    with start_clusters(queue=schedule.queue) as clusters, Live(console, len(schedule.orders)) as live:

        def run(name: str, setting: QueueSetting, variant: Compared) -> Result:
            result = run_subject(clusters, schedule, schedule_file, subject_of(name, setting, variant), live)
            live.end(result)
            return result

        return [_try(name, setting, run) for name, setting in SETTINGS[schedule.queue].items()]


def _try(name: str, setting: QueueSetting, run: Callable[[str, QueueSetting, Compared], Result]) -> Trial:
    return Trial(name, setting, naive=run(name, setting, "naive"), hardened=run(name, setting, "hardened"))


def _schedule(options: ProveOptions) -> Schedule:
    if options.schedule is not None:
        return read_schedule(options.schedule, options.queue)
    seed = options.chosen_seed()
    orders = read_orders(options.orders_from) if options.orders_from else make_orders(options.orders, seed)
    return make_settings_schedule(orders, seed, options.queue or "pgmq")
