"""The schedule: which fault strikes where, made from a seed before anything runs, written to a readable file.

Aimed faults are keyed to an order and its *first passage* of a boundary; random kills and server kills to a count of
progress. Nothing is keyed to time, so that the same file strikes the same way on any machine.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from onceward.errors import UsageError
from onceward_proof.prove.faults import (
    BY_NAME,
    KILL_RANDOM,
    PASSAGES,
    REDRIVE,
    STORIES,
    Fault,
    Place,
    TimedFault,
    aimed_faults,
    server_faults,
    timed_faults,
)
from onceward_proof.prove.workload import Order
from onceward_proof.workers.setting import QUEUE_NAMES, QueueName

VERSION: Final = 2
READ_VERSIONS: Final = (1, VERSION)  # in 1, no fault has a delay
AIMED_SHARE: Final = 0.42  # of the orders bear at least one aimed fault
MORE_SHARE: Final = 0.25  # of those bear a second; of those again, a third
RANDOM_SHARE: Final = 0.12  # random kills per order: of consumers, they are those that strike what is in hand
REDRIVEN_SHARE: Final = 0.02  # of the orders, where the queue can be told to send a message again
KILLS_PER_ORDER_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Aimed:
    """`fault` strikes at this order's first passage of its boundary, or `delay_ms` later."""

    fault: str
    order: str
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Timed:
    """`fault` strikes when `progress` orders have been acknowledged.

    A random kill hits worker `slot` after `delay_ms`; a redrive is of the message of that number, of those processed.
    """

    fault: TimedFault
    progress: int
    slot: int = 0
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """All faults of a run, and the orders that they were made for."""

    seed: int
    queue: QueueName
    orders: tuple[Order, ...]
    aimed: tuple[Aimed, ...]
    timed: tuple[Timed, ...]

    def armed(self) -> dict[Place, Fault]:
        """Where aimed faults wait."""
        faults = ((replace(BY_NAME[entry.fault], delay_ms=entry.delay_ms), entry.order) for entry in self.aimed)
        return {Place(fault.boundary, fault.message_type, order): fault for fault, order in faults}

    def planned(self) -> dict[str, int]:
        """How often each fault is to strike; all known names, in the order of the faults' list."""
        counts = Counter([entry.fault for entry in self.aimed] + [entry.fault for entry in self.timed])
        return {name: counts[name] for name in STORIES if counts[name]}

    def predicted_parked(self) -> frozenset[str]:
        """The orders that a correct consumer must hold: the provider saved a failure before its effect."""
        return frozenset(entry.order for entry in self.aimed if BY_NAME[entry.fault].held)

    def faults_by_order(self) -> dict[str, tuple[str, ...]]:
        """The aimed faults of each order that bears any."""
        faults: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        for entry in self.aimed:
            faults[entry.order] += (entry.fault,)
        return dict(faults)

    def alone(self) -> dict[str, frozenset[str]]:
        """Per fault, the orders that bear it and no other aimed fault; only faults that have such an order."""
        orders: dict[str, set[str]] = {name: set() for name in self.planned()}
        for order, faults in self.faults_by_order().items():
            if len(faults) == 1:
                orders[faults[0]].add(order)
        return {name: frozenset(of_fault) for name, of_fault in orders.items() if of_fault}


def make_schedule(orders: Sequence[Order], seed: int, queue: QueueName, more_share: float = MORE_SHARE) -> Schedule:
    """The schedule of this seed: almost half of the orders bear a fault, every kind at least once where there is room."""
    rng = random.Random(f"schedule {seed}")
    aimed = aim(orders, rng, more_share=more_share, queue=queue)
    return Schedule(seed, queue, tuple(orders), tuple(aimed), tuple(_time(len(orders), rng, queue)))


def aim(
    orders: Sequence[Order],
    rng: random.Random,
    share: float = AIMED_SHARE,
    more_share: float = MORE_SHARE,
    queue: QueueName = "pgmq",
) -> list[Aimed]:
    """Chains of faults for this share of the orders; every kind once alone, where there is room."""
    kinds = list(aimed_faults(queue).values())
    shuffled = list(orders)
    rng.shuffle(shuffled)
    # Also a short run meets every kind once, if it has the orders for it.
    count = max(min(len(orders), len(kinds)), round(len(orders) * share))
    first = _spread(kinds, count, rng)
    entries: list[Aimed] = []
    for number, (order, fault) in enumerate(zip(shuffled, first, strict=False)):
        # What became of an order can be laid at a fault only where it bore no other: also a short run has one per kind.
        chain = [fault] if number < len(kinds) else _chain(kinds, fault, rng, more_share)
        entries += [Aimed(each.name, order.id, _delay_ms(each, rng)) for each in chain]
    return entries


def _delay_ms(fault: Fault, rng: random.Random) -> float:
    return round(rng.uniform(0, fault.delay_ms_max), 2) if fault.delay_ms_max else 0.0


def _spread(kinds: list[Fault], count: int, rng: random.Random) -> list[Fault]:
    """`count` faults: each kind once, then by weight."""
    more = rng.choices(kinds, weights=[fault.weight for fault in kinds], k=max(0, count - len(kinds)))
    return (kinds + more)[:count]


def _chain(kinds: Sequence[Fault], first: Fault, rng: random.Random, more_share: float) -> list[Fault]:
    """The faults of one order, in the order in which it meets them: at most three kills, and nothing after a last one."""
    chain = [first]
    while len(chain) < KILLS_PER_ORDER_MAX and rng.random() < more_share and not chain[-1].last:
        later = [fault for fault in kinds if _may_follow(fault, chain)]
        if not later:
            break
        chain.append(rng.choice(later))
    return chain


def _may_follow(fault: Fault, chain: Sequence[Fault]) -> bool:
    """Later on the way, at a boundary where nothing waits yet: two faults at one passage would be one."""
    occupied = {(before.boundary, before.message_type) for before in chain}
    return PASSAGES[fault.name] > PASSAGES[chain[-1].name] and (fault.boundary, fault.message_type) not in occupied


def random_kill(progress: int, rng: random.Random) -> Timed:
    """Of any worker, at any instant of the 30 ms that follow: boundaries test only what somebody thought of."""
    return Timed(KILL_RANDOM, progress, rng.randrange(1_000), round(rng.uniform(0, 30), 2))


def _time(orders: int, rng: random.Random, queue: QueueName) -> list[Timed]:
    kills = max(3, round(orders * RANDOM_SHARE))
    # Not near the end: a variant that loses orders would never come to that much progress.
    first, last = max(1, round(orders * 0.03)), max(2, round(orders * 0.75))
    entries = [random_kill(rng.randint(first, last), rng) for _ in range(kills)]
    servers = [Timed(name, rng.randint(first, last)) for name in server_faults(queue)]
    redrives = max(1, round(orders * REDRIVEN_SHARE)) if REDRIVE in timed_faults(queue) else 0
    redriven = [Timed(REDRIVE, rng.randint(first, last), rng.randrange(1_000)) for _ in range(redrives)]
    return sorted([*entries, *servers, *redriven], key=lambda entry: entry.progress)


def schedule_text(schedule: Schedule) -> str:
    """One fault per line, so that a reader can compare and change it."""
    head = {"version": VERSION, "seed": schedule.seed, "queue": schedule.queue}
    lists = {
        "orders": [order._asdict() for order in schedule.orders],
        "aimed": [_aimed_form(entry) for entry in schedule.aimed],
        "timed": [_timed_form(entry) for entry in schedule.timed],
    }
    parts = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
    for name, entries in lists.items():
        lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
        parts.append(f'"{name}": [\n{lines}\n  ]')
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def _aimed_form(entry: Aimed) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if value}


def _timed_form(entry: Timed) -> dict[str, Any]:
    form: dict[str, Any] = {"fault": entry.fault, "progress": entry.progress}
    match entry.fault:
        case "kill-random":
            return form | {"slot": entry.slot, "delay_ms": entry.delay_ms}
        case "redrive":
            return form | {"slot": entry.slot}
        case _:
            return form


def read_schedule(path: Path, queue: QueueName | None = None) -> Schedule:
    """The schedule in this file, and for this queue where one is given.

    Raises `UsageError` naming what is wrong in it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a schedule: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version not in READ_VERSIONS:
        read = " and ".join(map(str, READ_VERSIONS))
        raise UsageError(f"{path} is a schedule of version {version}; this code reads versions {read}")
    try:
        schedule = _read(document)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a schedule: {type(error).__name__}: {error}") from error
    if queue not in (None, schedule.queue):
        raise UsageError(f"{path} is a schedule for {schedule.queue}, not for {queue}")
    return schedule


def _read(document: dict[str, Any]) -> Schedule:
    orders = tuple(Order(str(entry["id"]), int(entry["amount"])) for entry in document["orders"])
    known = {order.id for order in orders}
    aimed = tuple(Aimed(entry["fault"], entry["order"], float(entry.get("delay_ms", 0))) for entry in document["aimed"])
    timed = tuple(Timed(**entry) for entry in document["timed"])
    queue = next((name for name in QUEUE_NAMES if name == document["queue"]), None)
    if queue is None:
        raise ValueError(f"unknown queue {document['queue']!r}")
    for entry in aimed:
        if entry.fault not in BY_NAME:
            raise ValueError(f"unknown fault {entry.fault!r}")
        if queue not in BY_NAME[entry.fault].queues:
            raise ValueError(f"{entry.fault} cannot happen on {queue}")
        if entry.order not in known:
            raise ValueError(f"unknown order {entry.order!r}")
    for entry_timed in timed:
        if entry_timed.fault not in timed_faults(queue):
            raise ValueError(f"unknown fault {entry_timed.fault!r}, or one that cannot happen on {queue}")
    return Schedule(int(document["seed"]), queue, orders, aimed, timed)
