"""A sink and a source in memory, whose every answer a test can choose; and relays in the background."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support.waiting import Background, until

from onceward.database import Database, DatabaseSource
from onceward.errors import TransportError
from onceward.events import Listener, Listeners
from onceward.message import Message
from onceward.protocol.relay import Patience
from onceward.relay_loop import RelayLoop, relay
from onceward.relay_runtime import RelayRuntime
from onceward.retry import Backoff
from onceward.transport import ACK, Delivery, Outcome, Received, Settlement, Sink, Source, Traits

SOON = Backoff(first_seconds=0.001, seconds_max=0.001)
# Tries follow each other at once here: the default would be used up within seconds.
PATIENT = Patience(attempts_max=1_000_000)


class ListSink:
    """Keeps what it confirmed. `refuse`: ids that it does not take; `down`: it does not answer at all."""

    def __init__(self, *, publish_max: int = 100) -> None:
        self.traits = Traits(lease_seconds=30, settle_fenced=False, counts_deliveries=False, publish_max=publish_max)
        self.messages: list[Message] = []
        self.refuse: set[str] = set()
        self.down = False
        self.calls = 0
        self._lock = threading.Lock()

    @property
    def ids(self) -> list[str]:
        return [message.id for message in list(self.messages)]

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        with self._lock:
            self.calls += 1
            if self.down:
                raise TransportError("the sink is down")
            held: set[str | None] = set()
            return [self._take(message, held) for message in messages]

    def _take(self, message: Message, held: set[str | None]) -> BaseException | None:
        if message.id in self.refuse or message.subject in held:
            held |= {message.subject} - {None}
            return TransportError("refused")
        self.messages.append(message)
        return None

    def close(self) -> None:
        pass


class ListSource:
    """Gives the deliveries that were put into it, once each, and keeps what it was told of them."""

    name = "list"

    def __init__(self, *, lease_seconds: float | None = 30.0, **traits: Any) -> None:
        self.traits = Traits(lease_seconds=lease_seconds, settle_fenced=False, counts_deliveries=False, **traits)
        self.waiting: deque[Delivery] = deque()
        self.settled: list[tuple[str, Settlement]] = []
        self.extended: list[str] = []
        self.taken_away: set[str] = set()
        self.lost: list[Delivery] = []
        self.receives = 0

    def receive(self, limit: int, wait_seconds: float) -> Received:
        self.receives += 1
        lost, self.lost = self.lost, []
        got = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        if not got and not lost:
            time.sleep(min(wait_seconds, 0.01))
        return Received(got, lost)

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        self.settled.extend((delivery.id, settlement) for delivery, settlement in entries)
        return [Outcome.SETTLED] * len(entries)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:  # noqa: ARG002
        self.extended.extend(delivery.id for delivery in deliveries)
        return [Outcome.LOST if delivery.id in self.taken_away else Outcome.SETTLED for delivery in deliveries]

    def close(self) -> None:
        pass

    def actions(self, delivery_id: str) -> list[str]:
        return [settlement.action for name, settlement in list(self.settled) if name == delivery_id]

    def wait_for_settled(self, many: int) -> None:
        until(lambda: len(self.settled) >= many, f"{many} settlements (so far {self.settled})")


def says_that_it_is_away(source: Source, sink: Sink, held: Delivery, unsent: Message) -> None:
    """While its server is down, each call of a transport fails as an outage does, and none as a defect would."""
    for call in (
        lambda: sink.publish([unsent]),
        lambda: source.receive(1, 0),
        lambda: source.settle([(held, ACK)]),
        lambda: source.extend([held], 5),
    ):
        with pytest.raises(TransportError):
            call()


def drain(dsn: str, sink: Any, *listeners: Listener, **options: Any) -> None:
    """Relay until the outbox has nothing more to give."""
    options = {"backoff": SOON, "attempts_max": PATIENT.attempts_max, **options}
    relay(sink=lambda: sink, database=dsn, until_empty=True, listeners=listeners, **options)


@contextmanager
def relaying(
    background: Background, database: DatabaseSource, sink: Any, *listeners: Listener, **options: Any
) -> Iterator[None]:
    """A relay that runs beside the test; it has ended, without an error, when the block has."""
    stop = threading.Event()
    options = {"poll_seconds": 0.02, "backoff": SOON, "attempts_max": PATIENT.attempts_max, **options}
    running = background(relay, sink=lambda: sink, database=database, stop=stop, listeners=listeners, **options)
    try:
        yield
    finally:
        stop.set()
        running.result(timeout=20)


@contextmanager
def relaying_weakened(
    background: Background,
    dsn: str,
    sink: Any,
    statements: Mapping[str, Any],
    *,
    idle_seconds_max: float = 60.0,
    lanes: int = 1,
    rows_max: int = 100,
    **options: Any,
) -> Iterator[Future[None]]:
    """The same with other statements, for sabotage, or with other limits."""
    database = Database(dsn, size=lanes + 1, handler_seconds_max=idle_seconds_max)
    database.statements = {**database.statements, **statements}
    options = {"patience": PATIENT, **options}
    runtime = RelayRuntime(database, sink, rows_max, 0.02, SOON, Listeners(), until_empty=False, **options)
    loop = RelayLoop(runtime)
    running = background(loop.run, lanes)
    try:
        yield running
    finally:
        loop.stop()
        try:
            running.result(timeout=20)
        finally:
            database.close()


@contextmanager
def consuming(background: Background, run: Callable[..., None], **options: Any) -> Iterator[None]:
    """The same for a consumer's loop."""
    stop = threading.Event()
    running = background(run, stop=stop, **options)
    try:
        yield
    finally:
        stop.set()
        running.result(timeout=20)
