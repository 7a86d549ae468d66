"""How long this consumer's handlers take, measured by itself: what the lease of its queue is held against.

Durations are counted in buckets whose bounds grow by a fifth. So a p99 is at most a fifth too high, memory is bounded, and
what processes have measured is added up by a sum. A process writes what it has counted now and then, never per message.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from psycopg import Connection

from onceward.database import tuples
from onceward.statements import SCHEMA_DEFAULT, statements

logger = logging.getLogger("onceward")
DAYS_KEPT: Final = 7
# AWS's rule for a visibility timeout: six times what the work takes.
LEASE_AVERAGES: Final = 6
SAY_AGAIN_SECONDS: Final = 3600.0
_SMALLEST_SECONDS: Final = 0.001
_BUCKETS_AN_OCTAVE: Final = 4
_BUCKET_MAX: Final = 120  # 2^30 ms: twelve days
Counts = dict[int, tuple[int, float]]  # of each bucket: how many handlers, and their seconds together


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerTimes:
    """How long the handlers of one consumer took within the last days, failures included.

    The average and the p99 are each of the slowest day: a handler that has become slow today is seen today.
    """

    consumer: str
    handled: int
    average_seconds: float
    p99_seconds: float

    @property
    def lease_seconds_min(self) -> float:
        """The shortest lease that is long enough."""
        return max(LEASE_AVERAGES * self.average_seconds, math.nextafter(self.p99_seconds, math.inf))

    def fit(self, lease_seconds: float) -> bool:
        """Whether they fit into this lease."""
        return lease_seconds >= self.lease_seconds_min


class HandlerClock:
    """Measures the handlers of one consumer in this process. From any thread."""

    def __init__(self, consumer: str, *, schema: str = SCHEMA_DEFAULT) -> None:
        self._consumer = consumer
        self._statements = statements(schema)
        self._counts: Counts = {}
        self._lock = threading.Lock()

    def timed(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The same handler, measured: one that fails counts too, because its delivery is held for as long."""

        def measured(*arguments: Any) -> Any:
            begun = time.monotonic()
            try:
                return handler(*arguments)
            finally:
                self.record(time.monotonic() - begun)

        return measured

    def record(self, seconds: float) -> None:
        """One handler took so long."""
        self._add({bucket_of(seconds): (1, seconds)})

    @property
    def has_unwritten(self) -> bool:
        """Something was measured since the last write."""
        return bool(self._counts)

    def write(self, conn: Connection[Any]) -> None:
        """What was measured since the last write is in the database; what is older than a week is not.

        Crash before it: what this process has measured since then is forgotten, and nothing rests on it.
        """
        with self._lock:
            counts, self._counts = self._counts, {}
        if not counts:
            return
        # In the order of the key: two processes that add to the same rows then wait for each other, and never in a circle.
        rows = sorted((bucket, handled, seconds) for bucket, (handled, seconds) in counts.items())
        buckets, handled, seconds = ([*column] for column in zip(*rows, strict=True))
        params = {
            "consumer": self._consumer,
            "buckets": buckets,
            "handled": handled,
            "bucket_seconds": seconds,
            "days": DAYS_KEPT,
        }
        try:
            conn.execute(self._statements["handler_times_add"], params)
        except BaseException:
            self._add(counts)
            raise
        conn.execute(self._statements["handler_times_forget"], params)

    def _add(self, counts: Counts) -> None:
        with self._lock:
            self._counts = added([self._counts, counts])


class LeaseWatch:
    """Says when the handlers do not fit into the queue's lease: once, and then at most hourly."""

    def __init__(self, consumer: str, lease_seconds: float | None, *, schema: str = SCHEMA_DEFAULT) -> None:
        self._consumer = consumer
        self._lease_seconds = lease_seconds
        self._schema = schema
        self._said_at = -math.inf

    def look(self, conn: Connection[Any]) -> None:
        """If the handlers of the last days do not fit, a warning says so."""
        if self._lease_seconds is None or time.monotonic() < self._said_at + SAY_AGAIN_SECONDS:
            return
        for times in read_handler_times(conn, schema=self._schema):
            if times.consumer == self._consumer and not times.fit(self._lease_seconds):
                self._said_at = time.monotonic()
                logger.warning(
                    "the queue's lease of %g s is short for the handlers of %r, which take %.3g s on average and %.3g s at "
                    "the 99th percentile: when a heartbeat is late, a second worker has the message while the first still "
                    "works on it. Make it at least %.0f s (`onceward run --visibility`)",
                    self._lease_seconds, self._consumer, times.average_seconds, times.p99_seconds,
                    math.ceil(times.lease_seconds_min), extra={"onceward": {"consumer": self._consumer}},
                )  # fmt: skip


def read_handler_times(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> list[HandlerTimes]:
    """What the consumers of this schema measured within the last days, by consumer."""
    days: dict[str, dict[date, Counts]] = {}
    for consumer, day, bucket, handled, seconds in tuples(
        conn, statements(schema)["handler_times_read"], {"days": DAYS_KEPT}
    ):
        days.setdefault(consumer, {}).setdefault(day, {})[bucket] = (handled, seconds)
    return [summed_up(consumer, [*counts.values()]) for consumer, counts in days.items()]


def summed_up(consumer: str, days: Sequence[Counts]) -> HandlerTimes:
    """The counts of one or more days, in four figures."""
    return HandlerTimes(
        consumer=consumer,
        handled=sum(_handled(counts) for counts in days),
        average_seconds=max(sum(seconds for _, seconds in counts.values()) / _handled(counts) for counts in days),
        p99_seconds=max(_p99_seconds(counts) for counts in days),
    )


def _handled(counts: Counts) -> int:
    return sum(handled for handled, _ in counts.values())


def _p99_seconds(counts: Counts) -> float:
    """What 99 of 100 handlers did not exceed, as the upper bound of its bucket."""
    passed, wanted = 0, math.ceil(_handled(counts) * 0.99)
    for bucket in sorted(counts):
        passed += counts[bucket][0]
        if passed >= wanted:
            return upper_seconds(bucket)
    return 0.0


def added(parts: Iterable[Mapping[int, tuple[int, float]]]) -> Counts:
    """The counts of all parts, bucket by bucket."""
    counts: Counts = {}
    for part in parts:
        for bucket, (handled, seconds) in part.items():
            before = counts.get(bucket, (0, 0.0))
            counts[bucket] = (before[0] + handled, before[1] + seconds)
    return counts


def bucket_of(seconds: float) -> int:
    """The bucket that counts a handler of `seconds`."""
    if seconds <= _SMALLEST_SECONDS:
        return 0
    return min(_BUCKET_MAX, math.ceil(math.log2(seconds / _SMALLEST_SECONDS) * _BUCKETS_AN_OCTAVE))


def upper_seconds(bucket: int) -> float:
    """The longest duration that this bucket counts."""
    return _SMALLEST_SECONDS * 2 ** (bucket / _BUCKETS_AN_OCTAVE)
