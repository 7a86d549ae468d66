"""The settings of the queue as an HTML page: naive and hardened under each."""

from __future__ import annotations

from collections.abc import Sequence

from onceward_proof.prove.schedule import Schedule
from onceward_proof.queue_settings.rows import Trial, settings_table, trial_json, why_not_as_expected
from onceward_proof.report.pages.page import render_template


def render(schedule: Schedule, trials: Sequence[Trial]) -> str:
    """The page's text."""
    head, rows = settings_table([trial_json(trial) for trial in trials], schedule.queue)
    return render_template(
        "queue_settings.html",
        schedule=schedule,
        trials=trials,
        reasons=why_not_as_expected(trials),
        head=head,
        rows=rows,
    )
