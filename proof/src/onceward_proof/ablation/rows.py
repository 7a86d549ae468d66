"""The ablation: hardened less one layer at a time, all under one schedule.

It shows which layer holds what. A row names its layer, the leg that the layer closes, the faults aimed at it, and what
must show. Where the measurement disagreed with what was expected of a layer, the row says what is true, and `why`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final, Literal

from onceward.errors import UsageError
from onceward_proof.prove.faults import AIMED
from onceward_proof.prove.moments import FAULTS, Kind
from onceward_proof.prove.outcome import BY_KEY, document
from onceward_proof.prove.processes import Subject
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.workload import Order
from onceward_proof.report.tables import Cell, Figure
from onceward_proof.report.tables import Row as TableRow

Expected = Literal["breaks", "holds"]
Harm = Literal["double_charged_orders", "lost_events", "doubled_writes"]
HARMS: Final[dict[Harm, str]] = {
    "double_charged_orders": "double charges",
    "lost_events": "lost events",
    "doubled_writes": "doubled writes",
}
# "25 h later", scaled: the provider forgets a key after this, and the profile says so. Shorter than the visibility timeout
# (2 s), so that whatever is delivered again after a crash meets a key that has expired.
WINDOW_SECONDS: Final = 1.5
FAULTS_PER_KIND: Final = 50  # one of each aimed kind per so many orders, and never fewer than FAULTS_MIN
FAULTS_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `late`: a redelivery comes only when the provider has forgotten the key.
    """

    without: str
    leg: str
    faults: tuple[str, ...]
    expected: Expected
    must_show: tuple[Harm, ...]
    why: str
    late: bool = False
    layers: tuple[str, ...] | None = None  # None: the one that `without` names

    @property
    def subject(self) -> Subject:
        return Subject(
            name=f"without-{self.without}",
            variant="hardened",
            is_ablation=True,
            without=(self.without,) if self.layers is None else self.layers,
            window_seconds=WINDOW_SECONDS if self.late else None,
        )


ROWS: Final = (
    Row("nothing", "all", (), "holds", (),
        "the whole of hardened, under all faults of all rows: whatever a row below shows is the missing layer's doing",
        layers=()),
    Row("nothing-late", "all", (), "holds", (),
        "the same when keys expire before a redelivery: a pending intent is looked up, never called again; what the"
        " provider never saw waits for a decision",
        late=True, layers=()),
    Row("inbox", "leg 3", ("lose-ack-charge", "lose-ack-ledger"), "breaks", ("doubled_writes",),
        "each delivery is taken as new, so the booking is done again. The card is not charged again: the intent is a row of"
        " its own, its recorded answer stands past the provider's window too",
        late=True),
    Row("inbox-and-intent", "leg 3", ("lose-ack-charge", "lose-ack-ledger"), "breaks",
        ("doubled_writes", "double_charged_orders"),
        "with the second row of memory gone as well, a redelivery charges again once the provider has forgotten the key",
        late=True, layers=("inbox", "intent")),
    Row("intent", "past the window", ("kill-after-charge",), "breaks", ("double_charged_orders",),
        "nothing says that the call was begun, nor when: it is made again, under a key that the provider has forgotten",
        late=True),
    Row("window-guard", "past the window", ("kill-after-charge",), "breaks", ("double_charged_orders",),
        "the pending intent is there, but its age is not looked at: the retry is blind, and the key forgotten",
        late=True),
    Row("idempotency-key", "outside effect", ("kill-after-charge",), "breaks", ("double_charged_orders",),
        "a key made per attempt: the provider cannot tell the retry from a second order"),
    Row("outbox", "dual write", ("kill-before-publish-placed", "kill-before-publish-paid"), "breaks", ("lost_events",),
        "published after the commit: what dies in between is committed, and never sent"),
    Row("fencing", "timeout", ("freeze-after-charge",), "breaks", ("doubled_writes",),
        "the woken worker finishes too, and publishes a second event under an id of its own, which no inbox can know. The"
        " card is safe: both sent the same key"),
    Row("commit-guard", "leg 3", ("swallow-database-error",), "breaks", ("lost_events",),
        "the failed transaction answers COMMIT with ROLLBACK and no error: acknowledged, and never booked"),
    Row("heartbeat", "timeout", ("slow-charge",), "holds", (),
        "a slow handler's message is delivered again; inbox, fence and key make that harmless"),
    Row("nudge", "none: latency", (), "holds", (), "the relay polls: events leave later, none is lost"),
    Row("backoff", "none: load", ("cut-after-charge", "drop-publish-paid"), "holds", (),
        "retries come at once: more work, the same outcome"),
)  # fmt: skip
BY_NAME: Final = {row.without: row for row in ROWS}


@dataclass(frozen=True, slots=True)
class Trial:
    """One row as it turned out."""

    row: Row
    result: Result

    @property
    def counted(self) -> dict[Harm, int]:
        return {harm: BY_KEY[harm].read(self.result) for harm in HARMS}

    def problems(self) -> list[str]:
        """Every way in which this row is not as expected; empty when it is."""
        row, result = self.row, self.result
        what = "with nothing removed" if row.layers == () else f"without {row.without}"
        problems = [
            f"{what}: {fault} never struck, of {result.planned.get(fault, 0)} planned"
            for fault in row.faults
            if not result.counts.fired[fault]
        ]
        if not result.finished:
            problems.append(f"{what}: no progress for 20 s ({result.why_stalled})")
        if row.expected == "breaks":
            return problems + [
                f"{what}: no {HARMS[harm]}, but it should break" for harm in row.must_show if not self.counted[harm]
            ]
        harms = [f"{count} {HARMS[harm]}" for harm, count in self.counted.items() if count]
        harms += [f"{len(result.verdict.phantom)} charges without an order"] if result.verdict.phantom else []
        return problems + ([f"{what}: {', '.join(harms)}, but it should hold"] if harms else [])


def choose_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, in the table's order; all of them for no names.

    Raises `UsageError`, which lists the names that there are.
    """
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise UsageError(f"--ablate: unknown {', '.join(unknown)}; there are: {', '.join(BY_NAME)}")
    return tuple(row for row in ROWS if not names or row.without in names)


def make_ablation_schedule(orders: Sequence[Order], seed: int, queue: str) -> Schedule:
    """The schedule of this seed, and on orders that bear nothing yet, every row's own faults."""
    plain = make_schedule(orders, seed, queue)
    kinds = list(dict.fromkeys(fault for row in ROWS for fault in row.faults))
    struck = {entry.order for entry in plain.aimed}
    free = [order.id for order in orders if order.id not in struck]
    each = max(FAULTS_MIN, len(orders) // FAULTS_PER_KIND)
    if len(free) < each * len(kinds):
        raise UsageError(f"--ablate needs at least {_orders_min(len(kinds))} orders, there are {len(orders)}")
    random.Random(f"ablation {seed}").shuffle(free)
    added = [Aimed(kind, order) for kind, order in zip(kinds * each, free, strict=False)]
    return replace(plain, aimed=(*plain.aimed, *added))


def _orders_min(kinds: int) -> int:
    """So many orders that the rows' own faults find enough that are free of others."""
    # Most schedules leave more than half of the orders free; the smallest of all strike one order per kind of fault.
    return 10 * -(-(kinds * FAULTS_MIN + len(AIMED)) // 10)


def why_not_as_expected(trials: Sequence[Trial]) -> list[str]:
    return [problem for trial in trials for problem in trial.problems()]


def ablation_json(schedule: Schedule, schedule_file: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """The public form."""
    problems = why_not_as_expected(trials)
    verdict = "not as expected" if problems else "as expected"
    return document(schedule, schedule_file, verdict, problems) | {"ablation": [trial_json(trial) for trial in trials]}


def trial_json(trial: Trial) -> dict[str, Any]:
    row, result = trial.row, trial.result
    problems = trial.problems()
    return {
        "without": row.without,
        "leg": row.leg,
        "aimed": {
            name: {"planned": result.planned.get(name, 0), "fired": result.counts.fired[name]} for name in row.faults
        },
        "provider_window_seconds": row.subject.window_seconds,
        **{str(harm): count for harm, count in trial.counted.items()},
        "redeliveries": result.counts.redeliveries,
        "parked": len(result.verdict.parked),
        "publish_wait_ms": publish_wait_ms(result),
        "wall_seconds": round(result.wall_seconds, 2),
        "expected": row.expected,
        "must_show": list(row.must_show),
        "ok": not problems,
        "problems": problems,
        "why": row.why,
    }


def publish_wait_ms(result: Result) -> int | None:
    """The median time from a payment's ack to its event in the queue; None when it was never seen."""
    waits = []
    for moments in result.moments.values():
        # A fault adds leases and restarts to the wait, and the question is how long the relay takes by itself.
        if any(moment.kind in FAULTS for moment in moments):
            continue
        # The ack comes just after the commit, and every variant reports it at the same boundary.
        acked = [m.seconds for m in moments if m.kind is Kind.FINISHED and m.message_type == "order.placed"]
        sent = [m.seconds for m in moments if m.kind is Kind.PUBLISHED and m.message_type == "order.paid"]
        if acked and sent:
            waits.append(sent[0] - acked[0])
    return round(1000 * sorted(waits)[len(waits) // 2]) if waits else None


def _expected(row: Mapping[str, Any]) -> Cell:
    return Cell(f"{row['expected']} {'✓' if row['ok'] else '✗'}", "" if row["ok"] else "bad")


LEG: Final[Figure[Mapping[str, Any]]] = Figure("leg", itemgetter("leg"))
PARKED: Final[Figure[Mapping[str, Any]]] = Figure("parked", itemgetter("parked"))
_HARM_FIGURES: Final[list[Figure[Mapping[str, Any]]]] = [
    Figure(title, itemgetter(harm), is_harm=True) for harm, title in HARMS.items()
]
# The columns of every table of rows, read from the JSON of a row: of this run, or of one that is kept as evidence.
FIGURES: Final[tuple[Figure[Mapping[str, Any]], ...]] = (
    LEG,
    *_HARM_FIGURES,
    PARKED,
    Figure("redelivered", itemgetter("redeliveries")),
    Figure("publish wait", itemgetter("publish_wait_ms"), unit=" ms"),
    Figure("expected", _expected),
)


def ablation_table(rows: Sequence[Mapping[str, Any]], *, wide: bool = True) -> tuple[list[str], list[TableRow]]:
    """Titles and rows, of the rows' JSON. A narrow one fits 80 characters."""
    figures = [figure for figure in FIGURES if wide or figure not in {LEG, PARKED}]
    head = ["without", *(figure.title for figure in figures)]
    return head, [TableRow(row["without"], tuple(figure.show(figure.read(row)) for figure in figures)) for row in rows]
