"""How long to wait before the next try: exponential backoff with equal jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass

from onceward.errors import UsageError


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits grow from `first_seconds` by `factor` up to `seconds_max`, each drawn evenly from its upper half.

    The upper half ("equal jitter"), not the whole ("full jitter"): a retry that comes at once helps nobody, and two that
    failed together still part.
    """

    first_seconds: float = 1.0
    factor: float = 2.0
    seconds_max: float = 900.0

    def __post_init__(self) -> None:
        if not (0 < self.first_seconds <= self.seconds_max and self.factor >= 1):
            raise UsageError("backoff: 0 < first_seconds <= seconds_max and factor >= 1 must hold")

    def seconds_after(self, attempts: int) -> float:
        """The wait after this many failed attempts (1: after the first)."""
        # 64 doublings are beyond any wait; more would overflow a float.
        exponent = min(max(attempts, 1) - 1, 64)
        ceiling = min(self.first_seconds * self.factor**exponent, self.seconds_max)
        return random.uniform(ceiling / 2, ceiling)
