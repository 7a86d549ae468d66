"""Runs one variant under one schedule, from empty databases to quiet, and gathers what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from onceward.errors import OncewardError
from onceward_proof import checker
from onceward_proof.control import Controller, Counts
from onceward_proof.crew import Changed, Crew
from onceward_proof.moments import Moment
from onceward_proof.place import Place
from onceward_proof.schedule import Schedule
from onceward_proof.variants import CREWS

STALLED_SECONDS: Final = 20.0


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
    finished: bool  # went quiet by itself; False: no progress for STALLED_SECONDS
    wall_seconds: float
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    why_stalled: str = ""

    def unreached(self) -> dict[str, int]:
        return {name: n - self.counts.fired[name] for name, n in self.planned.items() if n > self.counts.fired[name]}

    def every_fault_fired(self) -> bool:
        return not self.unreached()


Progress = Callable[[str, Controller], None]


def run_variant(
    where: Place, schedule: Schedule, schedule_file: Path, variant: str, progress: Progress, changed: Changed | None = None
) -> Result:
    """Fresh databases, a fresh ledger, the whole crew; returns when it is quiet, or has made no progress for long."""
    started = time.monotonic()
    controller = Controller(schedule, CREWS[variant], where.servers())
    crew = Crew(where, controller, variant, schedule_file=schedule_file, changed=changed)
    finished = asyncio.run(_work(crew, lambda: progress(crew.name, controller)))
    evidence = checker.gather({order.id: order.amount for order in schedule.orders}, crew.ledger, crew.database)
    return Result(
        variant=crew.name,
        verdict=checker.judge(evidence),
        counts=controller.counts,
        planned=schedule.planned(),
        predicted_parked=schedule.predicted_parked() if variant == "hardened" else frozenset(),
        finished=finished,
        wall_seconds=time.monotonic() - started,
        moments=dict(controller.moments),
        why_stalled="" if finished else crew.why_not_quiet(),
    )


async def _work(crew: Crew, polled: Callable[[], None]) -> bool:
    async with crew.at_work():
        return await crew.until_quiet(STALLED_SECONDS, polled)
