"""The worker's end of its line to the controller, or to the demonstration that it is a part of.

Every boundary is reported. Where a fault (or a demonstration) waits, the worker waits for the answer, and while it waits it
may be killed or stopped: that is the point.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.prove.schedule import read_schedule
from onceward_proof.workers.reports import Reply, Report

Waits = Callable[[Report], bool]  # this report is answered


def waits_for(schedule_file: str) -> Waits:
    """Where the aimed faults of this schedule wait.

    Of a schedule without a file, only the controller knows: everywhere.
    """
    if not schedule_file:
        return lambda report: isinstance(report.word, Boundary)
    armed = frozenset(read_schedule(Path(schedule_file)).armed())
    # Where a fault waits behind an ack, the controller is asked before it, too: while that ack is under way, it keeps every
    # other kill from the process. An ack that nobody saw pass would take the passage behind it away for ever.
    before = {place._replace(boundary=Boundary.ACK_BEFORE) for place in armed if place.boundary is Boundary.ACK_AFTER}
    places = armed | before
    return lambda report: report.place in places


class Line:
    """One worker's connection to what controls it. Usable from any thread of the worker."""

    def __init__(self, connection: socket.socket, waits: Waits) -> None:
        self._connection = connection
        self._replies = connection.makefile("r", encoding="utf-8")
        # Two locks: a heartbeat's note must get through while other threads wait for their answers.
        self._sending = threading.Lock()
        self._replied = threading.Condition()
        self._asked: dict[int, Reply | None] = {}  # the open questions, oldest first, and what was replied
        self._is_reading = False
        self._numbers = count(1)
        self._waits = waits

    def report(self, report: Report) -> Answer:
        """Report it; where somebody waits for it, do as one is told. May never return."""
        if self._waits(report):
            return self.ask(report).answer
        self._send(report)
        return Answer.GO

    def ask(self, report: Report) -> Reply:
        """What the other end replies; it may let one wait."""
        with self._replied:
            number = next(self._numbers)
            self._asked[number] = None
        self._send(replace(report, ask=number))
        with self._replied:
            while (reply := self._asked[number]) is None:
                # One of the threads that wait reads for all of them: a thread of its own would outlive them.
                if self._is_reading:
                    self._replied.wait()
                else:
                    self._read_one()
            del self._asked[number]
        return reply

    def _read_one(self) -> None:
        """The next reply is with its question; one without a number answers the oldest."""
        self._is_reading = True
        self._replied.release()
        try:
            line = self._replies.readline()
        finally:
            self._replied.acquire()
            self._is_reading = False
            self._replied.notify_all()
        if not line:
            raise SystemExit("the controller has ended")
        reply = Reply.decode(line)
        self._asked[reply.ask or next(number for number, answered in self._asked.items() if answered is None)] = reply

    def _send(self, report: Report) -> None:
        with self._sending:
            self._connection.sendall(report.encode())
