"""Where schedules are kept: nobody else writes there, nothing is written over, and the folder does not grow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from onceward.errors import UsageError
from onceward_proof.prove.kept import KEPT_MAX, keep_schedule
from onceward_proof.prove.schedule import make_schedule, read_schedule
from onceward_proof.prove.workload import make_orders

SCHEDULE = make_schedule(make_orders(25, 2), 2, "pgmq")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where everybody's temporary files are."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
    yield tmp_path
    tempfile.tempdir = before


def test_a_schedule_is_kept_where_only_its_user_can_write(temporary: Path) -> None:
    """The folder of the others may be writable to all, and the seed the same."""
    temporary.chmod(0o777)
    path = keep_schedule(SCHEDULE)
    own = path.parents[1]
    assert (own.parent, own.name, own.stat().st_mode & 0o777) == (temporary, f"onceward-{os.geteuid()}", 0o700)
    assert read_schedule(path) == SCHEDULE


def test_a_folder_that_somebody_else_has_laid_out_is_refused(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (temporary / f"onceward-{os.geteuid()}").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="set TMPDIR"):
        keep_schedule(SCHEDULE)
    assert list(elsewhere.iterdir()) == []


def test_another_schedule_of_the_same_seed_and_size_is_another_file() -> None:
    """A worker that is started again reads its schedule again: it must still be the one that its run began with."""
    one, again = keep_schedule(SCHEDULE), keep_schedule(SCHEDULE)
    other = keep_schedule(replace(SCHEDULE, aimed=SCHEDULE.aimed[1:]))
    assert one == again != other
    assert read_schedule(one) == SCHEDULE


def test_only_the_latest_schedules_are_kept() -> None:
    kept = [keep_schedule(replace(SCHEDULE, seed=seed)) for seed in range(KEPT_MAX)]
    for age, path in enumerate(reversed(kept)):
        os.utime(path, (1e9 - age, 1e9 - age))
    latest = keep_schedule(replace(SCHEDULE, seed=KEPT_MAX))
    there = sorted(latest.parent.iterdir())
    assert there == sorted({*kept[1:], latest})


def test_in_a_folder_that_was_asked_for_nothing_is_forgotten(temporary: Path) -> None:
    for seed in range(KEPT_MAX + 2):
        keep_schedule(replace(SCHEDULE, seed=seed), temporary)
    assert len(list(temporary.iterdir())) == KEPT_MAX + 2
