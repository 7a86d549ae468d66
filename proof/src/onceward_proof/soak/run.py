"""`onceward prove --for 30m`: hardened under a schedule without end, with rolling evidence.

It fails on any order that is doubled or lost, on any that is parked without having been predicted, on a day that is due
and not dropped, or takes other rows with it, and on memory, connections, tables or WAL that grow without bound. A few
workers are spared, so that memory is watched in processes that live on. Ctrl-C ends it early, with its report; a second
one, without.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.text import Text

from onceward_proof.prove import checker
from onceward_proof.prove.clusters import Clusters, start_clusters
from onceward_proof.prove.live import Counts
from onceward_proof.prove.options import ProveOptions
from onceward_proof.prove.processes import Processes, Subject
from onceward_proof.prove.variants import PROCESS_COUNTS
from onceward_proof.report.lines import print_beside, print_verdict, some_of
from onceward_proof.report.tables import to_terminal
from onceward_proof.report.terminal import write_files
from onceward_proof.soak import measure
from onceward_proof.soak.due_day import JUDGED_AFTER_SECONDS, DueDay, Kept
from onceward_proof.soak.endless import EndlessController
from onceward_proof.soak.figures import figure_rows, finding_rows
from onceward_proof.soak.watch import OLD_SECONDS, Look, look

EVIDENCE_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 10.0
DUE_DAY_SECONDS: Final = 1.0
# A look reads everything, and there is more and more of it: the next one waits for so many times its own time.
LOOK_SHARE: Final = 20
SAMPLES: Final = 600  # at most, in a soak of the length that was asked for
SAMPLE_SECONDS_MIN: Final = 1.0
STALLED_SECONDS: Final = 30.0


_NOTHING: Final = checker.judge(checker.Evidence({}, (), {}, {}, frozenset()))


@dataclass(slots=True)
class Soaked:
    """What a soak came to."""

    seed: int
    asked_seconds: float
    rate: float
    seconds: float = 0.0  # in which orders came
    all_seconds: float = 0.0  # until the last of them was finished
    interrupted: bool = False
    finished: bool = False  # went quiet by itself at the end
    counts: Counts = field(default_factory=Counts)
    verdict: checker.Verdict = _NOTHING
    predicted: frozenset[str] = frozenset()
    doubled: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    planned: dict[str, int] = field(default_factory=dict)
    samples: list[measure.Sample] = field(default_factory=list)
    findings: list[measure.Finding] = field(default_factory=list)
    spared: list[measure.SparedWorker] = field(default_factory=list)
    partitions_dropped: int = 0
    dropped_after_seconds: float | None = None
    kept: list[Kept] = field(default_factory=list)  # empty: not every message was taken, so nothing can be said

    def why_failed(self) -> list[str]:
        """Every reason, in a sentence; none when it held."""
        parked = frozenset(self.verdict.parked)
        harms = (
            (self.doubled, "were charged or booked twice"),
            (self.lost, "were lost"),
            (parked - self.predicted, "are parked, and were not predicted to be"),
            (self.predicted - parked, "were predicted to be parked, and are not"),
        )
        reasons = [f"{len(names)} orders {what} ({some_of(names)})" for names, what in harms if names]
        if len(set(self.verdict.money.values())) > 1:
            reasons.append(f"the sums differ: {dict(self.verdict.money)}")
        if not self.finished:
            reasons.append(f"no progress for {STALLED_SECONDS:.0f} s at the end")
        reasons += [
            f"{each.consumer} has {each.rows:,} inbox rows for {each.messages:,} messages of the days at hand"
            for each in self.kept
            if each.rows != each.messages
        ]
        if self.dropped_after_seconds is None and self.seconds > JUDGED_AFTER_SECONDS:
            reasons.append(f"a day that was due was not dropped in {self.seconds:.0f} s of work")
        reasons += [f"grows without bound: {f.kind.title}: {measure.values_in_words(f)}" for f in self.findings if f.drifts]
        return reasons

    def to_json(self) -> dict[str, Any]:
        reasons, seconds, verdict = self.why_failed(), max(self.seconds, 0.001), self.verdict
        return {
            "soak": {
                "seed": self.seed, "asked_seconds": self.asked_seconds, "seconds": round(self.seconds, 1),
                "all_seconds": round(self.all_seconds, 1),
                "interrupted": self.interrupted, "orders": verdict.orders,
                "orders_per_second": round(verdict.orders / seconds, 2), "kills": self.counts.kills,
                "kills_per_second": round(self.counts.kills / max(self.all_seconds, seconds), 2),
                "charges": verdict.charges,
                "doubled": len(self.doubled), "lost": len(self.lost),
                "parked": len(verdict.parked), "predicted_parked": len(self.predicted),
                "deliveries": self.counts.deliveries, "redeliveries": self.counts.redeliveries,
                "faults": {name: {"planned": self.planned.get(name, 0), "fired": fired}
                           for name, fired in sorted(self.counts.fired.items())},
                "money": dict(verdict.money),
                "partitions_dropped": self.partitions_dropped, "dropped_after_seconds": self.dropped_after_seconds,
                "inbox_rows": [each._asdict() for each in self.kept],
                "spared_workers": [worker.to_json() for worker in self.spared],
                "drift": [asdict(finding) for finding in self.findings],
                "samples": [sample.to_json() for sample in self.samples],
            },
            "reasons": reasons,
            "ok": not reasons,
        }  # fmt: skip


def prove_soak(options: ProveOptions, seconds: float) -> int:
    """Run it; returns 0 held, 1 doubled, lost or grown, 3 it ended before anything was killed."""
    console = Console()
    for name in ("onceward", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed = options.chosen_seed()
    console.print(
        f"seed {seed}: {options.rate:g} orders/s for {seconds:g} s; Ctrl-C ends it with a report", highlight=False
    )
    with start_clusters(measure.SETTINGS) as clusters:
        soaked = asyncio.run(_Soak(clusters, seed, options.rate, seconds, console).run())
    _print(console, soaked)
    write_files(options, console, soaked.to_json(), "soak", soaked)
    if soaked.why_failed():
        return 1
    return 0 if soaked.counts.kills else 3


class _Soak:
    """The workers, the controller, and the three clocks beside it: evidence, samples, looks."""

    def __init__(self, clusters: Clusters, seed: int, rate: float, seconds: float, console: Console) -> None:
        self._console = console
        self._soaked = Soaked(seed, seconds, rate)
        self._controller = EndlessController(seed, rate, PROCESS_COUNTS["hardened"], clusters.servers())
        self._processes = Processes(clusters, self._controller, Subject(name="hardened", variant="hardened"))
        self._due_day = DueDay(self._processes.database)
        self._meter: measure.Meter | None = None
        self._stop = asyncio.Event()
        self._missing: frozenset[str] = frozenset()
        self._look: Look | None = None
        self._last_counts = (0.0, 0, 0)

    async def run(self) -> Soaked:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            async with self._processes.at_work():
                await self._go()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        self._conclude()
        return self._soaked

    def _interrupt(self) -> None:
        """The first Ctrl-C ends the flow of orders; the second one is the usual interrupt."""
        self._soaked.interrupted = True
        self._console.print("ending: orders under way are finished first (Ctrl-C again: stop at once)", highlight=False)
        self._stop.set()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    async def _go(self) -> None:
        """Orders for as long as was asked for, then until every worker is quiet."""
        controller, started = self._controller, time.monotonic()
        controller.start_roles("charge", "ledger")
        clocks = [
            asyncio.create_task(clock)
            for clock in (self._print_evidence(), self._measure(), self._keep_looking(), self._watch_due_day(started))
        ]
        stopped = asyncio.create_task(self._stop.wait())
        ended, _ = await asyncio.wait(
            {stopped, *clocks}, timeout=self._soaked.asked_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for clock in ended - {stopped}:
            clock.result()  # a clock ends only by an error, which this raises: without clocks nothing is proven
        stopped.cancel()
        self._soaked.seconds = time.monotonic() - started
        controller.stop_giving()
        controller.last_progress = time.monotonic()
        self._soaked.finished = await self._processes.until_quiet(STALLED_SECONDS)
        self._soaked.all_seconds = time.monotonic() - started
        for clock in clocks:
            clock.cancel()
        for outcome in await asyncio.gather(*clocks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _print_evidence(self) -> None:
        while True:
            await asyncio.sleep(EVIDENCE_SECONDS)
            print_beside(self._console, *self._evidence())

    def _evidence(self) -> tuple[str, Text]:
        """The clock, and what was counted by then."""
        counts, found = self._controller.counts, self._look
        now, orders = time.monotonic(), len(self._controller.ordered)
        before, orders_before, kills_before = self._last_counts
        self._last_counts = (now, orders, counts.kills)
        seconds = now - before
        harm = f"{len(found.doubled)} doubled, {len(self._soaked.lost)} lost" if found else "not counted yet"
        style = "bold red" if found and (found.doubled or self._soaked.lost) else "green"
        rates = f" ({(orders - orders_before) / seconds:.1f}/s)" if before else ""
        kills = f" ({(counts.kills - kills_before) / seconds:.1f}/s)" if before else ""
        return f"{now - self._controller.started:5.0f} s  ", Text.assemble(
            f"{orders:,} orders{rates}, {self._controller.backlog} under way; ",
            f"{counts.kills:,} kills{kills}, {counts.redeliveries:,} redeliveries; ",
            f"{found.charges if found else 0:,} charges: ",
            (harm, style),
            f"; {found.late} late" if found and found.late else "",
        )

    async def _measure(self) -> None:
        meter = self._meter = measure.Meter(self._processes.database, self._processes.queues.address, *self._processes.pids)
        pause = max(SAMPLE_SECONDS_MIN, self._soaked.asked_seconds / SAMPLES)
        while True:
            await asyncio.sleep(pause)
            sample = meter.measure(len(self._controller.ordered), self._controller.workers, self._controller.spared)
            if sample is not None:
                self._soaked.samples.append(sample)

    async def _watch_due_day(self, started: float) -> None:
        """Until the day is gone, and then until the soak ends: a clock that ends has failed."""
        while True:
            await asyncio.sleep(DUE_DAY_SECONDS)
            with suppress(psycopg.Error):
                if await asyncio.to_thread(self._due_day.look, time.monotonic() - started):
                    await self._stop.wait()

    async def _keep_looking(self) -> None:
        pause = LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            begin = time.monotonic()
            old = frozenset(order for order, at in self._controller.given_at.items() if at < begin - OLD_SECONDS)
            ordered = dict(self._controller.ordered)
            with suppress(psycopg.Error):
                self._judge(await asyncio.to_thread(look, self._processes, ordered, old))
            pause = max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - begin))

    def _judge(self, found: Look) -> None:
        """The first harm ends the soak: there is nothing more to prove."""
        self._look = found
        self._soaked.doubled |= found.doubled
        # Missing once may be an order between two places; missing twice, a pause apart, is lost.
        self._soaked.lost |= self._missing & found.missing
        self._missing = found.missing
        self._controller.forget(found.finished)
        if self._soaked.doubled or self._soaked.lost:
            self._stop.set()

    def _conclude(self) -> None:
        soaked, controller = self._soaked, self._controller
        verdict = checker.judge(checker.gather(controller.ordered, self._processes.ledger, self._processes.database))
        soaked.verdict = verdict
        soaked.counts = controller.counts
        soaked.predicted = frozenset(controller.predicted)
        soaked.planned = dict(controller.planned)
        soaked.doubled |= {*verdict.double_charged, *verdict.doubled_writes, *verdict.phantom}
        soaked.lost |= {*verdict.lost, *verdict.wrong_charge}
        soaked.findings = measure.judge(soaked.samples)
        soaked.spared = sorted(self._meter.spared.values(), key=lambda worker: worker.name) if self._meter else []
        soaked.partitions_dropped = self._due_day.dropped()
        soaked.dropped_after_seconds = self._due_day.dropped_after_seconds
        soaked.kept = self._due_day.kept() if soaked.finished else []


def _print(console: Console, soaked: Soaked) -> None:
    soak, reasons = soaked.to_json()["soak"], soaked.why_failed()
    console.print(to_terminal("", ["", f"{soaked.seconds:,.0f} s"], [*figure_rows(soak), *finding_rows(soak)]))
    word, style = ("BROKEN", "red") if reasons else ("HELD", "green")
    early = "; ended early" if soaked.interrupted else ""
    levels = "" if reasons else "; nothing grew beyond its limit"
    print_verdict(console, word, style, f"{soak['doubled']} doubled, {soak['lost']} lost{levels}{early}", reasons)
