"""Faults on demand: added over /_admin/faults, matched in the order in which they were added, counted as they fire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from onceward_proof.provider.call import Call
from onceward_proof.provider.hook import EFFECT_ONLY, GO, Kind, Verdict

MATCHABLE: Final = frozenset({"method", "path", "account", "worker", "transfer_group", "idempotency_key"})
FIELDS: Final = frozenset({"match", "times", "fault", "seconds", "status"})


@dataclass(slots=True)
class Fault:
    """A verdict for the next `times` requests (None: all) whose attributes equal `match`."""

    verdict: Verdict
    match: Mapping[str, str] = field(default_factory=dict)
    times: int | None = 1
    fired: int = 0

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Fault:
        """Make a fault of its JSON form; ValueError names what is wrong with it."""
        unknown = (document.keys() - FIELDS) | (document.get("match", {}).keys() - MATCHABLE)
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        verdict = Verdict(Kind(document["fault"]), float(document.get("seconds", 0)), int(document.get("status", 500)))
        return cls(verdict, dict(document.get("match", {})), document.get("times", 1))

    def write(self) -> dict[str, Any]:
        """Give the JSON form, with how often it fired."""
        verdict = self.verdict
        shape = {"fault": verdict.kind.value, "seconds": verdict.seconds, "status": verdict.status}
        return {"match": self.match, "times": self.times, **shape, "fired": self.fired}

    def fits(self, call: Call) -> bool:
        """Tell whether this request is the next to bear the fault; a replay has no effect to fail before or after."""
        if self.times is not None and self.fired >= self.times:
            return False
        if call.replayed and self.verdict.kind in EFFECT_ONLY:
            return False
        return all(getattr(call, name) == value for name, value in self.match.items())


class Faults:
    """The hook behind /_admin/faults. Kept in memory only.

    Crash: pending faults are gone; they have to be added again after a restart.
    """

    def __init__(self) -> None:
        self.all: list[Fault] = []

    async def request(self, call: Call) -> Verdict:
        """Fire the first fault that fits."""
        fault = next((fault for fault in self.all if fault.fits(call)), None)
        if fault is None:
            return GO
        fault.fired += 1
        return fault.verdict

    async def response(self, call: Call) -> Verdict:  # noqa: ARG002  (the protocol's signature)
        """Go on: every fault on demand is decided at the request, and carried from there."""
        return GO
