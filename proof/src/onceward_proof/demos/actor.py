"""A worker process as its director sees it: what it told, where it waits, and what can be done to it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any, Final

from onceward.errors import OncewardError

EXPECT_SECONDS_MAX: Final = 12.0
Told = dict[str, Any]


class Missed(OncewardError):
    """What the story needs next did not happen."""


class Actor:
    """One worker process. Only its own pid is ever signalled."""

    def __init__(self, name: str, pid: int, line: socket.socket) -> None:
        self.name = name
        self.pid = pid
        self.told: list[Told] = []
        self._line = line
        self._pending: list[Told] = []
        self._bytes = b""
        self._over = False
        self._reaped = False

    # ---- listening ---------------------------------------------------------------------------------------------------

    def expect(self, *events: str, seconds: float = EXPECT_SECONDS_MAX) -> Told:
        """The next of these events that it tells; what it tells before is kept in `told`. Raises `Missed`."""
        deadline = time.monotonic() + seconds
        while True:
            while self._pending:
                told = self._pending.pop(0)
                self.told.append(told)
                if told["event"] in events:
                    return told
            if self._over or not self._read(deadline - time.monotonic()):
                raise Missed(f"{self.name} never came to {' or '.join(events)}; it told {self._story()}")

    def count(self, event: str) -> int:
        """How often it has told this so far."""
        while self._read(0.0):
            pass
        self.told += self._pending
        self._pending.clear()
        return sum(told["event"] == event for told in self.told)

    def count_redelivered(self) -> int:
        """How many of the deliveries that it received so far were not the first of their message."""
        self.count("received")
        return sum(told["event"] == "received" and told["count"] > 1 for told in self.told)

    def await_count(self, event: str, times: int) -> None:
        """Until it has told this so often."""
        while self.count(event) < times:
            self.expect(event)

    def _read(self, seconds: float) -> bool:
        """More was heard within `seconds`."""
        if self._over or not select.select([self._line], [], [], max(0.0, seconds))[0]:
            return False
        data = self._line.recv(65536)
        self._over = not data
        *lines, self._bytes = (self._bytes + data).split(b"\n")
        self._pending += [json.loads(line) for line in lines]
        return bool(data)

    def _story(self) -> str:
        return ", ".join(told["event"] for told in self.told[-6:]) or "nothing"

    # ---- directing ---------------------------------------------------------------------------------------------------

    def go(self, do: str = "go") -> None:
        """Let it go on from the point where it waits; `do` says how."""
        self._line.sendall(json.dumps(do).encode() + b"\n")

    def kill(self) -> None:
        """SIGKILL, now; it is gone when this returns."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def finish(self) -> None:
        """It has ended by itself. Raises `Missed` when it does not, or failed."""
        self.expect("ended")
        if self._reap() != 0:
            raise Missed(f"{self.name} failed")

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        self.kill()
        self._line.close()
