"""What has struck, and the effect that it must be seen to have."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

from onceward_proof.prove.faults import Answer, Boundary, Fault, Place
from onceward_proof.prove.schedule import Timed


def since_epoch(at: float) -> float:
    """An instant of the machine's monotonic clock, since the epoch."""
    # Every process of a run is on one machine: both clocks are the same for all, and for the queue.
    return at + time.time() - time.monotonic()


@dataclass(slots=True)
class Told:
    """A fault that strikes by what a process is told to do at `place`, by an `Answer`."""

    fault: Fault
    place: Place
    struck_at: float = 0.0  # since the epoch
    passed_again_at: float = math.inf  # when the same place was first passed, and nothing struck

    def passed_again(self, at: float) -> None:
        """Somebody passed the same place at this instant of the machine's monotonic clock, as a worker reported it."""
        self.passed_again_at = min(self.passed_again_at, since_epoch(at))


@dataclass(frozen=True, slots=True)
class Killing:
    """A SIGKILL that was sent, and why: at the passage of `place`, or at the random instant of `timed`."""

    fault: str
    place: Place | None = None
    timed: Timed | None = None


def to_the_dead(fault: Fault) -> Answer:
    """What is answered where a kill strikes, or would have.

    The one that asked is the target, and dead; or the provider, which must not answer a dead worker's call.
    """
    return Answer.CUT if fault.boundary is Boundary.RESPONSE else Answer.DROP


def is_stopped(pid: int) -> bool:
    """The process is in the state that SIGSTOP puts it into."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def runs(pid: int) -> bool:
    """There is a process of this pid, and it has not ended."""
    try:
        # One that nobody has waited for yet is still there, and does nothing any more.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
