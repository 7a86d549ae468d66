"""The loop around a consumer: receive, deliver, settle. A retryable shell: it decides nothing."""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg

from onceward.consumer import Consumer, OpenConsumer
from onceward.database import DatabaseSource
from onceward.errors import TransportError, UsageError
from onceward.events import Listener, interrupts
from onceward.health import Health
from onceward.partitions import UpkeepThread
from onceward.signals import stop_on_signals
from onceward.transport import ACK, LEAVE, Delivery, Outcome, Settlement, Source, release

logger = logging.getLogger("onceward")
RECEIVE_WAIT_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 5.0
LOOK_SECONDS: Final = 0.25  # how soon a stop is seen while there is no room
SOURCE_PARTS: Final = ("name", "traits", "receive", "settle", "extend", "close")


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
    health: Health | None = None,
) -> None:
    """Consume until SIGTERM or SIGINT (or `stop` is set), then drain: what runs may end, what only waits is given back.

    `source` is a factory, called once in this process. `prefetch` deliveries (default: as many as threads) wait in this
    process, their leases kept. `upkeep=False`: somebody else makes and drops the partitions. `health` is given the marks of
    this loop (see `onceward.health`).

    Raises at once what cannot work: no handler, schema not migrated, rights missing, window too short, pool too small,
    database not answering. Later only a `UsageError` of the source or of `database` ends it, after the drain; whatever else
    they raise is logged, and they are asked again.

    Crash anywhere: the queue delivers again what was not settled; the inbox turns away what was finished.
    """
    _check_limits(threads, prefetch, drain_seconds, stop)
    opened_source = _opened(source)
    try:
        with consumer.open(database, threads=threads, listeners=listeners, source=opened_source, upkeep=upkeep) as opened:
            upkeeping = UpkeepThread(opened.database, opened.runtime.inbox.seen, upkeep=upkeep)
            waiting_max = threads if prefetch is None else prefetch
            loop = Loop(opened, opened_source, threads, waiting_max, drain_seconds, health)
            try:
                with stop_on_signals(loop.stop, stop):
                    loop.run()
            finally:
                upkeeping.stop()
    finally:
        opened_source.close()


def _check_limits(threads: Any, prefetch: Any, drain_seconds: Any, stop: Any) -> None:
    for name, value, least in (("threads", threads, 1), ("prefetch", 0 if prefetch is None else prefetch, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} is a whole number of at least {least}, not {value!r}")
    if not isinstance(drain_seconds, int | float) or isinstance(drain_seconds, bool):
        raise UsageError(f"drain_seconds is a number of seconds, not {drain_seconds!r}")
    if not 0 <= drain_seconds <= threading.TIMEOUT_MAX:
        raise UsageError(f"drain_seconds is from 0 (give up at once what still runs) on, and finite, not {drain_seconds!r}")
    if stop is not None and not isinstance(stop, threading.Event):
        raise UsageError(f"stop is a threading.Event, not a {type(stop).__name__}")


def _opened(source: Any) -> Source:
    """What the factory makes, if that can be a Source."""
    if not isinstance(source, type) and hasattr(source, "receive"):
        raise UsageError("source: pass a function that makes it, as in source=lambda: Source(...), not the Source itself")
    if not callable(source):
        raise UsageError(f"source: pass a function that makes a Source, not a {type(source).__name__}")
    made = source()
    missing = [part for part in SOURCE_PARTS if not hasattr(made, part)]
    if missing:
        kind = "None" if made is None else f"a {type(made).__name__}"
        raise UsageError(f"source: the function gave {kind}, which is not a Source: it has no {', '.join(missing)}")
    opened: Source = made
    return opened


class Loop:
    """One source, one open consumer, some threads."""

    def __init__(
        self,
        opened: OpenConsumer,
        source: Source,
        threads: int,
        prefetch: int,
        drain_seconds: float,
        health: Health | None = None,
    ) -> None:
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
        self._log = named(opened)
        self._watched = health is not None
        self._health = health or Health()

    def stop(self) -> None:
        """Receive nothing more; from any thread and more than once, but not from a signal handler (see `signals`)."""
        self._stopping.set()

    def run(self) -> None:
        workers = [threading.Thread(target=self._work, name=f"onceward-{n}", daemon=True) for n in range(self._threads)]
        for worker in workers:
            worker.start()
        try:
            self._receive_until_stopped()
        finally:
            self._health.drains(self._drain_seconds)
            self._drain(workers)

    # ---- receiving, on this thread -----------------------------------------------------------------------------------

    def _receive_until_stopped(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._health.turned()
            asked = "database" if self._must_ask_database() else "queue"
            try:
                if asked == "database":
                    self._ask_database()
                self._receive()
                failures = 0
            except UsageError:
                raise  # the code or the configuration is wrong: no try ever succeeds, and a person must see it
            except Exception as error:  # noqa: BLE001 - logged, and tried again
                # Whatever a client raises, and whatever `database` does: an outage of any length, or a defect of an adapter
                # that one message in a thousand brings out, must not end a consumer that the next try would serve.
                failures += 1
                self._pause(asked, failures, error)

    def _pause(self, asked: str, failures: int, error: Exception) -> None:
        if asked == "database":
            self._health.database_failed()
            self._database_down.set()
        else:
            self._health.queue_failed()
        pause = min(0.05 * 2 ** min(failures, 10), PAUSE_SECONDS_MAX)
        outage = isinstance(error, TransportError | psycopg.Error | OSError)
        self._log.warning(
            "nothing can be received: the %s failed, it is asked again in %.1f s: %s: %s",
            asked, pause, type(error).__name__, error,
            exc_info=None if outage or failures > 1 else error,
        )  # fmt: skip
        self._stopping.wait(pause)

    def _receive(self) -> None:
        room = self._wait_for_room()
        received = self._source.receive(min(room, self._source.traits.receive_max), RECEIVE_WAIT_SECONDS if room else 0)
        if received.lost:
            self._opened.keeper.lost(received.lost)
        self._health.queue_answered()
        if received.deliveries:
            self._opened.keeper.received(received.deliveries)
            self._count(len(received.deliveries))
            for delivery in received.deliveries:
                self._waiting.put(delivery)

    def _count(self, more: int) -> None:
        """So many more deliveries are in hand; fewer, if negative: then there is room."""
        with self._changed:
            self._in_hand += more
            self._health.in_hand = self._in_hand
            self._changed.notify_all()
        self._health.progressed()

    def _wait_for_room(self) -> int:
        """Room for more; 0 when there is none for so long that the source must be called anyway.

        At least half of the prefetch, so that a busy loop receives in batches and not one by one.
        """
        most = self._source.traits.poll_seconds_max
        until = math.inf if most is None else time.monotonic() + most / 3
        wanted = max(1, (self._room - self._threads) // 2)
        with self._changed:
            # In short waits: this is a turn of the loop, however long the handlers take, and a stop wakes nobody here.
            while self._room - self._in_hand < wanted and not self._stopping.is_set() and time.monotonic() < until:
                self._changed.wait(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
                self._health.turned()
            return 0 if self._stopping.is_set() else max(0, self._room - self._in_hand)

    def _must_ask_database(self) -> bool:
        """A delivery found it away, or whoever watches wants to know: an idle consumer asks it nothing else."""
        return self._database_down.is_set() or (self._watched and self._health.database_is_doubtful())

    def _ask_database(self) -> None:
        """Stop receiving while the database is away: a delivery that cannot be taken only wears out its message."""
        with self._opened.database.connection() as conn:
            conn.execute("SELECT 1")
        if self._database_down.is_set():
            self._opened.database.forget_broken()
            self._database_down.clear()
        self._health.database_answered()

    # ---- delivering, on the worker threads ---------------------------------------------------------------------------

    def _work(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            try:
                self._settler.settle(delivery, self._deliver(delivery))
            except BaseException:  # noqa: BLE001 - logged with its traceback
                # A worker outlives whatever happens: without workers this process would hold its messages and do nothing.
                self._log.exception(
                    "delivery %s could not be settled; it comes again when its lease has run out", delivery.id
                )
            finally:
                self._count(-1)

    def _deliver(self, delivery: Delivery) -> Settlement:
        if self._stopping.is_set():
            return release(0)
        try:
            settlement = self._opened.deliver(delivery)
        except BaseException:  # noqa: BLE001 - logged with its traceback, and left to redelivery
            self._log.exception("delivery %s could not be handled; it stays in its queue", delivery.id)
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
            self._log.warning("%d handlers still run after %.0f s: their messages come again", left, self._drain_seconds)

    def _give_back(self, waiting: list[Delivery]) -> None:
        for delivery in waiting:
            self._settler.settle(delivery, release(0))


def named(opened: OpenConsumer) -> logging.LoggerAdapter[logging.Logger]:
    """Our log, whose records say which consumer of the process they are about."""
    return logging.LoggerAdapter(logger, {"onceward": {"consumer": opened.consumer.name}})


class Settler:
    """Settles from any thread; entries that come while one call is under way go together in the next."""

    def __init__(self, opened: OpenConsumer, source: Source) -> None:
        self._opened = opened
        self._source = source
        self._log = named(opened)
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
            self._settle_or_say(entries)

    def _settle_or_say(self, entries: list[tuple[Delivery, Settlement]]) -> None:
        """Whatever goes wrong with these is said, and the next are settled: nobody else would ever do it."""
        try:
            self._settle(entries)
        except BaseException as error:
            self._log.exception(
                "%d deliveries could not be settled; they come again when their lease has run out", len(entries)
            )
            if interrupts(error):
                with self._lock:
                    self._busy = False
                raise

    def _settle(self, entries: list[tuple[Delivery, Settlement]]) -> None:
        self._opened.keeper.drop([delivery for delivery, _ in entries])
        self._emit("consumer.settling", entries)
        told = [entry for entry in entries if entry[1].action != "leave"]
        if not told:
            return
        try:
            outcomes = self._source.settle(told)
        except Exception as error:  # noqa: BLE001 - unsettled is delivered again, and the inbox knows what is finished
            self._log.warning(
                "%d deliveries could not be settled, they come again: %s: %s", len(told), type(error).__name__, error
            )
            return
        if wrong := _wrong(outcomes, len(told)):
            self._log.error(
                "the source's settle gave %s for %d deliveries, not one Outcome each; what it did not settle comes again",
                wrong, len(told),
            )  # fmt: skip
            return
        lost = sum(outcome is Outcome.LOST for outcome in outcomes)
        if lost:
            self._log.info("%d of %d deliveries were not ours any more when they were settled", lost, len(told))
        self._emit("consumer.settled", told)

    def _emit(self, point: str, entries: list[tuple[Delivery, Settlement]]) -> None:
        listeners = self._opened.listeners
        if listeners:
            for delivery, settlement in entries:
                message_id = delivery.headers.get("id", "")
                listeners.emit(point, self._opened.consumer.name, message_id, action=settlement.action)


def _wrong(outcomes: Any, wanted: int) -> str:
    """What is wrong with an answer of `settle`; empty: nothing."""
    if not isinstance(outcomes, Sequence) or isinstance(outcomes, str):
        return "None" if outcomes is None else f"a {type(outcomes).__name__}"
    strange = [outcome for outcome in outcomes if not isinstance(outcome, Outcome)]
    if strange:
        return f"a {type(strange[0]).__name__}"
    return "" if len(outcomes) == wanted else f"{len(outcomes)} outcomes"


def exit_now(code: int = 0) -> None:
    """End this process although handler threads may still run: nothing of theirs can be half done."""
    logging.shutdown()
    os._exit(code)


__all__ = ["ACK", "Loop", "Settler", "exit_now", "run"]
