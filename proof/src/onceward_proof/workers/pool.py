"""Several threads in one process, for the variants that bring no loop of their own.

They hold as many deliveries at once as the library's loop does: `threads` in hand, and `prefetch` that wait, as a client
library keeps them. What the library adds, and they lack, is a lease that is kept while a delivery waits.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from onceward.transport import Delivery, Outcome, Received, Settlement, release
from onceward_proof.workers.watched import WatchedSource
from onceward_proof.workers.worker import Worker

PAUSE_SECONDS: Final = 0.05


class Prefetched:
    """What one process has received for all its threads, and none of them has begun yet."""

    def __init__(self, source: WatchedSource, prefetch: int, visibility_seconds: float) -> None:
        self.source = source
        self._prefetch = prefetch
        # Where there is no lease, what waits here stays ours until the queue says that it has taken it away.
        self._has_lease = source.traits.lease_seconds is not None
        self._visibility_seconds = visibility_seconds if self._has_lease else math.inf
        self._waiting: deque[Delivery] = deque()
        self._hidden_until = 0.0  # those that wait
        self._lock = threading.Lock()

    def take(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        """At most one. The threads that find nothing wait for the one that asks the queue."""
        with self._lock:
            # What waited for too long is delivered again already. Begun all the same, on a slow machine, it would be the
            # reason for the next to wait too long, without end.
            while self._waiting and time.monotonic() > self._hidden_until:
                self.source.handled(self._waiting.popleft())
            if self._waiting and not self._has_lease:
                self._receive(0, 0.0)
            if not self._waiting:
                self._hidden_until = time.monotonic() + self._visibility_seconds
                self._waiting += self._receive(limit + self._prefetch, wait_seconds)
            return [self._waiting.popleft()] if self._waiting else []

    def _receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        """New ones. Of those that wait, what the queue has taken away is given up."""
        received = self.source.receive(limit, wait_seconds)
        for delivery in received.lost:
            if delivery in self._waiting:
                self._waiting.remove(delivery)
                self.source.handled(delivery)
        return received.deliveries


class ThreadSource:
    """The process's deliveries, as one of its threads takes them: what it had is handled when it asks for more."""

    def __init__(self, prefetched: Prefetched) -> None:
        self.name = prefetched.source.name
        self.traits = prefetched.source.traits
        self._prefetched = prefetched
        self._source = prefetched.source
        self._in_hand: Sequence[Delivery] = ()
        self._settled: list[Delivery] = []  # or tried to

    def receive(self, limit: int, wait_seconds: float) -> Received:
        # Also what it failed at, and what it had acknowledged before its work was done.
        in_hand, self._in_hand = self._in_hand, ()
        for delivery in in_hand:
            self._leave(delivery)
        self._in_hand = self._prefetched.take(limit, wait_seconds)
        return Received(self._in_hand)

    def _leave(self, delivery: Delivery) -> None:
        """The thread is through with it, and what it has not settled comes again."""
        self._source.handled(delivery)
        # A queue with leases does that by itself. Without one, the delivery would be ours until the process ends.
        if self.traits.lease_seconds is None and delivery not in self._settled:
            self._source.settle([(delivery, release(0.0))])
        self._settled.clear()

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        self._settled += [delivery for delivery, _ in entries]
        return self._source.settle(entries)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        return self._source.extend(deliveries, seconds)

    def close(self) -> None:
        """The source is the process's."""


def consume_in_threads(worker: Worker, message_type: str, consume: Callable[[ThreadSource], None]) -> None:
    """`consume` runs in every thread of the setting.

    Where there is one, what it raises ends the process; where there are several, the thread begins anew, and the delivery
    that it had is left to the queue.
    """
    setting = worker.setting
    prefetched = Prefetched(worker.source(message_type), setting.prefetch, setting.visibility_seconds)
    if setting.threads == 1:
        consume(ThreadSource(prefetched))
        return
    threads = [
        threading.Thread(target=_consume_for_ever, args=(consume, ThreadSource(prefetched))) for _ in range(setting.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _consume_for_ever(consume: Callable[[ThreadSource], None], source: ThreadSource) -> None:
    while True:
        try:
            consume(source)
        except Exception:  # noqa: BLE001 - in the log, and the thread begins anew, as in a pool
            # One failed call must not end the other deliveries of this process: that would be a crash of our own making.
            traceback.print_exc()
            time.sleep(PAUSE_SECONDS)
