"""The ablation: hardened less one layer at a time, all under one schedule.

It shows which layer holds what. A row names its layer, the leg that the layer closes, the faults aimed at it, and what
must show; everything else that is counted must be 0, and what is parked must be what the schedule predicts, except where
the row says otherwise. Where the measurement disagreed with what was expected of a layer, the row says what is true, and
`why`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple

from onceward.errors import UsageError
from onceward.protocol.reasons import ParkReason
from onceward_proof.ablation.harms import HARMS, Harm, count_harms, with_sums
from onceward_proof.prove.faults import AIMED
from onceward_proof.prove.moments import FAULTS, Kind
from onceward_proof.prove.outcome import document
from onceward_proof.prove.processes import Subject
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule
from onceward_proof.prove.workload import Order
from onceward_proof.report.lines import some_of
from onceward_proof.report.tables import Cell, Figure
from onceward_proof.report.tables import Row as TableRow
from onceward_proof.workers.setting import QueueName

Expected = Literal["breaks", "holds"]
# "25 h later", scaled: the provider forgets a key after this, and the profile says so. Shorter than the visibility timeout
# (2 s), so that whatever is delivered again after a crash meets a key that has expired.
WINDOW_SECONDS: Final = 1.5
FAULTS_PER_KIND: Final = 50  # one of each aimed kind per so many orders, and never fewer than FAULTS_MIN
FAULTS_MIN: Final = 3


class Parking(NamedTuple):
    """Orders that may be parked although the schedule does not predict it: for this reason alone, and only among these."""

    reason: ParkReason
    among: Callable[[Result], Collection[str]]


def _never_charged(result: Result) -> Collection[str]:
    charged = {order for order, moments in result.moments.items() if any(moment.kind is Kind.CHARGED for moment in moments)}
    return frozenset(result.verdict.park_reasons) - charged


# The worker died between its intent and the provider: past the window nobody can say whether it was charged. A charge that
# did happen would have been found by the look-up, so an order of which one was seen may not wait for this reason.
NEVER_SEEN: Final = Parking(ParkReason.UNKNOWN, _never_charged)
# The second charge and the first come to be recorded for one effect: both are kept for a person, and neither is believed.
BOTH_ANSWERS: Final = Parking(ParkReason.TWO_ANSWERS, lambda result: result.verdict.double_charged)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `must_show`: these harms, with the sums that they move; every other must be 0. `may_park`: what may be parked beyond
    the prediction. `may_charge_again`: an order that is predicted to be parked may be paid instead, because the retry is a
    new call. `late`: a redelivery comes only when the provider has forgotten the key.
    """

    without: str
    leg: str
    faults: tuple[str, ...]
    expected: Expected
    must_show: tuple[Harm, ...]
    why: str
    late: bool = False
    layers: tuple[str, ...] | None = None  # None: the one that `without` names
    may_park: tuple[Parking, ...] = ()
    may_charge_again: bool = False

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
        late=True, layers=(), may_park=(NEVER_SEEN,)),
    Row("inbox", "leg 3", ("lose-ack-charge", "lose-ack-ledger"), "breaks", ("doubled_writes",),
        "each delivery is taken as new, so the booking is done again. The card is not charged again: the intent is a row of"
        " its own, its recorded answer stands past the provider's window too",
        late=True, may_park=(NEVER_SEEN,)),
    Row("inbox-and-intent", "leg 3", ("lose-ack-charge", "lose-ack-ledger"), "breaks",
        ("doubled_writes", "double_charged_orders"),
        "with the second row of memory gone as well, a redelivery charges again once the provider has forgotten the key",
        late=True, layers=("inbox", "intent"), may_park=(BOTH_ANSWERS,), may_charge_again=True),
    Row("intent", "past the window", ("kill-after-charge",), "breaks", ("double_charged_orders",),
        "nothing says that the call was begun, nor when: it is made again, under a key that the provider has forgotten",
        late=True, may_park=(BOTH_ANSWERS,), may_charge_again=True),
    Row("window-guard", "past the window", ("kill-after-charge",), "breaks", ("double_charged_orders",),
        "the pending intent is there, but its age is not looked at: the retry is blind, and the key forgotten",
        late=True, may_park=(BOTH_ANSWERS,), may_charge_again=True),
    Row("idempotency-key", "outside effect", ("kill-after-charge",), "breaks", ("double_charged_orders",),
        "a key made per attempt: the provider cannot tell the retry from a second order",
        may_park=(BOTH_ANSWERS,), may_charge_again=True),
    Row("outbox", "dual write", ("kill-before-publish-placed", "kill-before-publish-paid"), "breaks",
        ("lost_first_hop", "lost_second_hop"),
        "published after the commit: what dies in between is committed, and never sent"),
    Row("fencing", "timeout", ("freeze-after-charge",), "breaks", ("doubled_writes",),
        "the woken worker finishes too, and publishes a second event under an id of its own, which no inbox can know. The"
        " card is safe: both sent the same key"),
    Row("commit-guard", "leg 3", ("swallow-database-error",), "breaks", ("lost_second_hop",),
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
        return count_harms(self.result.verdict)

    @property
    def unexpected(self) -> dict[Harm, int]:
        """What shows, and is not what the missing layer prevents."""
        must = with_sums(self.row.must_show)
        return {harm: count for harm, count in self.counted.items() if count and harm not in must}

    def problems(self) -> list[str]:
        """Every way in which this row is not as expected; empty when it is."""
        what = "with nothing removed" if self.row.layers == () else f"without {self.row.without}"
        return [f"{what}: {problem}" for problem in self._problems()]

    def _problems(self) -> Iterator[str]:
        row, result = self.row, self.result
        for fault in row.faults:
            if not result.counts.fired[fault]:
                yield f"{fault} never struck, of {result.planned.get(fault, 0)} planned"
        if not result.finished:
            yield f"no progress for 20 s ({result.why_stalled})"
        for harm in HARMS:
            if harm in with_sums(row.must_show) and not self.counted[harm]:
                yield f"no {HARMS[harm]}, but it should break"
        harms = ", ".join(f"{count:,} {HARMS[harm]}" for harm, count in self.unexpected.items())
        if harms:
            yield f"{harms}, " + ("but it should hold" if row.expected == "holds" else "which the layer does not explain")
        if self.parked_beyond:
            yield f"{len(self.parked_beyond)} orders are parked that the schedule does not predict ({self._beyond()})"
        if self.parked_short:
            yield f"{len(self.parked_short)} orders should be parked and are not ({some_of(self.parked_short)})"

    @property
    def parked_beyond(self) -> frozenset[str]:
        """Orders that are parked, and neither predicted to be nor explained by the row."""
        beyond = frozenset(self.result.verdict.parked) - self.result.predicted_parked
        return frozenset(order for order in beyond if not self._may_park(order))

    def _may_park(self, order: str) -> bool:
        """Each reason that this order is parked for is one that the row allows for it."""
        allowed = {may.reason.value for may in self.row.may_park if order in may.among(self.result)}
        reasons = self.result.verdict.park_reasons.get(order, frozenset())
        return bool(reasons) and reasons <= allowed

    @property
    def parked_short(self) -> frozenset[str]:
        """Orders that should be parked and are not, where the row does not allow for it."""
        missing = self.result.predicted_parked - frozenset(self.result.verdict.parked)
        return frozenset() if self.row.may_charge_again else missing

    def _beyond(self) -> str:
        reasons = self.result.verdict.park_reasons
        return some_of([f"{order}: {' and '.join(sorted(reasons.get(order, {'?'})))}" for order in self.parked_beyond])


def choose_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, in the table's order; all of them for no names.

    Raises `UsageError`, which lists the names that there are.
    """
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise UsageError(f"--ablate: unknown {', '.join(unknown)}; there are: {', '.join(BY_NAME)}")
    return tuple(row for row in ROWS if not names or row.without in names)


def make_ablation_schedule(orders: Sequence[Order], seed: int, queue: QueueName) -> Schedule:
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


def ablation_summary(trials: Sequence[Trial]) -> str:
    """What the rows come to, in a sentence that also says why a row that breaks is a good sign."""
    breaks = sum(trial.row.expected == "breaks" for trial in trials)
    rows = f"Rows that should break: {breaks}; that should hold: {len(trials) - breaks}."
    if why_not_as_expected(trials):
        return f"Not every row shows what its missing layer prevents, and nothing else. {rows}"
    return f"Each row shows what its missing layer prevents, and nothing else. {rows}"


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
        "lost_events": trial.counted["lost_first_hop"] + trial.counted["lost_second_hop"],
        "redeliveries": result.counts.redeliveries,
        "parked": len(result.verdict.parked),
        "predicted_parked": len(result.predicted_parked),
        "park_reasons": dict(Counter(reason for reasons in result.verdict.park_reasons.values() for reason in reasons)),
        "publish_wait_ms": publish_wait_ms(result),
        "wall_seconds": round(result.wall_seconds, 2),
        "expected": row.expected,
        "must_show": list(row.must_show),
        "unexpected": [*trial.unexpected, *(["parked"] if trial.parked_beyond or trial.parked_short else [])],
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


def _parked(row: Mapping[str, Any]) -> str:
    predicted = row.get("predicted_parked")
    return f"{row['parked']:,}" if predicted is None else f"{row['parked']:,} ({predicted:,})"


LEG: Final[Figure[Mapping[str, Any]]] = Figure("leg", itemgetter("leg"))
REDELIVERED: Final[Figure[Mapping[str, Any]]] = Figure("redelivered", itemgetter("redeliveries"))
# The columns of every table of rows, read from the JSON of a row: of this run, or of one that is kept as evidence. What is
# not a column of its own, and not 0, is a problem of its row, and named there.
FIGURES: Final[tuple[Figure[Mapping[str, Any]], ...]] = (
    LEG,
    Figure("double charges", itemgetter("double_charged_orders"), is_harm=True),
    Figure("lost events", itemgetter("lost_events"), is_harm=True),
    Figure("doubled writes", itemgetter("doubled_writes"), is_harm=True),
    Figure("parked (predicted)", _parked),
    REDELIVERED,
    Figure("publish wait", itemgetter("publish_wait_ms"), unit=" ms"),
    Figure("expected", _expected),
)


def ablation_table(rows: Sequence[Mapping[str, Any]], *, wide: bool = True) -> tuple[list[str], list[TableRow]]:
    """Titles and rows, of the rows' JSON. A narrow one fits 80 characters."""
    figures = [figure for figure in FIGURES if wide or figure not in (LEG, REDELIVERED)]
    head = ["without", *(figure.title for figure in figures)]
    return head, [TableRow(row["without"], tuple(figure.show(figure.read(row)) for figure in figures)) for row in rows]
