"""What the controller knows of each live worker, and what it counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from onceward_proof.prove.faults import Place
from onceward_proof.prove.held import Hands
from onceward_proof.prove.strikes import Killing
from onceward_proof.workers.setting import CONSUMED, Role


@dataclass(slots=True)
class LiveWorker:
    """One live worker process."""

    pid: int
    role: Role
    slot: int
    writer: asyncio.StreamWriter | None = None  # its line; None: it has not been heard of yet
    frozen: bool = False
    hands: Hands = field(default_factory=Hands)
    acking: Place | None = None  # an ack is under way, and a fault waits just behind it
    killing: Killing | None = None  # it is killed, and its end was not seen yet
    ended_by: int | None = None  # the signal, once its end is seen; 0: it ended by itself
    line_has_ended: bool = False  # all that it reported has been heard
    cut: bool = False  # a server was killed under its connections, and it has received nothing since

    @property
    def name(self) -> str:
        return f"{self.role}-{self.slot}"


@dataclass(slots=True)
class Counts:
    """What the controller counts while a variant runs."""

    fired: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)  # what struck, and had no effect that anybody saw
    deliveries: int = 0
    redeliveries: int = 0
    dedup_checks: int = 0
    dedup_hits: int = 0
    kills: int = 0  # SIGKILLs that ended a worker
    kills_of_consumers: int = 0  # of them: only a consumer receives deliveries
    kills_holding: int = 0  # of these: it held a delivery, received and not settled
    placed: int = 0
    acked: int = 0  # orders whose last event was acknowledged for the first time

    def count_kill(self, fault: str, worker: LiveWorker) -> None:
        """A SIGKILL by this fault has ended the worker."""
        self.fired[fault] += 1
        self.kills += 1
        self.kills_of_consumers += worker.role in CONSUMED
        self.kills_holding += worker.hands.holds_unsettled
