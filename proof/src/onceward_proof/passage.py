"""The worker's end of the line to the controller, and the Source and Sink that report every passage of a boundary.

Every variant gets the same ones. A passage is either noted (no answer is waited for) or, where the schedule has armed it,
asked: then the worker waits for what the controller decides. While it waits it may be killed; that is the point.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onceward.message import Message
from onceward.transport import Delivery, Outcome, Received, Settlement, Sink, Source
from onceward_proof.around import SinkAround, SourceAround
from onceward_proof.faults import BY_NAME
from onceward_proof.schedule import Schedule

Place = tuple[str, str, str]  # boundary, message type, order


def armed_places(schedule: Schedule) -> dict[Place, str]:
    """Where aimed faults wait: place -> fault."""
    return {(BY_NAME[a.fault].boundary, BY_NAME[a.fault].message_type, a.order): a.fault for a in schedule.aimed}


class Everywhere(frozenset[Place]):
    """Armed everywhere: of a schedule that goes on, only the controller knows where a fault waits, and is asked."""

    def __contains__(self, _: object) -> bool:
        return True


class Line:
    """One worker's connection to the controller: a line of JSON each way. Usable from any thread of the worker."""

    def __init__(self, path: Path, who: dict[str, Any], armed: frozenset[Place]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()
        self._armed = armed
        self.note(hello=who)

    def note(self, **what: Any) -> None:
        with self._lock:
            self._send(what)

    def ask(self, **what: Any) -> Any:
        """The controller's answer to this; it may let one wait."""
        with self._lock:
            self._send(what | {"ask": True})
            return self._answer()

    def pass_by(self, boundary: str, message_type: str, order: str) -> str:
        """Report a passage; what the controller wants done: go, drop or lose. May never return."""
        what = {"at": boundary, "type": message_type, "order": order}
        with self._lock:
            if (boundary, message_type, order) not in self._armed:
                self._send(what)
                return "go"
            self._send(what | {"ask": True})
            return str(self._answer()["do"])

    def _answer(self) -> Any:
        answer = self._answers.readline()
        if not answer:
            raise SystemExit("the controller is gone")
        return json.loads(answer)

    def _send(self, what: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(what).encode() + b"\n")


class WatchedSource(SourceAround):
    """A source whose deliveries are counted and whose acks pass a boundary."""

    def __init__(self, inner: Source, line: Line) -> None:
        super().__init__(inner)
        self._line = line
        self._busy = False
        self._extended: set[str] = set()

    def receive(self, limit: int, wait_seconds: float) -> Received:
        if self._busy:
            self._line.note(idle=True)
            self._busy = False
        received = super().receive(limit, wait_seconds)
        for delivery in received.deliveries:
            self._busy = True
            self._line.note(received=delivery.headers.get("id", ""), type=_type(delivery), order=_order(delivery))
        return received

    def settle_one(self, delivery: Delivery, settlement: Settlement) -> Outcome:
        if settlement.action != "ack":
            self._line.note(settled=settlement.action, type=_type(delivery), order=_order(delivery))
            return super().settle_one(delivery, settlement)
        if self._line.pass_by("ack.before", _type(delivery), _order(delivery)) == "lose":
            return Outcome.LOST
        outcome = super().settle_one(delivery, settlement)
        self._line.pass_by("ack.after", _type(delivery), _order(delivery))
        return outcome

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        for delivery in deliveries:
            if delivery.id not in self._extended:
                self._extended.add(delivery.id)
                self._line.note(extended=True, order=_order(delivery))
        return super().extend(deliveries, seconds)


class WatchedSink(SinkAround):
    """A sink whose publishes pass a boundary before and after."""

    def __init__(self, inner: Sink, line: Line) -> None:
        super().__init__(inner)
        self._line = line

    def before(self, message: Message) -> str:
        return self._line.pass_by("publish.before", message.type, str(message.subject))

    def after(self, message: Message) -> str:
        return self._line.pass_by("publish.after", message.type, str(message.subject))


def _type(delivery: Delivery) -> str:
    return delivery.headers.get("type", "")


def _order(delivery: Delivery) -> str:
    return delivery.headers.get("subject", "")
