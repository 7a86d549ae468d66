"""Runs one variant under one schedule, from empty databases to quiet, and gathers what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from onceward.errors import OncewardError
from onceward_proof.prove import checker, witness
from onceward_proof.prove.clusters import Clusters
from onceward_proof.prove.control import Controller
from onceward_proof.prove.harm import struck_alone
from onceward_proof.prove.live import Counts
from onceward_proof.prove.moments import Moment
from onceward_proof.prove.processes import Processes, Subject
from onceward_proof.prove.resolve import Resolution, Resolver
from onceward_proof.prove.schedule import Schedule
from onceward_proof.prove.variants import PROCESS_COUNTS, TUTORIAL

STALLED_SECONDS: Final = 20.0
# Nothing may have to progress until a killed worker's delivery has lapsed, and the worker that gets it may be killed, too.
STALLED_LEASES: Final = 2


class ProofError(OncewardError):
    """The proof itself could not be run; nothing is said of any variant."""


@dataclass(slots=True)
class Result:
    """One variant's run: what the checker says, what the controller counted, and the stories of the orders."""

    variant: str
    verdict: checker.Verdict
    counts: Counts
    planned: dict[str, int]
    predicted_parked: frozenset[str]
    finished: bool  # went quiet by itself; False: no progress for `stalled_seconds`
    wall_seconds: float
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    why_stalled: str = ""
    threads: int = 1
    prefetch: int = 0
    stalled_seconds: float = STALLED_SECONDS
    alone: dict[str, frozenset[str]] = field(default_factory=dict)  # per fault, the orders that nothing else struck
    resolution: Resolution | None = None  # None: nobody was asked to end what is held
    outside_only: bool = False  # nothing was told of its deliveries, and no fault at a publish or an ack could reach it

    @property
    def resolved(self) -> frozenset[str]:
        """The orders that were held, and that a person has ended."""
        held = self.resolution.scenes if self.resolution is not None else ()
        return frozenset(held) - frozenset(self.verdict.parked)

    def faults(self) -> dict[str, dict[str, int]]:
        """Per fault: how often it was planned, fired, struck without an effect that was seen, and never came to that."""
        counts = self.counts
        return {name: _fault(planned, counts.fired[name], counts.unseen[name]) for name, planned in self.planned.items()}


def _fault(planned: int, fired: int, unseen: int) -> dict[str, int]:
    return {"planned": planned, "fired": fired, "unseen": unseen, "unreached": planned - fired - unseen}


Progress = Callable[[str, Controller], None]


def run_subject(
    clusters: Clusters, schedule: Schedule, schedule_file: Path, subject: Subject, progress: Progress
) -> Result:
    """Fresh databases, a fresh ledger, all processes.

    Returns when it is quiet, or has made no progress for long.
    """
    started = time.monotonic()
    outside_only = subject.variant == TUTORIAL
    controller = Controller(schedule, PROCESS_COUNTS[subject.variant], clusters.servers(), outside_only=outside_only)
    processes = Processes(clusters, controller, subject, schedule_file)
    lapsing_seconds = max(STALLED_SECONDS, STALLED_LEASES * subject.queue.lease_seconds)
    stalled_seconds = lapsing_seconds + clusters.broker.recovery_seconds
    resolver = Resolver(processes, schedule.seed) if subject.is_resolved else None
    polled = partial(progress, subject.name, controller)
    finished, resolution = asyncio.run(_work(processes, stalled_seconds, resolver, polled))
    unseen = witness.unseen(controller.told.values(), witness.hear(processes.queues, processes.ledger))
    controller.counts.fired -= unseen
    controller.counts.unseen += unseen
    evidence = checker.gather({order.id: order.amount for order in schedule.orders}, processes.ledger, processes.database)
    return Result(
        variant=subject.name,
        verdict=checker.judge(evidence),
        counts=controller.counts,
        planned=schedule.planned(),
        predicted_parked=schedule.predicted_parked() if subject.variant == "hardened" else frozenset(),
        finished=finished,
        wall_seconds=time.monotonic() - started,
        moments=dict(controller.moments),
        why_stalled="" if finished else processes.why_not_quiet(),
        threads=subject.threads,
        prefetch=subject.prefetch,
        stalled_seconds=stalled_seconds,
        # What else met an order is not known of a service that does not say what it has in hand.
        alone={} if outside_only else struck_alone(schedule, controller.also_struck),
        resolution=resolution,
        outside_only=outside_only,
    )


async def _work(
    processes: Processes, stalled_seconds: float, resolver: Resolver | None, polled: Callable[[], None]
) -> tuple[bool, Resolution | None]:
    """Whether it went quiet by itself, and what people have ended then."""
    async with processes.at_work():
        finished = await processes.until_quiet(stalled_seconds, polled)
        if resolver is None or not finished:
            return finished, None
        await resolver.end_all()
        finished = await processes.until_quiet(stalled_seconds, polled)
        return finished, resolver.resolution()
