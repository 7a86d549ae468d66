"""What doctor looks at, and what it says of it: data, with no word of how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

RETENTION_SECONDS_MIN: Final = 4 * 86_400.0  # SQS's own default: a long weekend, with a day to spare


class Leg(Enum):
    """The part of a message's way that a setting is about."""

    PRODUCER = "leg 1"
    QUEUE = "leg 2"
    CONSUMER = "leg 3"
    TIMEOUT = "timeout"

    @property
    def title(self) -> str:
        """The same for people, as docs/guarantees.md has it."""
        return _TITLES[self]


_TITLES: Final = {
    Leg.PRODUCER: "leg 1: producer → queue",
    Leg.QUEUE: "leg 2: inside the queue",
    Leg.CONSUMER: "leg 3: queue → consumer",
    Leg.TIMEOUT: "gap: timeout",
}


class Verdict(Enum):
    """What is said of one setting."""

    RIGHT = "right"
    WARNING = "warning"  # it costs redeliveries, or a way to notice what goes wrong
    ERROR = "error"  # a message is lost, set aside or handled by two, once the wrong thing happens
    UNKNOWN = "unknown"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Check:
    """One setting that is looked at. `why`: what happens when it is wrong, in a sentence or two."""

    name: str
    leg: Leg
    why: str

    def right(self, place: str, found: str) -> Diagnosis:
        """It was looked at, and is as it should be."""
        return Diagnosis(self, place, Verdict.RIGHT, found)

    def wrong(self, place: str, found: str, *, wanted: str, mend: str, severe: bool = True) -> Diagnosis:
        """It was looked at, and should be another. `mend` is the command; not `severe`: a warning."""
        return Diagnosis(self, place, Verdict.ERROR if severe else Verdict.WARNING, found, wanted, mend)

    def unknown(self, place: str, found: str, *, find_out: str) -> Diagnosis:
        """It could not be looked at. `found` says why, `find_out` is what would show it."""
        return Diagnosis(self, place, Verdict.UNKNOWN, found, mend=find_out)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is said of one setting at one place (a queue, or the database)."""

    check: Check
    place: str
    verdict: Verdict
    found: str
    wanted: str = ""
    mend: str = ""

    @property
    def is_finding(self) -> bool:
        """Something is wrong: the command's exit code is 1."""
        return self.verdict in (Verdict.ERROR, Verdict.WARNING)


def findings(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Those of something wrong."""
    return [diagnosis for diagnosis in diagnoses if diagnosis.is_finding]


def spoken(seconds: float) -> str:
    """A length of time as a setting's value is best read: in its largest whole unit."""
    for unit, unit_seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= unit_seconds and seconds % unit_seconds == 0:
            return f"{seconds / unit_seconds:g} {unit}"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
