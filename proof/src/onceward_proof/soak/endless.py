"""A schedule that goes on: orders at a rate, and their faults made batch by batch from the seed, while workers run.

Only the controller knows where a fault waits; workers and provider ask at each boundary. What it keeps of an order goes
when the checker has found that order finished: it keeps as much after a day as after a minute.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Final

from onceward_proof.brokers.broker import Server
from onceward_proof.prove.control import Controller
from onceward_proof.prove.faults import BY_NAME, ServerFault
from onceward_proof.prove.live import LiveWorker
from onceward_proof.prove.schedule import Schedule, Timed, aim, random_kill
from onceward_proof.prove.workload import Order
from onceward_proof.workers.reports import Reply
from onceward_proof.workers.setting import Role

BATCH: Final = 200  # orders
AIMED_SHARE: Final = 0.15  # of them bear at least one aimed fault; every kind is there in every batch
RANDOM_KILLS: Final = 12  # per batch
SERVERS: Final[dict[int, ServerFault]] = {
    1: "kill-postgres-app",
    5: "kill-postgres-queue",
}  # in which of every eight batches
SERVERS_EVERY: Final = 8
GIVEN_AT_ONCE: Final = 10
BACKLOG_SECONDS_MAX: Final = 20  # of orders: when the workers fall further behind, orders wait for them
PAUSE_SECONDS: Final = 0.02
PRODUCERS: Final = 2
# The first so many workers of each role are spared: no fault kills or freezes them. The others live for a few seconds, and
# a leak shows only in a process that lives on.
SPARED: Final[Mapping[Role, int]] = {"charge": 1, "ledger": 1, "relay": 1}


def make_batch(seed: int, number: int) -> Schedule:
    """The `number`-th batch of this seed (from 0): its orders, and their faults.

    Progress counts from the soak's start.
    """
    rng = random.Random(f"soak {seed} {number}")
    orders = tuple(Order(f"S{number:05d}-{n:03d}", rng.randrange(500, 50_000)) for n in range(BATCH))
    first = number * BATCH + 1
    timed = [random_kill(first + rng.randrange(BATCH), rng) for _ in range(RANDOM_KILLS)]
    server = SERVERS.get(number % SERVERS_EVERY)
    if server is not None:
        timed.append(Timed(server, first + rng.randrange(BATCH)))
    timed.sort(key=lambda entry: entry.progress)
    return Schedule(seed, "pgmq", orders, tuple(aim(orders, rng, AIMED_SHARE)), tuple(timed))


class EndlessController(Controller):
    """Gives orders to the producers as they fall due, and arms their faults before."""

    def __init__(
        self, seed: int, rate: float, process_counts: Mapping[Role, int], servers: Mapping[ServerFault, Server]
    ) -> None:
        super().__init__(Schedule(seed, "pgmq", (), (), ()), {**process_counts, "producer": PRODUCERS}, servers)
        self.ordered: dict[str, int] = {}
        self.given_at: dict[str, float] = {}  # of the orders that the checker has not found finished yet
        self.predicted: set[str] = set()  # orders that a correct consumer must hold
        self.planned: Counter[str] = Counter()
        self.started = 0.0  # when a producer first asked; 0: not yet
        self._under_way: set[str] = set()
        self._seed = seed
        self._rate = rate
        self._supply: deque[Order] = deque()
        self._aimed: dict[str, tuple[str, ...]] = {}
        self._batches = 0
        self._unplaced: dict[int, dict[str, Order]] = {slot: {} for slot in range(PRODUCERS)}
        self._done: set[int] = set()
        self._no_more = False

    @property
    def workers(self) -> list[int]:
        return list(self._workers)

    @property
    def spared(self) -> dict[str, int]:
        """The workers that no fault strikes, as they are now: name and pid."""
        return {worker.name: worker.pid for worker in self._workers.values() if self.is_spared(worker)}

    def is_spared(self, worker: LiveWorker) -> bool:
        return worker.slot < SPARED.get(worker.role, 0)

    @property
    def backlog(self) -> int:
        """How many orders are under way: given, and neither at their last ack nor found finished.

        One that is held never comes to its last ack; after one kill in a thousand, nobody reports that ack.
        """
        return len(self._under_way)

    def stop_giving(self) -> None:
        """No order is given any more.

        What is under way goes to its end, and no random kill comes after it.
        """
        self._no_more = True
        self.unfired_timed = []

    def forget(self, orders: Collection[str]) -> None:
        """These orders are finished: nothing is kept of them but their amounts."""
        super().forget(orders)
        self._under_way -= set(orders)
        for order in orders:
            self.given_at.pop(order, None)

    def order_placed(self, producer: LiveWorker, order: str) -> None:
        self._unplaced[producer.slot].pop(order, None)

    def order_booked(self, order: str) -> None:
        self._under_way.discard(order)

    def producer_done(self, producer: LiveWorker) -> None:
        self._done.add(producer.slot)
        self.all_placed = len(self._done) == PRODUCERS

    def orders_wanted(self, producer: LiveWorker) -> None:
        self.started = self.started or time.monotonic()
        self.spawn_task(self._give(producer))

    async def _give(self, producer: LiveWorker) -> None:
        """Answer a producer once orders are due.

        What its killed predecessor was given, and did not place, comes first.
        """
        # Kept by slot, not by process: the next process of this slot takes over what was not placed.
        unplaced = self._unplaced[producer.slot]
        while not unplaced and not self._no_more:
            unplaced |= self.give(self._due())
            if not unplaced:
                await asyncio.sleep(PAUSE_SECONDS)
        orders = tuple({"id": order.id, "amount": order.amount} for order in unplaced.values())
        if producer.writer is not None and producer.pid in self._workers:
            producer.writer.write(Reply(orders=orders).encode())

    def _due(self) -> int:
        # A slow machine is given fewer orders: the soak is about harm, not about load.
        if self.backlog > self._rate * BACKLOG_SECONDS_MAX:
            return 0
        due = int((time.monotonic() - self.started) * self._rate) - len(self.ordered)
        return max(0, min(due, GIVEN_AT_ONCE))

    def give(self, count: int) -> dict[str, Order]:
        """The next orders, by their ids.

        From now on they are under way, and their faults wait for them.
        """
        orders: dict[str, Order] = {}
        now = time.monotonic()
        for _ in range(count):
            if not self._supply:
                self._next_batch()
            order = self._supply.popleft()
            orders[order.id] = order
            self.ordered[order.id] = order.amount
            self.given_at[order.id] = now
            faults = self._aimed.pop(order.id, ())
            self.planned.update(faults)
            (self.predicted if any(BY_NAME[fault].held for fault in faults) else self._under_way).add(order.id)
        return orders

    def _next_batch(self) -> None:
        batch = make_batch(self._seed, self._batches)
        self._batches += 1
        self._supply.extend(batch.orders)
        self._aimed = batch.faults_by_order()
        self.arm(batch)
