"""What happens to a message, as named moments: one list for crash points, for listeners, for spans and for the docs.

A listener may end the process: that is how crash points are tested.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from onceward.errors import UsageError

logger = logging.getLogger("onceward")
FAILURES_BETWEEN_LINES: Final = 1000

POINTS: Final = {
    "consumer.received": "the delivery is here; nothing is written",
    "consumer.claimed": "effectful: the inbox row is committed as pending, with a lease",
    "consumer.taken": "transactional: the inbox row is inserted, not committed",
    "consumer.duplicate": "the inbox row exists: a redelivery is turned away",
    "consumer.in_flight": "another worker holds the row",
    "effect.intended": "the intent is committed, the provider not yet called",
    "effect.answered": "the provider has answered, nothing is recorded",
    "effect.recorded": "the answer is committed in the intent",
    "effect.replayed": "the recorded answer was given again, without a call",
    "effect.looked_up": "the provider was asked whether the effect happened",
    "consumer.finishing": "the handler's transaction is open, the inbox row is done in it",
    "consumer.handled": "the handler's writes are made, COMMIT is not sent",
    "consumer.committed": "COMMIT is confirmed, the queue knows nothing",
    "consumer.failed": "a failed attempt is counted",
    "consumer.parked": "the message is parked",
    "consumer.lease_lost": "another worker has taken the message over",
    "consumer.settling": "the outcome stands, the queue is about to be told",
    "consumer.settled": "the queue was told",
    "consumer.raised_late": "the handler raised after its message was finished",
    "relay.looked": "a lane waits: there was nothing to take, or the database or the sink failed",
    "relay.taken": "a batch is locked, nothing is sent",
    "relay.published": "the sink has answered, the rows are still there",
    "relay.deleted": "what the sink confirmed is deleted and committed",
    "relay.postponed": "a row could not be sent and waits for its retry",
    "relay.set_aside": "a row failed too often: it is not tried again until a person decides",
    "upkeep.partition_late": "a partition for a current id was missing: upkeep is late",
}


class Event(NamedTuple):
    """One moment. `point` is a key of `POINTS`; `message_id` is '' where no single message is meant."""

    point: str
    consumer: str
    message_id: str
    fields: dict[str, Any]


class Listener(Protocol):
    """A function that takes an `Event`: called in the thread where it happened, between two steps of the protocol.

    What it raises is logged and counted, never passed on: watching must not change what is watched. It must be quick: the
    message waits for it.
    """

    def __call__(self, event: Event, /) -> None: ...


class Listeners:
    """Hands each event to every listener. Without any, an event costs one test and is not even made."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = _checked(listeners)
        self._failures: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def emit(self, point: str, consumer: str, message_id: str = "", /, **fields: Any) -> None:
        if not self._listeners:
            return
        event = Event(point, consumer, message_id, fields)
        # By place, not by the listener: it may be of a type that cannot be hashed.
        for place, listener in enumerate(self._listeners):
            try:
                listener(event)
            except BaseException as error:
                # SystemExit too: it would end this thread in silence, and with it what the thread carries for others.
                if interrupts(error):
                    raise
                self._failed(place, listener, event, error)

    def _failed(self, place: int, listener: Listener, event: Event, error: BaseException) -> None:
        """Logged with its traceback the first time, then in one line every thousandth time: it must not fill the log."""
        with self._lock:
            self._failures[place] += 1
            failures = self._failures[place]
        name = getattr(listener, "__qualname__", None) or type(listener).__qualname__
        if failures == 1:
            text = "listener %s failed at %s of message %r; it is called again at the next event, and the message goes on"
            logger.error(text, name, event.point, event.message_id, exc_info=error)
        elif failures % FAILURES_BETWEEN_LINES == 0:
            text = "listener %s has failed %d times, the last time at %s: %s: %s"
            logger.error(text, name, failures, event.point, type(error).__name__, error)


def interrupts(error: BaseException) -> bool:
    """True for Ctrl-C, which Python raises on the main thread: somebody wants the program to end."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _checked(listeners: Sequence[Listener]) -> tuple[Listener, ...]:
    if callable(listeners) or not hasattr(listeners, "__iter__"):
        raise UsageError(f"listeners: a list of functions that take an Event, not a {type(listeners).__name__}")
    for listener in listeners:
        if not callable(listener):
            raise UsageError(f"listeners: a function that takes an Event, not a {type(listener).__name__}")
        if inspect.iscoroutinefunction(listener):
            raise UsageError(f"the listener {listener.__qualname__} is async; nobody would await it")
    return tuple(listeners)
