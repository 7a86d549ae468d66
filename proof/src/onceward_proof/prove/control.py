"""The controller: hears every passage, fires what the schedule says, restarts what has ended, and knows when it is over.

One thread, one event loop. It records a passage before it fires. It kills only pids that the supervisor reported.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from onceward.testing.postgres import Cluster
from onceward_proof.prove.faults import (
    FREEZE_SECONDS,
    FREEZE_SECONDS_MAX,
    KILL_RANDOM,
    Answer,
    Boundary,
    Fault,
    Place,
    ServerFault,
    Signal,
)
from onceward_proof.prove.moments import FOUND, Kind, Moment, of_passage
from onceward_proof.prove.schedule import Schedule, Timed
from onceward_proof.workers.reports import Note, Point, Reply, Report
from onceward_proof.workers.setting import Role

RESTART_SECONDS: Final = 0.05


@dataclass(slots=True)
class LiveWorker:
    """One live worker process."""

    pid: int
    role: Role
    slot: int
    writer: asyncio.StreamWriter | None = None  # its line; None: it has not been heard of yet
    busy: bool = False
    frozen: bool = False
    order: str = ""  # whose message it has in hand
    outcome: Point | None = None  # what its consumer made of that message
    cut: bool = False  # a server was killed under its connections, and it has received nothing since

    @property
    def name(self) -> str:
        return f"{self.role}-{self.slot}"


@dataclass(slots=True)
class Counts:
    """What the controller counts while a variant runs."""

    fired: Counter[str] = field(default_factory=Counter)
    deliveries: int = 0
    redeliveries: int = 0
    dedup_checks: int = 0
    dedup_hits: int = 0
    kills: int = 0
    placed: int = 0
    acked: int = 0  # orders whose last event was acknowledged for the first time


class Controller:
    """Fires one schedule against one variant's processes."""

    def __init__(
        self, schedule: Schedule, process_counts: Mapping[Role, int], servers: Mapping[ServerFault, Cluster]
    ) -> None:
        self.schedule = schedule
        self.counts = Counts()
        self.moments: defaultdict[str, list[Moment]] = defaultdict(list)
        self.also_struck: set[str] = set()  # orders that a fault met which was not aimed at them
        self.last_progress = time.monotonic()
        self.all_placed = False
        self.unfired_timed: list[Timed] = list(schedule.timed)
        self._process_counts = process_counts
        self._servers = servers
        self._armed: dict[Place, Fault] = schedule.armed()
        self._passed: set[Place] = set()
        self._seen: set[tuple[str, str, str]] = set()  # type, message id, order
        self._workers: dict[int, LiveWorker] = {}
        self._supervisor: asyncio.StreamWriter | None = None
        self._started = time.monotonic()
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._acked_after_placed = 0
        self._ready = asyncio.Event()

    async def start_workers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Once the supervisor is ready, the producer starts (the rest start when all orders are placed)."""
        self._supervisor = writer
        self.spawn_task(self._hear_supervisor(reader))
        await self._ready.wait()
        self.start_roles("producer", "relay")

    def start_roles(self, *roles: Role) -> None:
        for role in roles:
            for slot in range(self._process_counts.get(role, 0)):
                self._fork(role, slot)

    def _fork(self, role: Role, slot: int) -> None:
        if self._supervisor is not None:
            self._supervisor.write(json.dumps([role, slot]).encode() + b"\n")

    async def _hear_supervisor(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            report = Report.decode(line)
            if report.word is Note.READY:
                self._ready.set()
            elif report.word is Note.EXITED:
                self._exited(report.pid)
            elif report.role is not None:  # forked
                self._workers[report.pid] = LiveWorker(report.pid, report.role, report.slot)

    def _exited(self, pid: int) -> None:
        worker = self._workers.pop(pid, None)
        if worker is None or self._ending or (worker.role == "producer" and self.all_placed):
            return
        self.spawn_task(self._restart(worker))

    async def _restart(self, worker: LiveWorker) -> None:
        """A supervisor's restart, with a pause: a worker that cannot start must not spin."""
        await asyncio.sleep(RESTART_SECONDS)
        if not self._ending:
            self._fork(worker.role, worker.slot)

    def kill_all(self) -> None:
        """The run is over: every worker is killed, also a frozen one."""
        self._ending = True
        for pid in list(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for task in self._tasks:
            task.cancel()

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker's line, or the provider's, until it ends."""
        worker: LiveWorker | None = None
        with suppress(ConnectionError, asyncio.CancelledError):
            while line := await reader.readline():
                report = Report.decode(line)
                if report.word is Note.HELLO:
                    worker = await self._introduced(report.pid, writer)
                elif isinstance(report.word, Boundary):
                    self._pass_by(Place(report.word, report.message_type, report.order), report, worker, writer)
                elif worker is not None:
                    self._note(report, worker)
        writer.close()

    async def _introduced(self, pid: int, writer: asyncio.StreamWriter) -> LiveWorker | None:
        """The worker that says hello, None for the provider."""
        for _ in range(2000):
            if pid in self._workers or not pid:
                break
            await asyncio.sleep(0.005)  # its fork is reported on another line, and perhaps a moment later
        worker = self._workers.get(pid)
        if worker is not None:
            worker.writer = writer
        return worker

    def _pass_by(self, place: Place, report: Report, worker: LiveWorker | None, writer: asyncio.StreamWriter) -> None:
        target = worker or self._named(report.worker)
        name, outcome = (target.name, target.outcome) if target else ("?", None)
        self._add_moment(place.order, of_passage(self._seconds(), report, name, outcome))
        fault = None if place in self._passed else self._armed.get(place)
        if fault is not None and isinstance(fault.action, Signal) and not self._is_alive(target):
            # Another fault has killed its target: the next passage is the first that can be struck.
            fault = None
        elif place not in self._passed:
            # Recorded before anything fires: a fault strikes the first passage only, whatever it does to this worker.
            self._passed.add(place)
            if place.boundary is Boundary.ACK_AFTER:
                self._acked(place)
        answer = self._fire(fault, place.order, target) if fault is not None else Answer.GO
        if report.ask:
            writer.write(Reply(report.ask, answer).encode())

    def _named(self, name: str) -> LiveWorker | None:
        """The live worker of this name (role-slot-pid)."""
        pid = name.rpartition("-")[2]
        return self._workers.get(int(pid)) if pid.isdigit() else None

    def _acked(self, place: Place) -> None:
        self.last_progress = time.monotonic()
        if place.message_type == "order.paid":
            self.counts.acked += 1
            self.order_booked(place.order)
        else:
            self._acked_after_placed += 1
            self._fire_timed()

    def _fire(self, fault: Fault, order: str, target: LiveWorker | None) -> Answer:
        """Do it; what the one that asked is to do."""
        self.counts.fired[fault.name] += 1
        who = target.name if target else "?"
        self._add_moment(order, Moment(self._seconds(), Kind.STRUCK, who, fault=fault.name))
        match fault.action:
            case Signal.KILL if fault.delay_ms:
                self.spawn_task(self._kill_later(target, fault.delay_ms / 1000))
                return Answer.GO_TO_THE_END
            case Signal.KILL:
                self._kill(target)
                # The one that asked is the target, and dead; or the provider, which must not answer a dead worker's call.
                return Answer.CUT if fault.boundary is Boundary.RESPONSE else Answer.DROP
            case Signal.FREEZE:
                self._freeze(target, order)
                return Answer.GO
            case Answer() as answer:
                return answer
            case never:
                assert_never(never)

    def _is_alive(self, worker: LiveWorker | None) -> bool:
        return worker is not None and worker.pid in self._workers

    def _kill(self, target: LiveWorker | None) -> None:
        if target is None or not self._is_alive(target):
            return
        self.counts.kills += 1
        with suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGKILL)

    async def _kill_later(self, target: LiveWorker | None, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._kill(target)

    def _freeze(self, target: LiveWorker | None, order: str) -> None:
        if target is None or not self._is_alive(target):
            return
        # While it is stopped it is not quiet: the run does not end before it has been woken.
        os.kill(target.pid, signal.SIGSTOP)
        target.frozen = True
        self.spawn_task(self._wake(target, order))

    async def _wake(self, target: LiveWorker, order: str) -> None:
        """Past its lease, and when another has done its work: on a busy machine that may take longer."""
        await asyncio.sleep(FREEZE_SECONDS)
        done_by_another = Place(Boundary.ACK_BEFORE, "order.placed", order)
        for _ in range(round((FREEZE_SECONDS_MAX - FREEZE_SECONDS) / 0.02)):
            if done_by_another in self._passed or not self._is_alive(target):
                break
            await asyncio.sleep(0.02)
        if self._is_alive(target):
            os.kill(target.pid, signal.SIGCONT)
            self._add_moment(order, Moment(self._seconds(), Kind.WOKEN, target.name))
        target.frozen = False

    def _fire_timed(self) -> None:
        """Keyed to progress, never to time: on a slow machine the same faults strike."""
        while self.unfired_timed and self.unfired_timed[0].progress <= self._acked_after_placed:
            entry = self.unfired_timed.pop(0)
            if entry.fault == KILL_RANDOM:
                self.spawn_task(self._kill_random(entry))
            else:
                self.spawn_task(self._kill_server(entry.fault))

    async def _kill_random(self, entry: Timed) -> None:
        """Kill a live worker that is not frozen."""
        await asyncio.sleep(entry.delay_ms / 1000)
        while True:
            alive = (w for w in self._workers.values() if w.writer and not w.frozen and not self._has_last_passage(w))
            targets = sorted(alive, key=lambda worker: worker.name)
            if targets:
                break
            await asyncio.sleep(0.005)
        target = targets[entry.slot % len(targets)]
        self.counts.fired[KILL_RANDOM] += 1
        self.also_struck.add(target.order)
        self._add_moment(target.order, Moment(self._seconds(), Kind.STRUCK, target.name, fault=KILL_RANDOM))
        self._kill(target)

    def _has_last_passage(self, worker: LiveWorker) -> bool:
        """A fault waits for it just behind its ack: a kill between the two would take that passage away for ever."""
        places = (Place(Boundary.ACK_AFTER, message_type, worker.order) for message_type in ("order.placed", "order.paid"))
        return any(place in self._armed and place not in self._passed for place in places)

    async def _kill_server(self, fault: ServerFault) -> None:
        """Kill the server and restart it."""
        while any(self._has_last_passage(worker) for worker in self._workers.values()):  # noqa: ASYNC110 - short
            await asyncio.sleep(0.005)
        self.counts.fired[fault] += 1
        for worker in self._workers.values():
            worker.cut = True
            if worker.busy:
                self.also_struck.add(worker.order)
                self._add_moment(worker.order, Moment(self._seconds(), Kind.STRUCK, worker.name, fault=fault))
        # On this thread, on purpose: a server that is started from another would outlive a killed prove.
        self._servers[fault].kill()
        self._servers[fault].restart()

    def _note(self, report: Report, worker: LiveWorker) -> None:
        match report.word:
            case Note.RECEIVED:
                worker.busy, worker.order, worker.outcome = True, report.order, None
                self._count_delivery(report, worker)
            case Note.IDLE:
                worker.busy, worker.order = False, ""
            case Point():
                self._count_point(report.word, worker)
            case Note.EXTENDED:
                self._add_moment(report.order, Moment(self._seconds(), Kind.EXTENDED, worker.name))
            case Note.RELEASED:
                moment = Moment(self._seconds(), Kind.GIVEN_BACK, worker.name, report.message_type)
                self._add_moment(report.order, moment)
            case Note.PLACED:
                self.counts.placed += not report.replayed
                self.last_progress = time.monotonic()
                self.order_placed(worker, report.order)
            case Note.DONE:
                self.producer_done(worker)
            case Note.WANTED:
                self.orders_wanted(worker)
            # The first five are heard elsewhere, the others are for demonstrations.
            case (
                Boundary() | Note.READY | Note.FORKED | Note.EXITED | Note.HELLO
                | Note.FOUND | Note.NOT_FOUND | Note.ENDED | Note.RAISED
            ):  # fmt: skip
                pass
            case never:
                assert_never(never)

    def _count_point(self, point: Point, worker: LiveWorker) -> None:
        if point in (Point.CLAIMED, Point.TAKEN, Point.DUPLICATE):
            self.counts.dedup_checks += 1
            self.counts.dedup_hits += point is Point.DUPLICATE
        if point in (Point.DUPLICATE, Point.PARKED, Point.IN_FLIGHT):
            worker.outcome = point
        if point in FOUND:
            self._add_moment(worker.order, Moment(self._seconds(), FOUND[point], worker.name))

    def _count_delivery(self, report: Report, worker: LiveWorker) -> None:
        self.counts.deliveries += 1
        if worker.cut:
            # Whoever does not look finds its connection dead in the middle of the next order: after the charge, say.
            self.also_struck.add(report.order)
            worker.cut = False
        delivered = (report.message_type, report.message_id, report.order)
        again = delivered in self._seen
        self._seen.add(delivered)
        self.counts.redeliveries += again
        moment = Moment(self._seconds(), Kind.RECEIVED, worker.name, report.message_type, again=again)
        self._add_moment(report.order, moment)

    def order_placed(self, producer: LiveWorker, order: str) -> None:
        """The order is committed. This and the next three are hooks for the soak."""

    def order_booked(self, order: str) -> None:
        """The order's last event was acknowledged for the first time."""

    def orders_wanted(self, producer: LiveWorker) -> None:
        """Of a schedule in a file, a producer knows its orders: it never asks."""

    def producer_done(self, producer: LiveWorker) -> None:  # noqa: ARG002 - there is one
        """All orders are placed: the consumers start."""
        self.all_placed = True
        self.counts.placed = len(self.schedule.orders)
        self.start_roles("charge", "ledger")

    def arm(self, batch: Schedule) -> None:
        """From now on the faults of this batch wait, too."""
        self._armed |= batch.armed()
        self.unfired_timed.extend(batch.timed)

    def forget(self, orders: Collection[str]) -> None:
        """These orders are finished: nothing is kept of them."""
        forgotten = set(orders)
        for order in forgotten:
            self.moments.pop(order, None)
        self.also_struck -= forgotten
        self._passed = {place for place in self._passed if place.order not in forgotten}
        self._seen = {delivered for delivered in self._seen if delivered[2] not in forgotten}
        self._armed = {place: fault for place, fault in self._armed.items() if place.order not in forgotten}

    def quiet(self) -> bool:
        """No worker is frozen or busy, every one has been heard of, and nothing is about to strike."""
        workers = [worker for worker in self._workers.values() if worker.role != "producer"]
        wanted = sum(count for role, count in self._process_counts.items() if role != "producer")
        calm = all(w.writer and not w.busy and not w.frozen for w in workers)
        return self.all_placed and len(workers) == wanted and calm

    def spawn_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside everything else, until it ends or the run does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _add_moment(self, order: str, moment: Moment | None) -> None:
        if order and moment is not None:
            self.moments[order].append(moment)
