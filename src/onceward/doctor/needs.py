"""What a consumer asks of its queue, and the checks that are the same for every queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from onceward.doctor.diagnosis import RETENTION_SECONDS_MIN, Check, Diagnosis, Leg, spoken
from onceward.handler_times import HandlerTimes

LEASE: Final = Check(
    "lease",
    Leg.TIMEOUT,
    "A handler that outlives its lease is joined by a second worker. The heartbeat extends the lease, but not while "
    "its process is frozen or the queue does not answer; six times the average and more than the p99 leave it that "
    "time.",
)
WINDOW: Final = Check(
    "window",
    Leg.CONSUMER,
    "The queue may still hold a message, or a duplicate of it, that is older than the window. It is then parked as "
    "outside the window instead of handled; an untimed id whose row was pruned is handled again.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one consumer asks of its queue. The defaults are those of `Consumer` and of `onceward run`."""

    window_seconds: float = 30 * 86_400.0
    attempts_max: int = 10
    deliveries_max: int = 50
    visibility_seconds: float = 30.0  # the lease that `run` asks the queue for
    claim_seconds: float = 30.0  # the lease of an inbox row
    times: HandlerTimes | None = None  # None: not measured yet
    one_broker: bool = False  # a development cluster: nothing is replicated, and that is accepted

    @property
    def lease_seconds_min(self) -> int | None:
        """The shortest lease that is long enough, in whole seconds, as queues count them."""
        return None if self.times is None else math.ceil(self.times.lease_seconds_min)

    @property
    def dead_letters_after_min(self) -> int:
        """How many deliveries the queue must allow, so that it is the consumer that parks."""
        return max(self.attempts_max, self.deliveries_max)


def judge_lease(check: Check, place: str, seconds: float, needs: Needs, mend: Callable[[int], str]) -> Diagnosis:
    """Whether a lease of `seconds` is long enough for the handlers as they were measured.

    `mend` gives the command that makes it so many seconds.
    """
    wanted, times = needs.lease_seconds_min, needs.times
    if wanted is None or times is None:
        return check.unknown(
            place,
            f"{spoken(seconds)}; no handler of this consumer has been measured yet",
            find_out="run the consumer for a while, and name it: onceward doctor MODULE:CONSUMER --queue URL",
        )
    measured = f"handlers take {spoken(times.average_seconds)} on average, p99 {spoken(times.p99_seconds)}"
    if times.fit(seconds):
        return check.right(place, f"{spoken(seconds)}; {measured}")
    return check.wrong(
        place, f"{spoken(seconds)}; {measured}", wanted=f"at least {spoken(wanted)}", mend=mend(wanted),
        severe=seconds <= times.p99_seconds,
    )  # fmt: skip


def judge_window(place: str, retention_seconds: float | None, needs: Needs) -> Iterator[Diagnosis]:
    """Whether the window is as long as the queue and its dead-letter queue, one after the other, keep a message.

    None: for ever, which no window is; what is older is parked, and nobody is told to keep less.
    """
    if retention_seconds is None:
        yield WINDOW.right(
            place, f"{spoken(needs.window_seconds)}; the queue keeps messages for ever, and older ones are parked"
        )
        return
    found = f"{spoken(needs.window_seconds)}; queue and dead-letter queue keep a message for {spoken(retention_seconds)}"
    if retention_seconds <= needs.window_seconds:
        yield WINDOW.right(place, found)
        return
    yield WINDOW.wrong(
        place, found, wanted=f"at least {spoken(retention_seconds)}",
        mend=f"Consumer(..., window=timedelta(days={math.ceil(retention_seconds / 86_400)}))",
    )  # fmt: skip


def visibility_command(seconds: int) -> str:
    """What makes the lease that `run` asks for so long."""
    return f"onceward run ... --visibility {seconds}"


def judge_retention(check: Check, place: str, seconds: float | None, mend: str) -> Diagnosis:
    """Whether a queue keeps what nobody consumes for long enough. None: for ever."""
    if seconds is None:
        return check.right(place, "for ever")
    if seconds >= RETENTION_SECONDS_MIN:
        return check.right(place, spoken(seconds))
    wanted = f"at least {spoken(RETENTION_SECONDS_MIN)}"
    return check.wrong(place, spoken(seconds), wanted=wanted, mend=mend, severe=False)


def judge_dead_letters_after(
    check: Check, place: str, deliveries: int, needs: Needs, *, found: str, mend: str
) -> Diagnosis:
    """Whether the queue leaves it to the consumer to park: it must allow more deliveries than the consumer tries."""
    if deliveries >= needs.dead_letters_after_min:
        return check.right(place, found)
    return check.wrong(
        place, found, severe=deliveries < needs.attempts_max, mend=mend,
        wanted=f"at least {needs.dead_letters_after_min} (the consumer's attempts_max is {needs.attempts_max}, and its "
        f"deliveries_max {needs.deliveries_max})",
    )  # fmt: skip
