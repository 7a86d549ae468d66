"""The controller: hears every passage, fires what the schedule says, restarts what has ended, and knows when it is over.

One thread, one event loop. It records a passage before it fires. It kills only pids that the supervisor reported.

A fault has fired once its effect was seen: a kill when the supervisor has reaped the process and says that signal 9 ended
it, a stop when the process was found stopped until it was woken, past its lease, a server's kill when its pid is gone. What
a process was told to do, or not to do, nobody can see here: those are kept as `Told`, and `witness.py` judges them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, assert_never

from onceward_proof.brokers.broker import NeverStruck, Server, Struck
from onceward_proof.prove.faults import (
    FREEZE_SECONDS,
    FREEZE_SECONDS_MAX,
    KILL_RANDOM,
    REDRIVE,
    Answer,
    Boundary,
    Fault,
    Place,
    ServerFault,
    Signal,
    Wire,
)
from onceward_proof.prove.live import Counts, LiveWorker
from onceward_proof.prove.moments import FOUND, QUEUE, Kind, Moment, of_passage
from onceward_proof.prove.schedule import Schedule, Timed
from onceward_proof.prove.strikes import Killing, Told, is_stopped, runs, since_epoch, to_the_dead
from onceward_proof.workers.reports import Note, Point, Reply, Report
from onceward_proof.workers.setting import CONSUMED, LEASE_SECONDS, Role

RESTART_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.005
IDLE_SECONDS_MAX: Final = 2.0  # after so long without anybody who holds anything, a random kill strikes an idle worker


class Controller:
    """Fires one schedule against one variant's processes."""

    def __init__(
        self, schedule: Schedule, process_counts: Mapping[Role, int], servers: Mapping[ServerFault, Server], *,
        outside_only: bool = False,
    ) -> None:  # fmt: skip
        self.schedule = schedule
        self.outside_only = outside_only  # no worker reports what it publishes, receives or acknowledges
        self.counts = Counts()
        self.moments: defaultdict[str, list[Moment]] = defaultdict(list)
        self.also_struck: set[str] = set()  # orders that a fault met which was not aimed at them
        self.last_progress = time.monotonic()
        self.all_placed = False
        self.unfired_timed: list[Timed] = list(schedule.timed)
        self.told: dict[Place, Told] = {}
        self.queues: Struck = NeverStruck()  # until the variant's own are there
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
        self._progress = 0  # by which faults are timed: orders whose first message was handled
        self._ready = asyncio.Event()
        self._about_to_strike = 0  # random kills that wait for their instant
        self._server_kills = 0  # that wait for the acks under way, or are at work

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
                self._exited(report.pid, report.signal)
            elif report.role is not None:  # forked
                self._workers[report.pid] = LiveWorker(report.pid, report.role, report.slot)

    def _exited(self, pid: int, ended_by: int) -> None:
        worker = self._workers.pop(pid, None)
        # At the end of the run all are killed: no fault may take that for its effect.
        if worker is None or self._ending:
            return
        worker.ended_by = ended_by
        self._see_end(worker)
        if not (worker.role == "producer" and self.all_placed):
            self.spawn_task(self._restart(worker))

    def _see_end(self, worker: LiveWorker) -> None:
        """It is gone, and its last report is heard: whether the kill had its effect, and struck a holder, is known."""
        killing = worker.killing
        if killing is None or worker.ended_by is None or not (worker.line_has_ended or worker.writer is None):
            return
        worker.killing = None
        self.counts.unseen[killing.fault] -= 1
        if worker.ended_by == signal.SIGKILL:
            self.counts.count_kill(killing.fault, worker)
        elif killing.place is not None:
            # It had ended by itself before the signal came: the fault waits for the order's next passage.
            self._passed.discard(killing.place)
        elif killing.timed is not None:
            self.spawn_task(self._kill_random(killing.timed))  # for the same reason, another is struck

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
        if worker is not None:
            worker.line_has_ended = True
            self._see_end(worker)
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
        held = worker.hands.of(report) if worker else None
        moment = of_passage(self._seconds(), report, target.name if target else "?", held.outcome if held else None)
        self._add_moment(place.order, moment)
        if self._must_wait(place, target):
            self.spawn_task(self._pass_later(place, report, target, writer))
        else:
            self._pass(place, report, target, writer)

    async def _pass_later(
        self, place: Place, report: Report, target: LiveWorker | None, writer: asyncio.StreamWriter
    ) -> None:
        while self._must_wait(place, target):  # noqa: ASYNC110 - short
            await asyncio.sleep(LOOK_SECONDS)
        self._pass(place, report, target, writer)

    def _must_wait(self, place: Place, target: LiveWorker | None) -> bool:
        """A kill must wait while it would take away what another fault is just about to show.

        An ack with a fault just behind it: were the process killed in between, by the fault of another order that it has in
        hand, or with the server, the message would be gone, and that passage never come. So only one such ack is under way
        in a process at a time, and signals to it wait until then. A frozen process must be seen to wake.
        """
        if target is None or not self._is_alive(target):
            return False
        behind = place._replace(boundary=Boundary.ACK_AFTER)
        begins_ack = place.boundary is Boundary.ACK_BEFORE and self._fault_at(behind) is not None
        if begins_ack and (self._server_kills or target.acking not in (None, behind)):
            return True
        fault = self._fault_at(place)
        is_signal = fault is not None and isinstance(fault.action, Signal)
        return is_signal and (target.frozen or target.acking not in (None, place))

    def _fault_at(self, place: Place) -> Fault | None:
        """The fault that waits there."""
        return None if place in self._passed else self._armed.get(place)

    def _pass(self, place: Place, report: Report, target: LiveWorker | None, writer: asyncio.StreamWriter) -> None:
        answer = self._answer(place, report, target)
        if target is not None:
            self._follow_ack(place, report, target, answer)
        if report.ask:
            writer.write(Reply(report.ask, answer).encode())

    def _answer(self, place: Place, report: Report, target: LiveWorker | None) -> Answer:
        """What the one that passes is to do; what strikes it has struck."""
        fault = self._fault_at(place)
        if fault is not None and isinstance(fault.action, Signal) and target is not None and self.is_spared(target):
            # It passes unharmed, and the fault that waited here has missed its one chance.
            fault = None
        if fault is None:
            if place in self.told:
                self.told[place].passed_again(report.at)
        elif isinstance(fault.action, Signal) and not self._is_alive(target):
            # Another fault has killed its target already. This one stays where it is: the order will pass again.
            return to_the_dead(fault)
        if place not in self._passed:
            # Recorded before anything fires: a fault strikes the first passage only, whatever it does to this worker.
            self._passed.add(place)
            if place.boundary is Boundary.ACK_AFTER:
                self._acked(place)
            elif place.boundary is Boundary.RESPONSE and self.outside_only:
                self._handled_after_placed()
        return Answer.GO if fault is None else self._fire(fault, place, report.at, target)

    def _follow_ack(self, place: Place, report: Report, target: LiveWorker, answer: Answer) -> None:
        behind = place._replace(boundary=Boundary.ACK_AFTER)
        if place.boundary is Boundary.ACK_BEFORE and answer is Answer.GO and target.killing is None:
            target.hands.settling(report)
            if self._fault_at(behind):
                target.acking = behind
        elif place == target.acking:
            target.acking = None

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
            self._handled_after_placed()

    def _handled_after_placed(self) -> None:
        """One order more was charged and acknowledged; or only charged, where nobody says what is acknowledged."""
        self.last_progress = time.monotonic()
        self._progress += 1
        self._fire_timed()

    def _fire(self, fault: Fault, place: Place, at: float, target: LiveWorker | None) -> Answer:
        """Do it; what the one that asked at this instant is to do."""
        who = target.name if target else "?"
        self._add_moment(place.order, Moment(self._seconds(), Kind.STRUCK, who, fault=fault.name))
        match fault.action:
            case Signal.KILL if fault.delay_ms:
                self.spawn_task(self._kill_later(target, fault, place))
                return Answer.GO_TO_THE_END
            case Signal.KILL:
                if target is not None:
                    self._kill(target, Killing(fault.name, place))
                return to_the_dead(fault)
            case Signal.FREEZE:
                if target is not None:
                    self._freeze(target, fault, place.order)
                return Answer.GO
            case (Answer() | Wire()) as action:
                self.counts.fired[fault.name] += 1
                self.told[place] = Told(fault, place, since_epoch(at))
                if isinstance(action, Answer):
                    return action
                self.queues.cut_at_ack(place.message_type, place.order)
                return Answer.GO
            case never:
                assert_never(never)

    def _is_alive(self, worker: LiveWorker | None) -> bool:
        """It runs, or is stopped; one that is killed does not count, though its end is not seen yet."""
        return worker is not None and worker.pid in self._workers and worker.killing is None

    def _kill(self, target: LiveWorker, killing: Killing) -> None:
        self.counts.unseen[killing.fault] += 1
        target.killing = killing
        struck = killing.place.order if killing.place else ""
        for order in target.hands.orders:
            if order != struck:
                self.also_struck.add(order)
                self._add_moment(order, Moment(self._seconds(), Kind.STRUCK_ALONG, target.name, fault=killing.fault))
        with suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGKILL)

    async def _kill_later(self, target: LiveWorker | None, fault: Fault, place: Place) -> None:
        await asyncio.sleep(fault.delay_ms / 1000)
        if target is not None and self._is_alive(target):
            self._kill(target, Killing(fault.name, place))

    def _freeze(self, target: LiveWorker, fault: Fault, order: str) -> None:
        # While it is stopped it is not quiet: the run does not end before it has been woken.
        self.counts.unseen[fault.name] += 1
        target.frozen = True
        os.kill(target.pid, signal.SIGSTOP)
        self.spawn_task(self._wake(target, fault, order))

    async def _wake(self, target: LiveWorker, fault: Fault, order: str) -> None:
        """Past its lease, and when another has done its work: on a busy machine that may take longer."""
        # Found stopped twice, with more than a lease between: nobody but this controller wakes it.
        await asyncio.sleep(FREEZE_SECONDS / 3)
        first, was_stopped = time.monotonic(), is_stopped(target.pid)
        await asyncio.sleep(FREEZE_SECONDS * 2 / 3)
        done_by_another = Place(Boundary.ACK_BEFORE, "order.placed", order)
        for _ in range(round((FREEZE_SECONDS_MAX - FREEZE_SECONDS) / 0.02)):
            if done_by_another in self._passed or not self._is_alive(target):
                break
            await asyncio.sleep(0.02)
        if self._is_alive(target):
            if was_stopped and is_stopped(target.pid) and time.monotonic() - first > LEASE_SECONDS:
                self.counts.unseen[fault.name] -= 1
                self.counts.fired[fault.name] += 1
            os.kill(target.pid, signal.SIGCONT)
            self._add_moment(order, Moment(self._seconds(), Kind.WOKEN, target.name))
        target.frozen = False

    def _fire_timed(self) -> None:
        """Keyed to progress, never to time: on a slow machine the same faults strike."""
        while self.unfired_timed and self.unfired_timed[0].progress <= self._progress:
            entry = self.unfired_timed.pop(0)
            if entry.fault == KILL_RANDOM:
                self.spawn_task(self._kill_random(entry))
            elif entry.fault == REDRIVE:
                self._redrive(entry)
            else:
                self.spawn_task(self._kill_server(entry.fault))

    async def _kill_random(self, entry: Timed) -> None:
        """Kill a worker that holds something, at an instant that is random in the time in which anybody does.

        An idle process is killed without any danger, so the clock of the delay runs only while somebody holds something;
        and whoever does when it has run out is as likely to be struck as any other.
        """
        self._about_to_strike += 1
        left, idle_seconds = entry.delay_ms / 1000, 0.0
        while not (targets := self._targets(any_worker=self.outside_only or idle_seconds > IDLE_SECONDS_MAX)) or left > 0:
            before = time.monotonic()
            await asyncio.sleep(min(LOOK_SECONDS, max(left, 0.001)))
            seconds = time.monotonic() - before
            left, idle_seconds = (left - seconds, 0.0) if targets else (left, idle_seconds + seconds)
        self._kill(targets[entry.slot % len(targets)], Killing(KILL_RANDOM, timed=entry))
        self._about_to_strike -= 1

    def _redrive(self, entry: Timed) -> None:
        """A message that was processed comes again, as a person's redrive would have it."""
        order = self.queues.redrive(entry.slot)
        (self.counts.fired if order else self.counts.unseen)[REDRIVE] += 1
        if order:
            self.also_struck.add(order)
            self._add_moment(order, Moment(self._seconds(), Kind.STRUCK, QUEUE, fault=REDRIVE))

    def _targets(self, *, any_worker: bool) -> list[LiveWorker]:
        """Whom a random kill may strike, by name: what holds deliveries by its role must hold one."""
        alive = (w for w in self._workers.values() if w.writer and self._is_alive(w) and not w.frozen and not w.acking)
        alive = (w for w in alive if not self.is_spared(w))
        targets = (w for w in alive if any_worker or w.role not in CONSUMED or w.hands.holds_unsettled)
        return sorted(targets, key=lambda worker: worker.name)

    async def _kill_server(self, fault: ServerFault) -> None:
        """Kill the server and restart it."""
        self._server_kills += 1
        while any(worker.acking for worker in self._workers.values()):  # noqa: ASYNC110 - short
            await asyncio.sleep(LOOK_SECONDS)
        for worker in self._workers.values():
            worker.cut = True
            for order in worker.hands.orders:
                self.also_struck.add(order)
                self._add_moment(order, Moment(self._seconds(), Kind.STRUCK, worker.name, fault=fault))
        server = self._servers[fault]
        pid = server.pid
        # On this thread, on purpose: a server that is started from another would outlive a killed prove.
        server.kill()
        (self.counts.unseen if runs(pid) else self.counts.fired)[fault] += 1
        server.restart()
        self._server_kills -= 1

    def _note(self, report: Report, worker: LiveWorker) -> None:
        match report.word:
            case Note.RECEIVED:
                worker.hands.receive(report)
                self._count_delivery(report, worker)
            case Note.HANDLED:
                self._handled(report, worker)
            case Point():
                self._count_point(report.word, report.message_id, worker)
            case Note.EXTENDED:
                self._add_moment(report.order, Moment(self._seconds(), Kind.EXTENDED, worker.name))
            case Note.RELEASED:
                worker.hands.settling(report)
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

    def _handled(self, report: Report, worker: LiveWorker) -> None:
        if worker.acking is not None and worker.acking.order == report.order:
            # The queue did not answer: the ack is not under way any more, and the message comes again.
            worker.acking = None
        worker.hands.handled(report)

    def _count_point(self, point: Point, message_id: str, worker: LiveWorker) -> None:
        if point in (Point.CLAIMED, Point.TAKEN, Point.DUPLICATE):
            self.counts.dedup_checks += 1
            self.counts.dedup_hits += point is Point.DUPLICATE
        held = worker.hands.of_message(message_id)
        if held is None:
            return
        if point in (Point.DUPLICATE, Point.PARKED, Point.IN_FLIGHT):
            held.outcome = point
        if point in FOUND:
            self._add_moment(held.order, Moment(self._seconds(), FOUND[point], worker.name))

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
        """The order is committed. This and the next four are hooks for the soak."""

    def order_booked(self, order: str) -> None:
        """The order's last event was acknowledged for the first time."""

    def orders_wanted(self, producer: LiveWorker) -> None:
        """Of a schedule in a file, a producer knows its orders: it never asks."""

    def is_spared(self, worker: LiveWorker) -> bool:  # noqa: ARG002 - none is
        """No fault kills or freezes this worker."""
        return False

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
        self.told = {place: told for place, told in self.told.items() if place.order not in forgotten}

    def quiet(self) -> bool:
        """No worker is frozen or busy, every one has been heard of, and nothing is about to strike."""
        workers = [worker for worker in self._workers.values() if worker.role != "producer"]
        wanted = sum(count for role, count in self._process_counts.items() if role != "producer")
        calm = not self._about_to_strike and all(w.writer and not w.hands and not w.frozen for w in workers)
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
