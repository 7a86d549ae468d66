"""The worker's end of its line to the controller, or to the demonstration that it is a part of.

Every boundary is reported. Where a fault (or a demonstration) waits, the worker waits for the answer, and while it waits it
may be killed or stopped: that is the point.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import replace
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
    return lambda report: report.place in armed


class Line:
    """One worker's connection to what controls it. Usable from any thread of the worker."""

    def __init__(self, connection: socket.socket, waits: Waits) -> None:
        self._connection = connection
        self._replies = connection.makefile("r", encoding="utf-8")
        # Two locks: a heartbeat's note must get through while the worker's own thread waits for an answer.
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._waits = waits

    def report(self, report: Report) -> Answer:
        """Report it; where somebody waits for it, do as one is told. May never return."""
        if self._waits(report):
            return self.ask(report).answer
        self._send(report)
        return Answer.GO

    def ask(self, report: Report) -> Reply:
        """What the other end replies; it may let one wait."""
        with self._asking:
            self._send(replace(report, ask=1))
            reply = self._replies.readline()
        if not reply:
            raise SystemExit("the controller has ended")
        return Reply.decode(reply)

    def _send(self, report: Report) -> None:
        with self._sending:
            self._connection.sendall(report.encode())
