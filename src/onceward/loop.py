"""The loop around a consumer: receive, deliver, settle. A retryable shell: it decides nothing."""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import psycopg

from onceward.consumer import Consumer, OpenConsumer
from onceward.database import DatabaseSource
from onceward.errors import TransportError, UsageError
from onceward.events import Listener
from onceward.transport import ACK, LEAVE, Delivery, Outcome, Settlement, Source, release
from onceward.upkeep import UpkeepThread

logger = logging.getLogger("onceward")
RECEIVE_WAIT_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 5.0
LOOK_SECONDS: Final = 0.25  # how soon a stop is seen while there is no room


def run(
    consumer: Consumer,
    *,
    source: Callable[[], Source],
    database: DatabaseSource,
    threads: int = 8,
    prefetch: int | None = None,
    drain_seconds: float = 20.0,
    upkeep: bool = True,
    listeners: Sequence[Listener] = (),
    stop: threading.Event | None = None,
) -> None:
    """Consume until SIGTERM or SIGINT (or `stop` is set), then drain: what runs may end, what only waits is given back.

    `source` is a factory, called once in this process. `prefetch` deliveries (default: as many as threads) wait in this
    process, their leases kept. `upkeep=False`: somebody else makes and drops the partitions. Raises at once what cannot
    work: no handler, schema not migrated, rights missing, window too short, pool too small, database not answering.

    Crash anywhere: the queue delivers again what was not settled; the inbox turns away what was finished.
    """
    if threads < 1 or (prefetch is not None and prefetch < 0):
        raise UsageError("threads must be at least 1, prefetch at least 0")
    opened_source = source()
    try:
        with consumer.open(database, threads=threads, listeners=listeners, source=opened_source, upkeep=upkeep) as opened:
            upkeeping = UpkeepThread(opened.database, opened.runtime.inbox.seen, upkeep=upkeep)
            loop = Loop(opened, opened_source, threads, threads if prefetch is None else prefetch, drain_seconds)
            try:
                with _signals(loop.stop, stop):
                    loop.run()
            finally:
                upkeeping.stop()
    finally:
        opened_source.close()


@contextmanager
def _signals(stop: Callable[[], None], event: threading.Event | None) -> Iterator[None]:
    """SIGTERM and SIGINT ask for the drain, where this is the main thread; `event` does so anywhere."""
    watcher = threading.Thread(target=_when_set, args=(event, stop), daemon=True)
    if event is not None:
        watcher.start()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _when_set(event: threading.Event | None, then: Callable[[], None]) -> None:
    if event is not None and event.wait():
        then()


class Loop:
    """One source, one open consumer, some threads."""

    def __init__(self, opened: OpenConsumer, source: Source, threads: int, prefetch: int, drain_seconds: float) -> None:
        self._opened = opened
        self._source = source
        self._threads = threads
        self._room = threads + prefetch
        self._drain_seconds = drain_seconds
        self._waiting: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._in_hand = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._settler = Settler(opened, source)
        self._database_down = threading.Event()

    def stop(self) -> None:
        """Receive nothing more; safe to call from a signal handler and more than once."""
        self._stopping.set()

    def run(self) -> None:
        workers = [threading.Thread(target=self._work, name=f"onceward-{n}", daemon=True) for n in range(self._threads)]
        for worker in workers:
            worker.start()
        try:
            self._receive_until_stopped()
        finally:
            self._drain(workers)

    # ---- receiving, on this thread -----------------------------------------------------------------------------------

    def _receive_until_stopped(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                if self._database_down.is_set():
                    self._wait_for_database()
                self._receive()
                failures = 0
            except (TransportError, psycopg.Error, OSError) as error:
                failures += 1
                pause = min(0.05 * 2**failures, PAUSE_SECONDS_MAX)
                logger.warning("nothing can be received, tried again in %.1f s: %s", pause, error)
                self._stopping.wait(pause)

    def _receive(self) -> None:
        room = self._wait_for_room()
        received = self._source.receive(min(room, self._source.traits.receive_max), RECEIVE_WAIT_SECONDS if room else 0)
        if received.lost:
            self._opened.keeper.lost(received.lost)
        if received.deliveries:
            self._opened.keeper.received(received.deliveries)
            with self._changed:
                self._in_hand += len(received.deliveries)
            for delivery in received.deliveries:
                self._waiting.put(delivery)

    def _wait_for_room(self) -> int:
        """Room for more; 0 when there is none for so long that the source must be called anyway.

        At least half of the prefetch, so that a busy loop receives in batches and not one by one.
        """
        most = self._source.traits.poll_seconds_max
        until = math.inf if most is None else time.monotonic() + most / 3
        wanted = max(1, (self._room - self._threads) // 2)
        with self._changed:
            # In short waits: a stop comes from a signal handler, which must not take this lock, and so wakes nobody.
            while self._room - self._in_hand < wanted and not self._stopping.is_set() and time.monotonic() < until:
                self._changed.wait(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
            return 0 if self._stopping.is_set() else max(0, self._room - self._in_hand)

    def _wait_for_database(self) -> None:
        """Stop receiving while the database is away: a delivery that cannot be taken only wears out its message."""
        with self._opened.database.connection() as conn:
            conn.execute("SELECT 1")
        self._opened.database.forget_broken()
        self._database_down.clear()

    # ---- delivering, on the worker threads ---------------------------------------------------------------------------

    def _work(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            settlement = self._deliver(delivery)
            self._settler.settle(delivery, settlement)
            with self._changed:
                self._in_hand -= 1
                self._changed.notify_all()

    def _deliver(self, delivery: Delivery) -> Settlement:
        if self._stopping.is_set():
            return release(0)
        try:
            settlement = self._opened.deliver(delivery)
        except BaseException:
            logger.exception("delivery %s could not be handled; it stays in its queue", delivery.id)
            settlement = LEAVE
        if settlement is LEAVE:
            self._database_down.set()  # perhaps: the receiving thread asks the database before it goes on
        return settlement

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _drain(self, workers: list[threading.Thread]) -> None:
        """What waits is given back at once; what runs may end, for `drain_seconds`."""
        deadline = time.monotonic() + self._drain_seconds
        waiting: list[Delivery] = []
        with suppress(queue.Empty):
            while (delivery := self._waiting.get_nowait()) is not None:
                waiting.append(delivery)
        for _ in workers:
            self._waiting.put(None)
        giving_back = threading.Thread(target=self._give_back, args=(waiting,), name="onceward-drain", daemon=True)
        giving_back.start()
        for thread in (giving_back, *workers):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        left = sum(worker.is_alive() for worker in workers)
        if left:
            logger.warning("%d handlers still run after %.0f s: their messages come again", left, self._drain_seconds)

    def _give_back(self, waiting: list[Delivery]) -> None:
        for delivery in waiting:
            self._settler.settle(delivery, release(0))


class Settler:
    """Settles from any thread; entries that come while one call is under way go together in the next."""

    def __init__(self, opened: OpenConsumer, source: Source) -> None:
        self._opened = opened
        self._source = source
        self._pending: list[tuple[Delivery, Settlement]] = []
        self._lock = threading.Lock()
        self._busy = False

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        with self._lock:
            self._pending.append((delivery, settlement))
            if self._busy:
                return  # the thread that is settling takes this one along
            self._busy = True
        while True:
            with self._lock:
                entries, self._pending = self._pending, []
                if not entries:
                    self._busy = False
                    return
            self._settle(entries)

    def _settle(self, entries: list[tuple[Delivery, Settlement]]) -> None:
        deliveries = [delivery for delivery, _ in entries]
        self._opened.keeper.drop(deliveries)
        self._emit("consumer.settling", entries)
        told = [entry for entry in entries if entry[1].action != "leave"]
        try:
            outcomes = self._source.settle(told) if told else []
        except Exception as error:  # noqa: BLE001 - unsettled is delivered again, and the inbox knows what is finished
            logger.warning("%d deliveries could not be settled, they come again: %s", len(told), error)
            return
        lost = sum(outcome is Outcome.LOST for outcome in outcomes)
        if lost:
            logger.info("%d of %d deliveries were not ours any more when they were settled", lost, len(told))
        self._emit("consumer.settled", told)

    def _emit(self, point: str, entries: list[tuple[Delivery, Settlement]]) -> None:
        listeners = self._opened.listeners
        if listeners:
            for delivery, settlement in entries:
                message_id = delivery.headers.get("id", "")
                listeners.emit(point, self._opened.consumer.name, message_id, action=settlement.action)


def exit_now(code: int = 0) -> None:
    """End this process although handler threads may still run: nothing of theirs can be half done."""
    logging.shutdown()
    os._exit(code)


__all__ = ["ACK", "Loop", "Settler", "exit_now", "run"]
