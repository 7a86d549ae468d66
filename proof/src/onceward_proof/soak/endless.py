"""A schedule that goes on: orders at a rate, and their faults made batch by batch from the seed, while the crew runs.

Only the controller knows where a fault waits; workers and provider ask at each boundary. What it keeps of an order goes
when the checker has found that order finished: it keeps as much after a day as after a minute.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Any, Final

from onceward_proof.control import Controller, Member
from onceward_proof.faults import KILL_RANDOM
from onceward_proof.passage import Place, armed_places
from onceward_proof.schedule import Schedule, Timed, aim
from onceward_proof.workload import Order

BATCH: Final = 200  # orders
AIMED_SHARE: Final = 0.15  # of them bear at least one aimed fault; every kind is there in every batch
RANDOM_KILLS: Final = 12  # per batch
SERVERS: Final = {1: "kill-postgres-app", 5: "kill-postgres-queue"}  # in which of every eight batches
SERVERS_EVERY: Final = 8
GIVEN_AT_ONCE: Final = 10
BACKLOG_SECONDS_MAX: Final = 20  # of orders: when the crew falls further behind, orders wait for it
PAUSE_SECONDS: Final = 0.02
PRODUCERS: Final = 2


def make_batch(seed: int, number: int) -> Schedule:
    """The `number`-th batch of this seed (from 0): its orders, and their faults. Progress counts from the soak's start."""
    rng = random.Random(f"soak {seed} {number}")
    orders = tuple(Order(f"S{number:05d}-{n:03d}", rng.randrange(500, 50_000)) for n in range(BATCH))
    first = number * BATCH + 1
    timed = [
        Timed(KILL_RANDOM, first + rng.randrange(BATCH), rng.randrange(1000), round(rng.uniform(0, 30), 2))
        for _ in range(RANDOM_KILLS)
    ]
    server = SERVERS.get(number % SERVERS_EVERY)
    if server is not None:
        timed.append(Timed(server, first + rng.randrange(BATCH)))
    timed.sort(key=lambda entry: entry.progress)
    return Schedule(seed, "pgmq", orders, tuple(aim(orders, rng, AIMED_SHARE)), tuple(timed))


class EndlessController(Controller):
    """Gives orders to the producer as they fall due, and arms their faults before."""

    def __init__(self, seed: int, rate: float, crew: dict[str, int], servers: dict[str, Callable[[], None]]) -> None:
        super().__init__(Schedule(seed, "pgmq", (), (), ()), crew | {"producer": PRODUCERS}, servers)
        self.ordered: dict[str, int] = {}
        self.given_at: dict[str, float] = {}  # of the orders that nobody has found finished yet
        self.predicted: set[str] = set()  # orders that a correct consumer must hold
        self.planned: Counter[str] = Counter()
        self._under_way: set[str] = set()
        self._seed = seed
        self._rate = rate
        self._supply: deque[Order] = deque()
        self._aimed: dict[str, list[str]] = {}
        self._held: set[str] = set()
        self._batches = 0
        self._unplaced: dict[int, dict[str, Order]] = {slot: {} for slot in range(PRODUCERS)}
        self._done: set[int] = set()
        self._no_more = False
        self.started = 0.0  # when the producer first asked; 0: not yet

    @property
    def workers(self) -> list[int]:
        return list(self._members)

    @property
    def backlog(self) -> int:
        """How many orders are under way: given, and neither at their last ack nor found finished.

        One that is held never comes to its last ack; after one kill in a thousand, an ack is out that nobody tells of.
        """
        return len(self._under_way)

    def stop_giving(self) -> None:
        """No order is given any more; what is under way goes to its end, and no random kill comes after it."""
        self._no_more = True
        self.unfired_timed = []

    def forget(self, orders: Collection[str]) -> None:
        """These orders are finished: nothing is kept of them but their amounts."""
        gone = set(orders)
        self._under_way -= gone
        for order in gone:
            self.given_at.pop(order, None)
            self.moments.pop(order, None)
        self._passed = {place for place in self._passed if place[2] not in gone}
        self._seen = {delivered for delivered in self._seen if delivered[2] not in gone}
        self._armed = {place: fault for place, fault in self._armed.items() if place[2] not in gone}

    def kept(self) -> int:
        """How much is kept: what must not grow with the orders that are finished."""
        per_order = (self.moments, self._passed, self._seen, self._armed, self.given_at, self._under_way)
        return sum(len(kept) for kept in per_order)

    def _progress(self, place: Place) -> None:
        if place[:2] == ("ack.after", "order.paid"):
            self._under_way.discard(place[2])
        super()._progress(place)

    def _note(self, told: dict[str, Any], member: Member) -> None:
        if "want" in told:
            self.started = self.started or time.monotonic()
            self._spawn_task(self._give(member))
            return
        if "placed" in told:
            self._unplaced[member.slot].pop(told["placed"], None)
        if "done" in told:
            self._done.add(member.slot)
            self.all_placed = len(self._done) == PRODUCERS
            return
        super()._note(told, member)

    async def _give(self, member: Member) -> None:
        """Answer a producer once orders are due; what its killed predecessor was given, and did not place, comes first."""
        unplaced = self._unplaced[member.slot]
        while not unplaced and not self._no_more:
            unplaced |= self._take(self._due())
            if not unplaced:
                await asyncio.sleep(PAUSE_SECONDS)
        orders = [{"id": order.id, "amount": order.amount} for order in unplaced.values()]
        if member.writer is not None and self._is_alive(member):
            member.writer.write(json.dumps({"orders": orders}).encode() + b"\n")

    def _due(self) -> int:
        if self.backlog > self._rate * BACKLOG_SECONDS_MAX:
            return 0
        due = int((time.monotonic() - self.started) * self._rate) - len(self.ordered)
        return max(0, min(due, GIVEN_AT_ONCE))

    def _take(self, count: int) -> dict[str, Order]:
        taken: dict[str, Order] = {}
        now = time.monotonic()
        for _ in range(count):
            if not self._supply:
                self._next_batch()
            order = self._supply.popleft()
            taken[order.id] = order
            self.ordered[order.id] = order.amount
            self.given_at[order.id] = now
            self.planned.update(self._aimed.pop(order.id, ()))
            (self.predicted if order.id in self._held else self._under_way).add(order.id)
        return taken

    def _next_batch(self) -> None:
        batch = make_batch(self._seed, self._batches)
        self._batches += 1
        self._supply.extend(batch.orders)
        self._armed.update(armed_places(batch))
        self._held = set(batch.predicted_parked())
        self.unfired_timed.extend(batch.timed)
        for entry in batch.aimed:
            self._aimed.setdefault(entry.order, []).append(entry.fault)
