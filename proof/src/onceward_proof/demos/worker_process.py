"""A worker process from the outside: what it reported, where it waits, and what can be done to it."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Final

from onceward.errors import OncewardError
from onceward_proof.prove.faults import Answer
from onceward_proof.workers.reports import Note, Reply, Report, Word

EXPECT_SECONDS_MAX: Final = 12.0


class Missed(OncewardError):
    """What the script needs next did not happen."""


class WorkerProcess:
    """One worker process. Only its own pid is ever signalled."""

    def __init__(self, name: str, pid: int, line: socket.socket) -> None:
        self.name = name
        self.pid = pid
        self._line = line
        self._reports: list[Report] = []
        self._seen = 0  # so many of them were expected, or passed over on the way to one that was
        self._bytes = b""
        self._is_over = False
        self._is_reaped = False

    def expect(self, *words: Word) -> Report:
        """The next report of these words. Raises `Missed`."""
        deadline = time.monotonic() + EXPECT_SECONDS_MAX
        while True:
            for report in self._reports[self._seen :]:
                self._seen += 1
                if report.word in words:
                    return report
            # What it reported before its end was read above: only now is it too late.
            if self._is_over or not self._read(deadline - time.monotonic()):
                latest = ", ".join(report.word for report in self._reports[-6:]) or "nothing"
                raise Missed(f"{self.name} never came to {' or '.join(words)}; it reported {latest}")

    def count(self, word: Word) -> int:
        """How often it has reported this so far."""
        return sum(report.word is word for report in self._all_reports())

    def count_redelivered(self) -> int:
        """How many of the deliveries that it received so far were not the first of their message."""
        received = (report for report in self._all_reports() if report.word is Note.RECEIVED)
        return sum((report.count or 0) > 1 for report in received)

    def await_count(self, word: Word, times: int) -> None:
        """Until it has reported this so often."""
        while self.count(word) < times:
            self.expect(word)

    def _all_reports(self) -> list[Report]:
        while self._read(0.0):
            pass
        self._seen = len(self._reports)
        return self._reports

    def _read(self, seconds: float) -> bool:
        """More was heard within `seconds`."""
        if self._is_over or not select.select([self._line], [], [], max(0.0, seconds))[0]:
            return False
        chunk = self._line.recv(65536)
        self._is_over = not chunk
        *lines, self._bytes = (self._bytes + chunk).split(b"\n")
        self._reports += [Report.decode(line) for line in lines]
        return bool(chunk)

    def go(self, answer: Answer = Answer.GO) -> None:
        """Let it go on from where it waits; `answer` says how."""
        self._line.sendall(Reply(answer=answer).encode())

    def kill(self) -> None:
        """SIGKILL, now; the process has ended when this returns."""
        if not self._is_reaped:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """It runs again, and goes on from where it waits."""
        os.kill(self.pid, signal.SIGCONT)
        self.go()

    def finish(self) -> None:
        """It has ended by itself. Raises `Missed` when it does not, or failed."""
        self.expect(Note.ENDED)
        if self._reap() != 0:
            raise Missed(f"{self.name} failed")

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self._is_reaped = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        self.kill()
        self._line.close()
