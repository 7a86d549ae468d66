"""The settings of a queue: naive and hardened under each of them, and under the same faults.

What makes a message safe to receive twice is the consumer. If that is so, naive must double and lose under every setting,
and hardened must hold under every one. A queue of another kind has its rows in SETTINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from onceward_proof.prove.outcome import BY_KEY, document, why_broken
from onceward_proof.prove.processes import Subject
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Schedule, make_schedule
from onceward_proof.prove.workload import Order
from onceward_proof.report.tables import Cell, Figure, Row
from onceward_proof.workers.setting import QueueName, QueueSetting

Compared = Literal["naive", "hardened"]
_VISIBILITIES: Final = {"visibility-2": QueueSetting(), "visibility-30": QueueSetting(lease_seconds=30)}
# Of each queue, the first is that of every other proof. Where it is the only one, nothing better can be set: see ALWAYS.
SETTINGS: Final[dict[QueueName, dict[str, QueueSetting]]] = {
    "pgmq": {
        "lease-2": QueueSetting(),
        "lease-12": QueueSetting(lease_seconds=12),
        "lease-60": QueueSetting(lease_seconds=60),
        "archive": QueueSetting(archive=True),
        "double-settle": QueueSetting(double_settle=True),
    },
    "sqs": _VISIBILITIES,
    "sqs-fifo": _VISIBILITIES,
    "rabbitmq": {"quorum-confirms": QueueSetting()},
    "kafka": {"acks-all": QueueSetting()},
}
HARMS: Final = {
    "double_charged_orders": "double charges",
    "lost_events": "lost events",
    "doubled_writes": "doubled writes",
}
# What is said of each variant, by its key in the JSON of every proof.
COUNTED: Final = (*HARMS, "parked", "predicted_parked", "redeliveries")


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting as it turned out."""

    name: str
    setting: QueueSetting
    naive: Result
    hardened: Result

    def problems(self) -> list[str]:
        """Every way in which this setting is not as expected; empty when it is."""
        naive = self.naive.verdict
        nothing = [
            (naive.double_charged, "no order was charged twice"),
            (naive.lost, "no event was lost"),
            (self.naive.finished, f"no progress for {self.naive.stalled_seconds:g} s ({self.naive.why_stalled})"),
        ]
        problems = [f"{self.naive.variant}: {what}" for found, what in nothing if not found]
        problems += why_broken(self.hardened)
        return problems + [problem for result in (self.naive, self.hardened) for problem in _never_struck(result)]


def _never_struck(result: Result) -> list[str]:
    missing = {name: fault["unreached"] for name, fault in result.faults().items() if fault["unreached"]}
    return [f"{result.variant}: {count} of {name} never struck" for name, count in missing.items()]


def subject_of(name: str, setting: QueueSetting, variant: Compared) -> Subject:
    return Subject(name=f"{variant}-{name}", variant=variant, queue=setting)


def make_settings_schedule(orders: Sequence[Order], seed: int, queue: QueueName) -> Schedule:
    """The schedule of this seed with at most one aimed fault per order."""
    # Each fault on an order's way may cost a whole lease: with chains of three, a lease of 60 s would take minutes longer.
    return make_schedule(orders, seed, queue, more_share=0.0)


def why_not_as_expected(trials: Sequence[Trial]) -> list[str]:
    return [problem for trial in trials for problem in trial.problems()]


def settings_json(schedule: Schedule, schedule_file: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """The public form."""
    problems = why_not_as_expected(trials)
    verdict = "not as expected" if problems else "as expected"
    return document(schedule, schedule_file, verdict, problems) | {"settings": [trial_json(trial) for trial in trials]}


def trial_json(trial: Trial) -> dict[str, Any]:
    problems = trial.problems()
    return {
        "name": trial.name,
        "lease_seconds": trial.setting.lease_seconds,
        "archive": trial.setting.archive,
        "double_settle": trial.setting.double_settle,
        "naive": _variant_json(trial.naive),
        "hardened": _variant_json(trial.hardened),
        "as_expected": not problems,
        "problems": problems,
    }


def _variant_json(result: Result) -> dict[str, Any]:
    return {key: BY_KEY[key].read(result) for key in COUNTED} | {"wall_seconds": round(result.wall_seconds, 2)}


# What each queue calls the time for which a delivery is left to its consumer.
LEASE_IN_WORDS: Final[dict[QueueName, str]] = {
    "pgmq": "lease",
    "sqs": "visibility timeout",
    "sqs-fifo": "visibility timeout",
    "rabbitmq": "consumer timeout",
    "kafka": "max.poll.interval.ms:",
}
# What of a queue's own is as good as it can be under every setting: the adapter refuses less.
ALWAYS: Final[dict[QueueName, tuple[str, ...]]] = {
    "sqs-fifo": ("sends deduplicated",),
    "rabbitmq": ("quorum queue", "publisher confirms"),
    "kafka": ("acks=all", "idempotent producer"),
}


def _setting_in_words(row: Mapping[str, Any], queue: QueueName) -> str:
    words = [*ALWAYS.get(queue, ()), f"{LEASE_IN_WORDS[queue]} {row['lease_seconds']} s"]
    words += ["archive"] if row["archive"] else []
    words += ["each ack sent twice"] if row["double_settle"] else []
    return ", ".join(words)


def _each(variant: Compared) -> list[Figure[Mapping[str, Any]]]:
    """A column for each harm."""
    return [Figure(f"{variant}: {title}", _reader(variant, key), is_harm=True) for key, title in HARMS.items()]


def _reader(variant: Compared, key: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: row[variant][key]


def _together(variant: Compared) -> Figure[Mapping[str, Any]]:
    """One column for all harms."""

    def read(row: Mapping[str, Any]) -> Cell:
        counts = [row[variant][key] for key in HARMS]
        return Cell(" · ".join(map(str, counts)), "bad" if any(counts) else "good")

    return Figure(variant, read)


def _as_expected(row: Mapping[str, Any]) -> Cell:
    return Cell("yes", "good") if row["as_expected"] else Cell("no", "bad")


# The columns of every table of settings, read from the JSON of a row: of this run, or of one that is kept as evidence.
FIGURES: Final[tuple[Figure[Mapping[str, Any]], ...]] = (
    *_each("naive"),
    *_each("hardened"),
    Figure("parked", _reader("hardened", "parked")),
    Figure("predicted", _reader("hardened", "predicted_parked")),
    Figure("as expected", _as_expected),
)
# The same for 80 characters.
NARROW: Final = (_together("naive"), _together("hardened"), *FIGURES[-3:])
TOGETHER: Final = " · ".join(HARMS.values())


def settings_table(
    rows: Sequence[Mapping[str, Any]], queue: QueueName, *, wide: bool = True
) -> tuple[list[str], list[Row]]:
    """Titles and rows, of the rows' JSON. A narrow one fits 80 characters: TOGETHER says what its cells are."""
    figures = FIGURES if wide else NARROW
    head = ["queue", *(figure.title for figure in figures)]
    return head, [Row(_setting_in_words(row, queue), tuple(f.show(f.read(row)) for f in figures)) for row in rows]
