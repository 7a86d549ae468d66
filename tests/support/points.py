"""Listeners that tests hang on the named points: one records, one holds, one kills."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from tests.support.waiting import SECONDS_MAX, until

from onceward.events import POINTS, Event


class Recorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, point: str) -> list[Event]:
        _check(point)
        return [event for event in list(self.events) if event.point == point]

    def count(self, point: str) -> int:
        return len(self.of(point))

    @property
    def points(self) -> list[str]:
        return [event.point for event in list(self.events)]

    def wait_for(self, point: str, many: int = 1) -> None:
        until(lambda: self.count(point) >= many, f"{point} x {many} (so far: {self.points[-20:]})")


class Gate:
    """Holds whoever comes to `point` (the first `holds` times) until it is released."""

    def __init__(self, point: str, *, holds: int = 1, message_id: str | None = None) -> None:
        _check(point)
        self._point = point
        self._left = holds
        self._message_id = message_id
        self._lock = threading.Lock()
        self._reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, event: Event) -> None:
        if event.point != self._point or self._message_id not in (None, event.message_id):
            return
        with self._lock:
            self._left -= 1
            if self._left < 0:
                return
        self._reached.set()
        self._released.wait(SECONDS_MAX)

    def wait(self) -> None:
        """Somebody stands at the point."""
        assert self._reached.wait(SECONDS_MAX), f"nobody came to {self._point}"

    def release(self) -> None:
        self._released.set()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class At:
    """Does something, once, in the thread that comes to `point`."""

    def __init__(self, point: str, do: Callable[[], object]) -> None:
        _check(point)
        self._point = point
        self._do: Callable[[], object] | None = do

    def __call__(self, event: Event) -> None:
        if event.point == self._point and self._do is not None:
            do, self._do = self._do, None
            do()


class Killer:
    """Ends this process by SIGKILL at the n-th passage of `point`: nothing is flushed, closed or rolled back by us."""

    def __init__(self, point: str, passage: int = 1) -> None:
        _check(point)
        self._point = point
        self._left = passage

    def __call__(self, event: Event) -> None:
        if event.point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _check(point: str) -> None:
    assert point in POINTS, f"{point} is no named point"
