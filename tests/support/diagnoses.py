"""What tests read from diagnoses."""

from __future__ import annotations

from collections.abc import Iterable

from onceward.doctor import Diagnosis, Needs, Verdict
from onceward.handler_times import HandlerTimes

# Handlers that fit into 30 s by both rules, so that one alone can be broken.
TIMES = HandlerTimes(consumer="payments", handled=1000, average_seconds=1.0, p99_seconds=4.0)
NEEDS = Needs(times=TIMES)
NEEDS_OF_ONE_BROKER = Needs(times=TIMES, one_broker=True)


def wrong(diagnoses: Iterable[Diagnosis]) -> dict[str, str]:
    """The findings: how severe each is, by the name of its check."""
    return {diagnosis.check.name: diagnosis.verdict.value for diagnosis in diagnoses if diagnosis.is_finding}


def unknown(diagnoses: Iterable[Diagnosis]) -> set[str]:
    return {diagnosis.check.name for diagnosis in diagnoses if diagnosis.verdict is Verdict.UNKNOWN}


def mends(diagnoses: Iterable[Diagnosis]) -> dict[str, str]:
    """The command of each finding, by the name of its check."""
    return {diagnosis.check.name: diagnosis.mend for diagnosis in diagnoses if diagnosis.is_finding}
