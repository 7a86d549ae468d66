"""The controller: hears every passage, fires what the schedule says, keeps the crew at strength, and knows when it is over.

One thread, one event loop. It records a passage before it fires. It kills only pids that the nursery told it of.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from onceward_proof.faults import BY_NAME, FREEZE_SECONDS, FREEZE_SECONDS_MAX, GLOBAL, KILL_RANDOM
from onceward_proof.moments import Kind, Moment, of_passage, of_point
from onceward_proof.passage import Place, armed_places
from onceward_proof.schedule import Schedule, Timed

RESTART_SECONDS: Final = 0.05
NEEDS_VICTIM: Final = frozenset({"kill", "freeze"})


@dataclass(slots=True)
class Member:
    """One live worker process."""

    pid: int
    role: str
    slot: int
    writer: asyncio.StreamWriter | None = None
    busy: bool = False
    frozen: bool = False
    heard: bool = False
    order: str = ""  # whose message it has in hand
    outcome: str = ""  # what its consumer said of that message

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
    exits: int = 0
    placed: int = 0
    acked: int = 0  # orders whose last event was acknowledged for the first time


class Controller:
    """Fires one schedule against one crew."""

    def __init__(self, schedule: Schedule, crew: dict[str, int], servers: dict[str, Callable[[], None]]) -> None:
        self.schedule = schedule
        self.counts = Counts()
        self.moments: defaultdict[str, list[Moment]] = defaultdict(list)
        self.last_progress = time.monotonic()
        self.all_placed = False
        self.unfired_timed: list[Timed] = list(schedule.timed)
        self._crew = crew
        self._servers = servers  # fault name -> kill and restart that server
        self._armed: dict[Place, str] = armed_places(schedule)
        self._passed: set[Place] = set()
        self._seen: set[tuple[str, str, str]] = set()  # type, message id, order
        self._members: dict[int, Member] = {}
        self._nursery: asyncio.StreamWriter | None = None
        self._started = time.monotonic()
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._acked_after_placed = 0
        self._ready = asyncio.Event()

    # ---- the crew ----------------------------------------------------------------------------------------------------

    async def nurse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, setting: dict[str, Any]) -> None:
        """Talk to the nursery: it is ready, then the producer starts (the rest start when all orders are placed)."""
        self._nursery = writer
        self._order({"setting": setting})
        self._spawn_task(self._hear_nursery(reader))
        await self._ready.wait()
        self.start_roles("producer", "relay")

    def start_roles(self, *roles: str) -> None:
        for role in roles:
            for slot in range(self._crew.get(role, 0)):
                self._order({"fork": role, "slot": slot})

    def _order(self, what: dict[str, Any]) -> None:
        if self._nursery is not None:
            self._nursery.write(json.dumps(what).encode() + b"\n")

    async def _hear_nursery(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            told = json.loads(line)
            if "forked" in told:
                self._members[told["forked"]] = Member(told["forked"], told["role"], told["slot"])
            elif "exited" in told:
                self._exited(told["exited"])
            else:
                self._ready.set()

    def _exited(self, pid: int) -> None:
        member = self._members.pop(pid, None)
        self.counts.exits += 1
        if member is None or self._ending or (member.role == "producer" and self.all_placed):
            return
        self._spawn_task(self._restart(member))

    async def _restart(self, member: Member) -> None:
        """A supervisor's restart, with a pause: a worker that cannot start must not spin."""
        await asyncio.sleep(RESTART_SECONDS)
        if not self._ending:
            self._order({"fork": member.role, "slot": member.slot})

    def kill_all(self) -> None:
        """The run is over: every worker is killed, also a frozen one."""
        self._ending = True
        for pid in list(self._members):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for task in self._tasks:
            task.cancel()

    # ---- passages ----------------------------------------------------------------------------------------------------

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker's line, or the provider's, until it ends."""
        member: Member | None = None
        with suppress(ConnectionError, asyncio.CancelledError):
            while line := await reader.readline():
                told = json.loads(line)
                if "hello" in told:
                    member = await self._member(told["hello"], writer)
                elif "at" in told:
                    self._pass_by(told, member, writer)
                elif member is not None:
                    self._note(told, member)
        writer.close()

    async def _member(self, who: dict[str, Any], writer: asyncio.StreamWriter) -> Member | None:
        """The member that says hello; its fork may be told of a moment later on the nursery's line."""
        for _ in range(2000):
            if who["pid"] in self._members or not who["pid"]:
                break
            await asyncio.sleep(0.005)
        member = self._members.get(who["pid"])
        if member is not None:
            member.heard = True
            member.writer = writer
        return member

    def _pass_by(self, told: dict[str, Any], member: Member | None, writer: asyncio.StreamWriter) -> None:
        place = (told["at"], told["type"], told["order"])
        asker = member or self._named(told.get("worker"))
        worker, point = (asker.name, asker.outcome) if asker else ("?", "")
        self._add_moment(place[2], of_passage(self._seconds(), told, worker, point))
        fault = None if place in self._passed else self._armed.get(place)
        if fault is not None and BY_NAME[fault].action in NEEDS_VICTIM and not self._is_alive(asker):
            fault = None  # its victim died by another hand: the next passage is the first that can be struck
        elif place not in self._passed:
            self._passed.add(place)
            self._progress(place)
        answer = "go"
        if fault is not None:
            self.counts.fired[fault] += 1
            answer = self._fire(fault, place[2], asker)
        if told.get("ask"):
            writer.write(json.dumps({"ask": told["ask"], "do": answer}).encode() + b"\n")

    def _named(self, worker: str | None) -> Member | None:
        """The live member of this name (role-slot-pid)."""
        pid = (worker or "").rpartition("-")[2]
        return self._members.get(int(pid)) if pid.isdigit() else None

    def _progress(self, place: Place) -> None:
        boundary, message_type, _ = place
        if boundary != "ack.after":
            return
        self.last_progress = time.monotonic()
        if message_type == "order.paid":
            self.counts.acked += 1
        else:
            self._acked_after_placed += 1
            self._fire_timed()

    def _fire(self, fault: str, order: str, member: Member | None) -> str:
        """Do it; returns what the one who asked is to do."""
        action = BY_NAME[fault].action
        who = member.name if member else "?"
        self._add_moment(order, Moment(self._seconds(), Kind.STRUCK, who, fault=fault))
        if action == "kill":
            self._kill(member)
            return "cut" if BY_NAME[fault].boundary == "response" else "drop"
        if action == "freeze":
            self._freeze(member, order)
            return "go"
        return action

    def _is_alive(self, member: Member | None) -> bool:
        return member is not None and member.pid in self._members

    def _kill(self, member: Member | None) -> None:
        if member is None or member.pid not in self._members:
            return
        self.counts.kills += 1
        with suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)

    def _freeze(self, member: Member | None, order: str) -> None:
        if member is None or member.pid not in self._members:
            return
        os.kill(member.pid, signal.SIGSTOP)
        member.frozen = True
        self._spawn_task(self._wake(member, order))

    async def _wake(self, member: Member, order: str) -> None:
        """Past its lease, and when another has done its work: on a busy machine that may take longer."""
        await asyncio.sleep(FREEZE_SECONDS)
        for _ in range(round((FREEZE_SECONDS_MAX - FREEZE_SECONDS) / 0.02)):
            if ("ack.before", "order.placed", order) in self._passed or member.pid not in self._members:
                break
            await asyncio.sleep(0.02)
        if member.pid in self._members:
            os.kill(member.pid, signal.SIGCONT)
            self._add_moment(order, Moment(self._seconds(), Kind.WOKEN, member.name))
        member.frozen = False

    # ---- random kills and servers, keyed to progress -----------------------------------------------------------------

    def _fire_timed(self) -> None:
        while self.unfired_timed and self.unfired_timed[0].progress <= self._acked_after_placed:
            entry = self.unfired_timed.pop(0)
            if entry.fault == KILL_RANDOM:
                self._spawn_task(self._kill_random(entry))
            else:
                self._spawn_task(self._kill_server(entry.fault))

    async def _kill_random(self, entry: Timed) -> None:
        """The delay lands the kill anywhere in somebody's work; a victim is a live worker that is not frozen."""
        await asyncio.sleep(entry.delay_ms / 1000)
        while True:
            alive = (m for m in self._members.values() if m.heard and not m.frozen and not self._has_last_passage(m))
            victims = sorted(alive, key=lambda m: m.name)
            if victims:
                break
            await asyncio.sleep(0.005)
        victim = victims[entry.slot % len(victims)]
        self.counts.fired[KILL_RANDOM] += 1
        self._add_moment(victim.order, Moment(self._seconds(), Kind.STRUCK, victim.name, fault=KILL_RANDOM))
        self._kill(victim)

    def _has_last_passage(self, member: Member) -> bool:
        """A fault waits for it just behind its ack: a kill between the two would take that passage away for good."""
        places = {("ack.after", message_type, member.order) for message_type in ("order.placed", "order.paid")}
        return any(place in self._armed and place not in self._passed for place in places)

    async def _kill_server(self, fault: str) -> None:
        """On this thread, on purpose: a server that is started from another would outlive a killed prove."""
        while any(self._has_last_passage(member) for member in self._members.values()):  # noqa: ASYNC110 - short
            await asyncio.sleep(0.005)
        self.counts.fired[fault] += 1
        for member in self._members.values():
            if member.busy:
                self._add_moment(member.order, Moment(self._seconds(), Kind.STRUCK, member.name, fault=fault))
        self._servers[fault]()

    # ---- notes -------------------------------------------------------------------------------------------------------

    def _note(self, told: dict[str, Any], member: Member) -> None:
        if "received" in told:
            member.busy, member.order, member.outcome = True, told["order"], ""
            self._count_delivery(told, member)
        elif "idle" in told:
            member.busy, member.order = False, ""
        elif "outcome" in told:
            member.outcome = told["outcome"]
            self._add_moment(member.order, of_point(self._seconds(), member.name, member.outcome))
        elif "extended" in told:
            self._add_moment(told["order"], Moment(self._seconds(), Kind.EXTENDED, member.name))
        elif "dedup" in told:
            self.counts.dedup_checks += 1
            self.counts.dedup_hits += told["dedup"]
        elif "placed" in told:
            self.counts.placed += 1
            self.last_progress = time.monotonic()
        elif "done" in told:
            self._everything_placed()
        elif "settled" in told:
            self._add_moment(told["order"], Moment(self._seconds(), Kind.GIVEN_BACK, member.name, told["type"]))

    def _everything_placed(self) -> None:
        self.all_placed = True
        self.counts.placed = len(self.schedule.orders)
        self.start_roles("charge", "ledger")

    def _count_delivery(self, told: dict[str, Any], member: Member) -> None:
        self.counts.deliveries += 1
        delivered = (told["type"], told["received"], told["order"])
        again = delivered in self._seen
        self._seen.add(delivered)
        self.counts.redeliveries += again
        self._add_moment(told["order"], Moment(self._seconds(), Kind.RECEIVED, member.name, told["type"], again=again))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def quiet(self) -> bool:
        """Nobody is frozen or busy, every worker has been heard of, and nothing is about to strike."""
        members = [member for member in self._members.values() if member.role != "producer"]
        wanted = sum(count for role, count in self._crew.items() if role != "producer")
        calm = all(m.heard and not m.busy and not m.frozen for m in members)
        return self.all_placed and len(members) == wanted and calm

    def _add_moment(self, order: str, moment: Moment | None) -> None:
        if order and moment is not None:
            self.moments[order].append(moment)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _spawn_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


assert set(GLOBAL) <= {"kill-postgres-app", "kill-postgres-queue"}  # noqa: S101 - each needs its server
