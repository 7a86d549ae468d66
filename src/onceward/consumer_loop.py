"""The loop around a consumer: receive, deliver, settle.

A shell that tries again: it decides nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import psycopg

from onceward.consumer import Consumer, OpenConsumer
from onceward.database import Database, DatabaseSource
from onceward.day_partitions import UpkeepThread
from onceward.endpoints import SourceOrFactory, opened_source
from onceward.errors import TransportError, UsageError
from onceward.events import Listener, interrupts
from onceward.health import Health
from onceward.signals import stop_on_signals
from onceward.transport import LEAVE, Delivery, Outcome, Settlement, Source, release
from onceward.waiting import Waiting

logger = logging.getLogger("onceward")
RECEIVE_WAIT_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 5.0
LOOK_SECONDS: Final = 0.25  # how soon a stop is seen while there is no room
Entry = tuple[Delivery, Settlement]


def run(
    consumer: Consumer,
    *,
    source: SourceOrFactory,
    database: DatabaseSource,
    threads: int = 8,
    prefetch: int | None = None,
    drain_seconds: float = 20.0,
    upkeep: bool = True,
    allow_short_window: bool = False,
    listeners: Sequence[Listener] = (),
    stop: threading.Event | None = None,
    health: Health | None = None,
) -> None:
    """Consume until SIGTERM or SIGINT (or `stop` is set), then drain.

    A drain lets running handlers finish, for at most `drain_seconds`, and releases the deliveries that only wait.

    `source` is a Source, or a function that makes one in this process; what the function made is closed at the end.
    `prefetch` deliveries (default: as many as threads) wait in this process, their leases kept. `upkeep=False`: another
    process makes and drops the partitions. `allow_short_window=True`: it starts although the queue keeps messages for
    longer than the window, with a warning that says what can happen. `health` is given the marks of this loop (see
    `onceward.health`).

    Raises at once what cannot work: no handler, schema not migrated, rights missing, window too short, pool too small,
    database not answering. Later only a `UsageError` of the source or of `database` ends it, after the drain; whatever else
    they raise is logged, and they are asked again.

    Crash anywhere: the queue delivers again what was not settled; the inbox turns away what was finished.
    """
    limits = checked_limits(threads, prefetch, drain_seconds, stop)
    with (
        opened_loop(
            consumer, source, database, limits, listeners, health, upkeep=upkeep, allow_short_window=allow_short_window
        ) as loop,
        stop_on_signals(loop.stop, stop),
    ):
        loop.run()


class LoopLimits(NamedTuple):
    """How much one loop does at once, and how long its drain may take."""

    threads: int
    prefetch: int
    drain_seconds: float


@contextmanager
def opened_loop(
    consumer: Consumer,
    source: SourceOrFactory,
    database: DatabaseSource,
    limits: LoopLimits,
    listeners: Sequence[Listener],
    health: Health | None,
    *,
    upkeep: bool,
    allow_short_window: bool,
) -> Iterator[Loop]:
    """The loop of one consumer, ready to run, with its upkeep beside it."""
    with (
        opened_source(source) as made,
        consumer.open(
            database,
            threads=limits.threads,
            listeners=listeners,
            source=made,
            upkeep=upkeep,
            allow_short_window=allow_short_window,
        ) as opened,
    ):
        upkeep_thread = UpkeepThread(opened.database, opened.seen, upkeep=upkeep)
        try:
            yield Loop(opened, made, *limits, health)
        finally:
            upkeep_thread.stop()


def checked_limits(threads: Any, prefetch: Any, drain_seconds: Any, stop: Any) -> LoopLimits:
    """What `run` was given; raises `UsageError` for what cannot work."""
    for name, value, minimum in (("threads", threads, 1), ("prefetch", 0 if prefetch is None else prefetch, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UsageError(f"{name} is a whole number of at least {minimum}, not {value!r}")
    if not isinstance(drain_seconds, int | float) or isinstance(drain_seconds, bool):
        raise UsageError(f"drain_seconds is a number of seconds, not {drain_seconds!r}")
    if not 0 <= drain_seconds <= threading.TIMEOUT_MAX:
        raise UsageError(
            f"drain_seconds is at least 0 (which leaves running handlers behind at once), and finite, not {drain_seconds!r}"
        )
    if stop is not None and not isinstance(stop, threading.Event):
        raise UsageError(f"stop is a threading.Event, not a {type(stop).__name__}")
    return LoopLimits(threads, threads if prefetch is None else prefetch, drain_seconds)


class Loop:
    """Receives on the thread that runs it.

    `Workers` deliver and settle on threads of their own.
    """

    def __init__(
        self,
        opened: OpenConsumer,
        source: Source,
        threads: int,
        prefetch: int,
        drain_seconds: float,
        health: Health | None = None,
    ) -> None:
        self._source = source
        self._keeper = opened.keeper
        self._drain_seconds = drain_seconds
        self._health = health or Health()
        self._stopping = threading.Event()
        self._failures = 0  # calls of the queue or the database that failed in a row
        self._room = Room(threads, prefetch, self._health)
        self._check = DatabaseCheck(opened.database, self._health, watched=health is not None)
        self._workers = Workers(opened, Settler(opened, source), threads, self._room, self._check, self._stopping)
        self._log = named(opened)

    def stop(self) -> None:
        """Receive nothing more.

        It may be called from any thread and more than once, but not from a signal handler (see `signals`).
        """
        self._stopping.set()

    def run(self) -> None:
        """Receive until the stop, then drain."""
        self._workers.start()
        try:
            self._receive_until_stopped()
        finally:
            self._health.drains(self._drain_seconds)
            self._workers.drain(self._drain_seconds)

    def _receive_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._health.turned()
            # Receiving waits while the database is away: a delivery that cannot be taken would only wear out its message.
            if (
                self._try("the database check before receive", self._check.ask_if_due, self._check.failed)
                and self._try("receive", self._receive, self._health.queue_failed)
            ):  # fmt: skip
                self._failures = 0
            elif self._source.traits.poll_seconds_max is not None:
                self._keep_alive()

    def _keep_alive(self) -> None:
        """Nothing is received while the database is away, but a member of a group that does not poll is put out of it."""
        try:
            received = self._source.receive(0, 0)
        except Exception as error:  # noqa: BLE001 - the next turn tries again; its failure is what is logged
            self._log.debug("polling failed: %s", error)
            return
        if received.lost:
            self._keeper.lost(received.lost)

    def _try(self, name: str, call: Callable[[], None], mark_failed: Callable[[], None]) -> bool:
        """The call is done; or it failed, and the pause after it is over: False."""
        try:
            call()
        except UsageError:
            raise  # the code or the configuration is wrong: no try ever succeeds, and a person must see it
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            # Whatever a client or a caller's `database` raises: an outage of any length, or a defect of an adapter that
            # one message in a thousand brings out, must not end a consumer that the next try would serve.
            mark_failed()
            self._failures += 1
            self._pause(name, error)
            return False
        return True

    def _receive(self) -> None:
        traits = self._source.traits
        room = self._room.wait(traits.poll_seconds_max, self._stopping)
        self._workers.begin_receive()
        received = self._source.receive(min(room, traits.receive_max), RECEIVE_WAIT_SECONDS if room else 0)
        if received.lost:
            self._keeper.lost(received.lost)
        self._health.queue_answered()
        if received.deliveries:
            # Before they wait for a thread: a delivery that waits for long must not lapse meanwhile.
            self._keeper.received(received.deliveries)
            self._workers.submit(received.deliveries)

    def _pause(self, name: str, error: Exception) -> None:
        poll_seconds_max = self._source.traits.poll_seconds_max or math.inf
        seconds = min(0.05 * 2 ** min(self._failures, 10), PAUSE_SECONDS_MAX, poll_seconds_max / 3)
        # An outage is one line in the log; a defect also shows where it is, once.
        shows_trace = self._failures == 1 and not isinstance(error, TransportError | psycopg.Error | OSError)
        self._log.warning(
            "%s failed; retrying in %.1f s: %s: %s", name, seconds, type(error).__name__, error,
            exc_info=error if shows_trace else None,
        )  # fmt: skip
        self._stopping.wait(seconds)


class Room:
    """How many more deliveries this process may hold, in its threads and waiting for one."""

    def __init__(self, threads: int, prefetch: int, health: Health) -> None:
        self._held_max = threads + prefetch
        # A loop that asked for one delivery whenever one is settled would make a round trip for each. It waits until half
        # of the prefetch is free, and the other half keeps the threads busy while it receives.
        self._room_min = max(1, prefetch // 2)
        self._health = health
        self._held = 0
        self._changed = threading.Condition()

    def fill(self, deliveries: int) -> None:
        """So many more deliveries are held; fewer, if negative: then there is room."""
        with self._changed:
            self._held += deliveries
            self._health.in_hand = self._held
            self._changed.notify_all()
        self._health.progressed()

    def wait(self, poll_seconds_max: float | None, stopping: threading.Event) -> int:
        """Wait until there is room for a batch; returns the room.

        0 at the stop, or when there is none for so long that the source must be called anyway.
        """
        # A third of what the source allows: a call may come late, and the one after it still in time.
        deadline = math.inf if poll_seconds_max is None else time.monotonic() + poll_seconds_max / 3
        with self._changed:
            # In short waits: this is a turn of the loop, however long the handlers take, and a stop wakes no one here.
            while self._held_max - self._held < self._room_min and not stopping.is_set() and time.monotonic() < deadline:
                self._changed.wait(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
                self._health.turned()
            return 0 if stopping.is_set() else max(0, self._held_max - self._held)


class DatabaseCheck:
    """Whether the database answers.

    It is asked before a receive when a delivery found it away, or when a probe wants to know.
    """

    def __init__(self, database: Database, health: Health, *, watched: bool) -> None:
        self._database = database
        self._health = health
        self._watched = watched
        self._suspected = threading.Event()

    def suspect(self) -> None:
        """The database may be away: it is asked before anything more is received. From any thread."""
        self._suspected.set()

    def failed(self) -> None:
        """The database did not answer."""
        self._health.database_failed()
        self.suspect()

    def ask_if_due(self) -> None:
        """The database answers, or need not be asked.

        Raises what it, or the caller's `database`, raises when it does not answer.
        """
        # An idle consumer asks its database nothing. Only where a probe reads its health must an outage be noticed.
        if not self._suspected.is_set() and not (self._watched and self._health.database_is_doubtful()):
            return
        with self._database.connection() as conn:
            conn.execute("SELECT 1")
        if self._suspected.is_set():
            self._database.forget_broken()
            self._suspected.clear()
        self._health.database_answered()


class Workers:
    """The threads that deliver what was received and have it settled."""

    def __init__(
        self,
        opened: OpenConsumer,
        settler: Settler,
        threads: int,
        room: Room,
        check: DatabaseCheck,
        stopping: threading.Event,
    ) -> None:
        self._opened = opened
        self._settler = settler
        self._room = room
        self._check = check
        self._stopping = stopping
        self._waiting = Waiting()
        self._threads = [threading.Thread(target=self._work, name=f"onceward-{n}", daemon=True) for n in range(threads)]
        self._log = named(opened)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Each of these is delivered by the next thread that is free."""
        self._room.fill(len(deliveries))
        if overtaking := self._waiting.put(deliveries):
            self._settler.settle_now([(delivery, release(0)) for delivery in overtaking])
            self._room.fill(-len(overtaking))

    def begin_receive(self) -> None:
        """What was given back before now is known to the queue, which gives nothing that would overtake it."""
        self._waiting.begin_receive()

    def drain(self, seconds: float) -> None:
        """Deliveries that wait are released at once.

        Running handlers may finish, within `seconds`.
        """
        deadline = time.monotonic() + seconds
        waiting = self._waiting.empty()
        self._waiting.end(len(self._threads))
        # On a thread of its own: a source that does not answer must not take the handlers' time.
        releasing = threading.Thread(target=self._release, args=(waiting,), name="onceward-drain", daemon=True)
        releasing.start()
        for thread in (releasing, *self._threads):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        # A thread cannot be stopped. What is left runs on until the process ends; its commit is refused or stands whole.
        if running := sum(thread.is_alive() for thread in self._threads):
            self._log.warning(
                "%d handlers still run after %.0f s; their messages will be delivered again", running, seconds
            )

    def _work(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            try:
                self._settle(delivery, self._deliver(delivery))
            except BaseException:  # noqa: BLE001 - logged with its traceback
                # A worker outlives whatever happens: without workers this process would hold its messages and do nothing.
                self._log.exception(
                    "settling delivery %s failed; it will be delivered again when its lease has run out", delivery.id
                )
            finally:
                self._room.fill(-1)

    def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        if delivery.order_key is None or settlement.action == "ack":
            self._settler.settle(delivery, settlement)
            self._waiting.go_on(delivery.order_key)
            return
        # What waits behind it goes back too, or it would be handled first. Its line is closed only once the queue was told:
        # until then the queue, which knows of nothing, may still give the next ones.
        entries: list[Entry] = [(delivery, settlement)]
        while entries:
            self._settler.settle_now(entries)
            behind = self._waiting.take_behind(delivery.order_key)
            for other in behind:
                self._opened.excuse(other, "given back behind another message of its order key")
            entries = [(other, release(0)) for other in behind]
            self._room.fill(-len(behind))

    def _deliver(self, delivery: Delivery) -> Settlement:
        if self._stopping.is_set():
            return release(0)
        if self._opened.keeper.is_lost(delivery):
            return LEAVE  # taken away while it waited here: whoever has it now need not be met at its inbox row
        try:
            settlement = self._opened.deliver(delivery)
        except BaseException:  # noqa: BLE001 - logged with its traceback, and left to redelivery
            self._log.exception("handling delivery %s failed; it stays in its queue", delivery.id)
            settlement = LEAVE
        if settlement is LEAVE:
            # Most often that means that the database is away; the receiving thread finds out before it goes on.
            self._check.suspect()
        return settlement

    def _release(self, waiting: Sequence[Delivery]) -> None:
        for delivery in waiting:
            self._settler.settle(delivery, release(0))


class Settler:
    """Settles from any thread.

    Entries that come while one call is under way go together in the next.
    """

    def __init__(self, opened: OpenConsumer, source: Source) -> None:
        self._opened = opened
        self._source = source
        # A queue that takes nothing back by itself would keep what is left for as long as this process lives. It is given
        # back then, after the time in which a claim that was left lapses.
        self._left = LEAVE if source.traits.lease_seconds is not None else release(opened.runtime.inbox.lease_seconds)
        self._log = named(opened)
        self._pending: list[Entry] = []
        self._lock = threading.Lock()
        self._settling = False

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """This settlement is carried out, by this thread or by the one that settles already."""
        with self._lock:
            self._pending.append((delivery, settlement))
            if self._settling:
                # Handed over. The other thread looks for more under this lock before it gives up its turn, so it sees this
                # entry; and this thread takes its next delivery instead of waiting for the queue.
                return
            self._settling = True
        while entries := self._next_entries():
            self._settle_or_log(entries)

    def settle_now(self, entries: Sequence[Entry]) -> None:
        """The queue has been told of these, in this order, or has failed to hear."""
        self._settle_or_log(entries)

    def _next_entries(self) -> list[Entry]:
        """All that is pending; if that is nothing, the turn of this thread is over."""
        # Both under one hold of the lock: an entry that is handed over in between would be overlooked.
        with self._lock:
            entries, self._pending = self._pending, []
            self._settling = bool(entries)
            return entries

    def _settle_or_log(self, entries: Sequence[Entry]) -> None:
        # Whatever goes wrong with these, the next are settled: they were handed over, and no other thread would do it.
        try:
            self._settle(entries)
        except BaseException as error:
            self._log.exception(
                "settling %d deliveries failed; they will be delivered again when their lease has run out", len(entries)
            )
            if interrupts(error):
                with self._lock:
                    self._settling = False
                raise

    def _settle(self, entries: Sequence[Entry]) -> None:
        entries = [(delivery, self._left if settlement is LEAVE else settlement) for delivery, settlement in entries]
        # First: an extension that is carried out after the settlement would hide a released message.
        self._opened.keeper.drop([delivery for delivery, _ in entries])
        self._emit("consumer.settling", entries)
        settled = [entry for entry in entries if entry[1].action != "leave"]
        if not settled:
            return
        try:
            outcomes = self._source.settle(settled)
        except Exception as error:  # noqa: BLE001 - unsettled is delivered again, and the inbox knows what is finished
            self._log.warning(
                "settling %d deliveries failed; they will be delivered again: %s: %s",
                len(settled), type(error).__name__, error,
            )  # fmt: skip
            return
        if wrong := _wrong(outcomes, len(settled)):
            self._log.error(
                "the source's settle gave %s for %d deliveries, not one Outcome each; what it did not settle will be "
                "delivered again", wrong, len(settled),
            )  # fmt: skip
            return
        if lost := sum(outcome is Outcome.LOST for outcome in outcomes):
            self._log.info("%d of %d deliveries were no longer ours when they were settled", lost, len(settled))
        self._emit("consumer.settled", settled)

    def _emit(self, point: str, entries: Sequence[Entry]) -> None:
        listeners = self._opened.listeners
        if listeners:
            for delivery, settlement in entries:
                message_id = delivery.headers.get("id", "")
                listeners.emit(point, self._opened.consumer.name, message_id, action=settlement.action)


def named(opened: OpenConsumer) -> logging.LoggerAdapter[logging.Logger]:
    """Our log, whose records say which consumer of the process they are about."""
    return logging.LoggerAdapter(logger, {"onceward": {"consumer": opened.consumer.name}})


def _wrong(outcomes: Any, expected: int) -> str:
    """What is wrong with an answer of `settle`; empty: nothing."""
    if not isinstance(outcomes, Sequence) or isinstance(outcomes, str):
        return "None" if outcomes is None else f"a {type(outcomes).__name__}"
    strangers = [outcome for outcome in outcomes if not isinstance(outcome, Outcome)]
    if strangers:
        return f"a {type(strangers[0]).__name__}"
    return "" if len(outcomes) == expected else f"{len(outcomes)} outcomes"
