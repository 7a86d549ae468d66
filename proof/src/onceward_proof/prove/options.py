"""What `onceward prove` was asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from onceward_proof.workers.setting import QueueName


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveOptions:
    """The command line of `onceward prove`. `seed` None: one is chosen, and printed."""

    orders: int = 1000
    seed: int | None = None
    variants: tuple[str, ...] = ("naive", "hardened")
    queue: QueueName | None = None  # None: of the schedule, or pgmq
    orders_from: Path | None = None
    schedule: Path | None = None
    json: Path | None = None
    html: Path | None = None
    keep: bool = False
    resolve: bool = False  # people end what is held
    rate: float = 30.0  # orders per second, of a soak
    threads: int = 1  # of each consumer process
    prefetch: int = 0  # so many more deliveries wait in it
    ablate: tuple[str, ...] | None = None  # None: not asked for; (): every row

    def chosen_seed(self) -> int:
        return self.seed if self.seed is not None else random.SystemRandom().randrange(1_000_000)
