"""What a proof needs of a queue: a server that can be killed, queues that can be asked, and a witness of what passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onceward.transport import Sink, Source
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import Setting


class Server(Protocol):
    """A server that the proof has started, kills and starts again."""

    @property
    def pid(self) -> int:
        """Of the process that is the server."""
        ...

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more when this returns."""
        ...

    def restart(self) -> None:
        """It answers again, at the same address, with what it had stored durably."""
        ...


@dataclass(frozen=True, slots=True)
class Passed:
    """What was seen to pass a variant's queues, by somebody whom no worker knows of. Times are since the epoch."""

    stored: Mapping[tuple[str, str], float]  # (message type, order) -> when the first message was stored
    removed: Mapping[tuple[str, str], Sequence[float]]  # (message type, order) -> whenever one was removed
    cut: frozenset[tuple[str, str]] = frozenset()  # (message type, order) of acks with which a connection was cut


class Struck(Protocol):
    """Queues that faults between worker and server can strike."""

    def cut_at_ack(self, message_type: str, order: str) -> None:
        """The connection by which the next ack of this message is sent will break, before the server sees the ack."""
        ...

    def redrive(self, number: int) -> str:
        """A message that was processed is in its queue again, under another id of the queue's; whose it is.

        Of all that were processed, the one of this number, counted around. '' where the queue has not done so.
        """
        ...


class Queues(Struck, Protocol):
    """The queues of one variant, which were empty when it began."""

    @property
    def address(self) -> str:
        """Where a worker finds their server."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """Message type -> the queue that its messages go to."""
        ...

    def waiting(self) -> Mapping[str, int] | None:
        """How many messages each queue holds, in flight and delayed ones too; None while its server does not answer.

        Asked several times a second: a server that was just killed must not hold the answer up for long.
        """
        ...

    def passed(self) -> Passed:
        """What passed so far. Asked once, when the run is quiet."""
        ...


class NeverStruck:
    """Of queues on which a fault between worker and server cannot happen: the schedule has none."""

    def cut_at_ack(self, message_type: str, order: str) -> None:
        raise AssertionError(f"no connection of {message_type} of {order} can be cut here")

    def redrive(self, number: int) -> str:
        raise AssertionError(f"no message can be redriven here, the one of number {number} neither")


class RunningBroker(Protocol):
    """A broker's server while a proof runs."""

    @property
    def server(self) -> Server:
        """The one that a server fault kills."""
        ...

    @property
    def fault(self) -> ServerFault:
        """The fault that strikes it."""
        ...

    @property
    def recovery_seconds(self) -> float:
        """Nothing may be delivered for so long after a restart of it, in addition to the lease."""
        ...

    def make_queues(self, variant: str) -> Queues:
        """Fresh ones, and a witness of what will pass them."""
        ...


class Broker(Protocol):
    """One kind of queue."""

    def check(self) -> None:
        """Raises `UsageError`, with what to install, when it cannot be started here."""
        ...

    def start(self, folder: Path, postgres_settings: Mapping[str, str]) -> AbstractContextManager[RunningBroker]:
        """Its server runs, with its files in `folder`; it is gone afterwards.

        `postgres_settings`: of a server that is a Postgres.
        """
        ...

    def warm_up(self, setting: Setting) -> None:
        """What every worker would import is imported: once, before any fork. No thread and no connection is left of it."""
        ...

    def source(self, setting: Setting, message_type: str, member: str) -> Source:
        """In a worker: where its messages of this type come from. `member`: its name, also after a restart."""
        ...

    def sink(self, address: str, queues: Mapping[str, str]) -> Sink:
        """In a worker: where each message type goes."""
        ...
