"""The settings of the queue: what counts as expected, their schedule and table, and one of them for real."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.proof.prove_run import start, write_schedule
from tests.proof.test_page import a_verdict
from tests.proof.test_terminal import assert_whole, lines_of
from tests.support.browser import show_on_a_phone

from onceward_proof.prove.live import Counts
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import make_schedule
from onceward_proof.prove.workload import make_orders
from onceward_proof.queue_settings.command import print_trials
from onceward_proof.queue_settings.rows import (
    SETTINGS,
    Compared,
    Trial,
    make_settings_schedule,
    settings_json,
    settings_table,
    subject_of,
    trial_json,
)
from onceward_proof.report.docs import broker_settings_table, queue_settings_table
from onceward_proof.report.pages.queue_settings import render
from onceward_proof.workers.setting import QUEUE_NAMES, QueueSetting

SCHEDULE = make_settings_schedule(make_orders(60, 1), 1, "pgmq")
ON_PGMQ = SETTINGS["pgmq"]
PLANNED = SCHEDULE.planned()
HARM = {"double_charged": ("O-1",), "lost_first_hop": ("O-2",)}


def setting_of(name: str) -> QueueSetting:
    return next(settings[name] for settings in SETTINGS.values() if name in settings)


def a_result(name: str, variant: Compared, **changed: Any) -> Result:
    return Result(
        variant=subject_of(name, setting_of(name), variant).name, verdict=a_verdict(**changed),
        counts=Counts(fired=Counter(PLANNED)), planned=dict(PLANNED), predicted_parked=frozenset(),
        finished=True, wall_seconds=1.0,
    )  # fmt: skip


def a_trial(name: str = "lease-12") -> Trial:
    return Trial(name, setting_of(name), naive=a_result(name, "naive", **HARM), hardened=a_result(name, "hardened"))


# ---- what is expected ------------------------------------------------------------------------------------------------


def test_naive_that_doubles_and_loses_beside_hardened_that_holds_is_as_expected() -> None:
    assert a_trial().problems() == []


@pytest.mark.parametrize("harm", HARM)
def test_a_setting_that_heals_naive_is_a_problem(harm: str) -> None:
    """It would be a setting of the queue after all."""
    trial = a_trial()
    others = {name: orders for name, orders in HARM.items() if name != harm}
    trial = replace(trial, naive=a_result("lease-12", "naive", **others))
    assert len(trial.problems()) == 1
    assert trial.problems()[0].startswith("naive-lease-12: no ")


@pytest.mark.parametrize("harm", ["double_charged", "lost_first_hop", "lost_second_hop", "doubled_writes", "parked"])
def test_a_setting_under_which_hardened_breaks_is_a_problem(harm: str) -> None:
    trial = replace(a_trial(), hardened=a_result("lease-12", "hardened", **{harm: ("O-1",)}))
    assert len(trial.problems()) == 1
    assert trial.problems()[0].startswith("hardened-lease-12: ")


def test_a_fault_that_never_struck_and_a_run_that_got_stuck_are_problems() -> None:
    trial = a_trial()
    trial.hardened.counts.fired["slow-charge"] = 0
    assert trial.problems() == [f"hardened-lease-12: {PLANNED['slow-charge']} of slow-charge never struck"]
    stuck = replace(a_trial(), naive=replace(a_trial().naive, finished=False, stalled_seconds=24.0))
    assert "no progress for 24 s" in stuck.problems()[0]


def test_the_first_setting_is_that_of_every_other_proof_and_each_differs() -> None:
    for settings in SETTINGS.values():
        assert next(iter(settings.values())) == QueueSetting()
        assert len(set(settings.values())) == len(settings)
    assert {setting.lease_seconds for setting in ON_PGMQ.values()} == {2, 12, 60}
    assert any(setting.archive for setting in ON_PGMQ.values())
    assert any(setting.double_settle for setting in ON_PGMQ.values())


def test_every_queue_has_its_settings_and_each_of_them_its_words() -> None:
    assert tuple(SETTINGS) == QUEUE_NAMES
    for queue, settings in SETTINGS.items():
        _, rows = settings_table([trial_json(a_trial(name)) for name in settings], queue)
        assert len({row.name for row in rows}) == len(settings)
    assert [row.name for row in rows] == ["acks=all, idempotent producer, max.poll.interval.ms: 2 s"]


def test_no_order_bears_two_aimed_faults() -> None:
    assert max(Counter(entry.order for entry in SCHEDULE.aimed).values()) == 1
    chained = make_schedule(make_orders(200, 1), 1, "pgmq")
    assert max(Counter(entry.order for entry in chained.aimed).values()) > 1


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_the_json_names_the_setting_and_what_came_of_both() -> None:
    document = settings_json(SCHEDULE, "s.json", [a_trial("archive")])
    row = document["settings"][0]
    assert (document["verdict"], row["name"], row["lease_seconds"], row["archive"]) == ("as expected", "archive", 2, True)
    assert (row["double_settle"], row["as_expected"]) == (False, True)
    assert (row["naive"]["double_charged_orders"], row["naive"]["lost_events"]) == (1, 1)
    assert (row["hardened"]["double_charged_orders"], row["hardened"]["parked"]) == (0, 0)


def test_the_table_in_the_documentation_has_a_row_per_setting() -> None:
    text = queue_settings_table(settings_json(SCHEDULE, "s.json", [a_trial(name) for name in ON_PGMQ]))
    assert text.count("| yes |") == len(ON_PGMQ)
    assert "| lease 60 s | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | yes |" in text
    assert "| lease 2 s, each ack sent twice |" in text
    head, rows = settings_table([], "pgmq")
    assert len(head) == 10
    assert rows == []


def test_the_table_of_brokers_names_the_queue_of_each_setting() -> None:
    documents = [
        settings_json(
            make_settings_schedule(make_orders(60, 1), 1, queue), "s.json", [a_trial(name) for name in SETTINGS[queue]]
        )
        for queue in QUEUE_NAMES[1:]
    ]
    text = broker_settings_table(*documents)
    assert "| sqs | visibility timeout 30 s | 1 | 1 | 0 |" in text
    assert "| rabbitmq | quorum queue, publisher confirms, consumer timeout 2 s | 1 |" in text
    assert "- `onceward prove --queue-settings --queue kafka --orders 60 --seed 1`: as expected." in text
    assert text.count("| yes |") == sum(len(SETTINGS[queue]) for queue in QUEUE_NAMES[1:])


@pytest.mark.parametrize("width", [80, 61, 160])
def test_the_terminal_shows_both_variants_and_cuts_no_word(width: int) -> None:
    broken = replace(a_trial("double-settle"), hardened=a_result("double-settle", "hardened", parked=("O-1",)))
    trials = [a_trial(), broken]
    lines = lines_of(lambda console: print_trials(console, "pgmq", trials), width)
    assert_whole(lines, width, "NOT AS EXPECTED", "1 of 2", *broken.problems())


def test_the_page_says_what_is_not_as_expected(tmp_path: Path) -> None:
    broken = replace(a_trial(), hardened=a_result("lease-12", "hardened", double_charged=("O-1",)))
    page = render(SCHEDULE, [broken])
    assert "NOT AS EXPECTED" in page
    assert "hardened-lease-12: 1 orders were charged more than once" in page
    show_on_a_phone(render(SCHEDULE, [a_trial(name) for name in ON_PGMQ]), tmp_path).assert_sound()


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variants", "naive"], "leave out --variants"),
        (["--ablate"], "leave out --ablate"),
        (["--for", "1m"], "leave out --for"),
        (["--every-syscall"], "leave out --every-syscall"),
        (["--rate", "3"], "--rate is for a soak"),
        (["--schedule", "{schedule}", "--queue", "kafka"], "a schedule for pgmq, not for kafka"),
    ],
)
def test_what_it_would_silently_not_do_is_refused(arguments: list[str], says: str, tmp_path: Path) -> None:
    write_schedule(SCHEDULE, tmp_path / "s.json")
    arguments = [argument.format(schedule=tmp_path / "s.json") for argument in arguments]
    out, _ = (process := start("--queue-settings", *arguments)).communicate(timeout=30)
    assert process.returncode == 2, out
    assert says in out
