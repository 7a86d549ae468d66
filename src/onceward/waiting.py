"""What waits in this process for a thread: each order key in a line of its own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from onceward.transport import Delivery


class Waiting:
    """The deliveries that wait for a thread.

    Those of one order key stand in a line: the next is given out only when the one before it is settled.
    """

    def __init__(self) -> None:
        self._ready: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        # A key is here while one of its deliveries is ready or in hand; in its line are those behind that one.
        self._lines: dict[str, deque[Delivery]] = {}
        # Keys of which something went back while a receive was under way: the queue may have given what comes after it,
        # before it was told.
        self._went_back: set[str] = set()
        self._lock = threading.Lock()

    def begin_receive(self) -> None:
        """A receive begins: what went back before it is known to the queue."""
        with self._lock:
            self._went_back.clear()

    def put(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """These wait, in this order; returns those that may not: they would overtake what went back."""
        overtaking: list[Delivery] = []
        with self._lock:
            for delivery in deliveries:
                if delivery.order_key in self._went_back:
                    overtaking.append(delivery)
                    continue
                line = None if delivery.order_key is None else self._lines.get(delivery.order_key)
                if line is not None:
                    line.append(delivery)
                    continue
                if delivery.order_key is not None:
                    self._lines[delivery.order_key] = deque()
                self._ready.put(delivery)
        return overtaking

    def get(self) -> Delivery | None:
        """The next delivery, once there is one; None: this thread is to end."""
        return self._ready.get()

    def go_on(self, order_key: str | None) -> None:
        """The one in hand is done: the next of its line is ready."""
        if order_key is None:
            return
        with self._lock:
            line = self._lines.get(order_key)
            if line:
                self._ready.put(line.popleft())
            else:
                self._lines.pop(order_key, None)

    def take_behind(self, order_key: str) -> list[Delivery]:
        """All that wait behind the one in hand; if nobody does, the line is closed."""
        with self._lock:
            behind = list(self._lines.get(order_key, ()))
            if behind:
                self._lines[order_key].clear()
            else:
                self._lines.pop(order_key, None)
                self._went_back.add(order_key)
            return behind

    def empty(self) -> list[Delivery]:
        """All that wait, each line in its order; none of them waits any more."""
        waiting: list[Delivery] = []
        with self._lock:
            with suppress(queue.Empty):
                while (delivery := self._ready.get_nowait()) is not None:
                    waiting.append(delivery)
            for line in self._lines.values():
                waiting.extend(line)
                line.clear()
        return waiting

    def end(self, threads: int) -> None:
        """So many threads are told to end, after what waits."""
        for _ in range(threads):
            self._ready.put(None)
