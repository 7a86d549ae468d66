"""What a soak measures beside its orders, and whether any of it grows without bound.

By design the inbox, the intents and the service's own tables grow with every order (upkeep drops a partition when no
duplicate can come back to it): there, growth per order is judged. Everything else must stay level.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Final, Literal

import psutil  # type: ignore[import-untyped]
import psycopg

MEGABYTE: Final = 1_000_000
POINTS_MIN: Final = 9  # three for each third; a median of fewer says nothing
WARM_UP_SHARE: Final = 0.2  # of the time: caches and pools fill
ORDERS_MIN: Final = 1500  # a table grows by pages: with fewer orders, a slope is noise
MAX_WAL_BYTES: Final = 256 * 1024 * 1024
# Postgres keeps about max_wal_size by itself, more only while a checkpoint is late.
WAL_BYTES_MAX: Final = 2 * MAX_WAL_BYTES
# A server of the soak is killed every minute. A crash takes away the counts by which autovacuum knows that a table is due,
# and what the free-space maps of indexes had learnt since the last checkpoint (neither is in the WAL). So both come between
# two crashes here, as they do in life; with the usual settings, tables and indexes would grow a little with every crash.
SETTINGS: Final = {
    "max_wal_size": "256MB",
    "min_wal_size": "80MB",
    "checkpoint_timeout": "30s",
    "autovacuum_naptime": "5s",
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "500",
}
SLOPE_FACTOR_MAX: Final = 1.5
SLOPE_BYTES_MIN: Final = 300.0  # per order; less is noise: a table grows by whole pages


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that is measured.

    It may grow by `allowed`, or by `share` of itself, and still be level.
    """

    name: str
    title: str
    allowed: float
    share: float = 0.25
    per_order: bool = False
    unit: Literal["MB", ""] = "MB"

    def scaled(self, value: float) -> float:
        return value / MEGABYTE if self.unit else value

    def show(self, value: float) -> str:
        return f"{self.scaled(value):,.1f} {self.unit}" if self.unit else f"{value:,.0f}"


KINDS: Final = (
    Kind("nursery_bytes", "memory of the supervisor (starts the workers)", 10 * MEGABYTE),
    Kind("spared_bytes", "memory of a spared worker, on average", 15 * MEGABYTE),
    Kind("worker_bytes", "memory of any worker, on average", 15 * MEGABYTE),
    Kind("provider_bytes", "memory of the provider", 20 * MEGABYTE),
    Kind("connections", "connections to both servers", 12, unit=""),
    Kind("waiting_bytes", "outbox and queues on disk", 40 * MEGABYTE, share=1.0),
    Kind("table_bytes", "inbox, intents, orders, accounts on disk", 0, per_order=True),
    Kind("wal_bytes", "WAL of both servers", WAL_BYTES_MAX),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """All that was measured at one moment; `values` by the name of the kind."""

    seconds: float
    orders: int
    values: dict[str, float]

    def to_json(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 1), "orders": self.orders, **self.values}


@dataclass(frozen=True, slots=True)
class SparedWorker:
    """One worker that no fault strikes: its process, from the first look at it to the last."""

    name: str
    pid: int
    first_seen: float
    last_seen: float
    first_bytes: int
    last_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "lifetime_seconds": round(self.last_seen - self.first_seen, 1),
            "first_bytes": self.first_bytes, "last_bytes": self.last_bytes,
        }  # fmt: skip


class Meter:
    """Measures a running soak. One thread."""

    def __init__(self, database: str, queue_database: str, supervisor: int, provider: int) -> None:
        self._dsns = (database, queue_database)
        self._supervisor = supervisor
        self._provider = provider
        self._started = time.monotonic()
        self.spared: dict[str, SparedWorker] = {}

    def measure(self, orders: int, workers: Iterable[int], spared: Mapping[str, int]) -> Sample | None:
        """One sample; None while a server is down. `spared`: name and pid of the workers that no fault strikes."""
        seconds = time.monotonic() - self._started
        for name, pid in spared.items():
            self._note_spared(name, pid, seconds)
        values: dict[str, float] = {
            "nursery_bytes": _memory(self._supervisor),
            "spared_bytes": _average(spared.values()),
            "worker_bytes": _average(workers),
            "provider_bytes": _memory(self._provider),
        }
        try:
            for dsn, statement in zip(self._dsns, (_APP, _QUEUE), strict=True):
                with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as conn:
                    for name, value in zip(_COLUMNS, conn.execute(statement).fetchone() or (), strict=True):
                        values[name] = values.get(name, 0) + int(value)
        except psycopg.Error:
            return None
        return Sample(seconds, orders, values)

    def _note_spared(self, name: str, pid: int, seconds: float) -> None:
        """Its memory now, beside that at the first look; a process that has ended by itself begins again."""
        memory = _memory(pid)
        if not memory:
            return
        known = self.spared.get(name)
        if known is None or known.pid != pid:
            self.spared[name] = SparedWorker(name, pid, seconds, seconds, memory, memory)
        else:
            self.spared[name] = replace(known, last_seen=seconds, last_bytes=memory)


def _average(pids: Iterable[int]) -> int:
    """Resident bytes of a process, over those that are there; 0 when none is."""
    memory = [resident for resident in map(_memory, pids) if resident]
    return round(sum(memory) / len(memory)) if memory else 0


def _memory(pid: int) -> int:
    """Resident bytes; 0 when the process is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


_COLUMNS: Final = ("connections", "wal_bytes", "table_bytes", "waiting_bytes")
_SIZES: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir()),
       (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND ({tables})),
       (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND ({waiting}))"""
_APP: Final = _SIZES.format(
    tables="n.nspname = 'public' OR (n.nspname = 'onceward' AND c.relname <> 'outbox')",
    waiting="n.nspname = 'onceward' AND c.relname = 'outbox'",
).encode()
_QUEUE: Final = _SIZES.format(tables="false", waiting="n.nspname = 'pgmq'").encode()


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement of one kind: first and last level (or bytes per order), and whether it drifts.

    `limit`: what the last one may come to; None in evidence of before it was kept.
    """

    name: str  # of the kind
    per_order: bool
    first: float
    last: float
    drifts: bool
    limit: float | None = None

    @property
    def kind(self) -> Kind:
        return next(kind for kind in KINDS if kind.name == self.name)


def judge(samples: Sequence[Sample]) -> list[Finding]:
    """Every kind of which there is enough to say something."""
    findings = (_judge(kind, samples) for kind in KINDS)
    return [finding for finding in findings if finding is not None]


def _judge(kind: Kind, samples: Sequence[Sample]) -> Finding | None:
    values = [sample.values[kind.name] for sample in samples]
    if kind.per_order:
        return _slopes(kind, [(sample.orders, value) for sample, value in zip(samples, values, strict=True)])
    if kind.name == "wal_bytes":
        return _finding(kind, values[0], max(values), WAL_BYTES_MAX, rises=True) if values else None
    return level(kind, [(sample.seconds, value) for sample, value in zip(samples, values, strict=True)])


def level(kind: Kind, points: Sequence[tuple[float, float]]) -> Finding | None:
    """It drifts when each third lies above the one before, by more than is allowed in all.

    The warm-up is left out. A step, a spike or a saw does not drift; a leak does, however slow, once it has cost more
    than is allowed.
    """
    if not points:
        return None
    begin = points[0][0] + (points[-1][0] - points[0][0]) * WARM_UP_SHARE
    values = [value for seconds, value in points if seconds >= begin]
    if len(values) < POINTS_MIN:
        return None
    third = len(values) // 3
    levels = [median(values[:third]), median(values[third : 2 * third]), median(values[2 * third :])]
    rises = all(after > before for before, after in pairwise(levels))
    limit = levels[0] + max(kind.allowed, kind.share * levels[0])
    return _finding(kind, levels[0], levels[2], limit, rises=rises)


def _slopes(kind: Kind, points: Sequence[tuple[float, float]]) -> Finding | None:
    """Bytes per order in the first and in the second half.

    An order late in the soak must not cost much more than an early one.
    """
    if len(points) < 2 * POINTS_MIN or points[-1][0] - points[0][0] < ORDERS_MIN:
        return None
    half = len(points) // 2
    first, last = slope(points[:half]), slope(points[half:])
    return _finding(kind, first, last, SLOPE_FACTOR_MAX * max(first, 0) + SLOPE_BYTES_MIN, rises=True)


def _finding(kind: Kind, first: float, last: float, limit: float, *, rises: bool) -> Finding:
    """It drifts where it rises beyond its limit. `rises`: each third of a level lies above the one before."""
    return Finding(kind.name, kind.per_order, round(first, 1), round(last, 1), rises and last > limit, round(limit, 1))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points, by least squares; 0 when all have the same x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def values_in_words(finding: Finding) -> str:
    """First and last, and what the last may come to."""
    kind, limit = finding.kind, finding.limit
    show = (lambda value: f"{value:,.0f}") if kind.per_order else kind.show
    first = show(finding.first) + (" bytes per order" if kind.per_order else "")
    values = f"{first}, {'at most' if kind.name == 'wal_bytes' else 'then'} {show(finding.last)}"
    return values if limit is None else f"{values} (limit {show(limit)})"
