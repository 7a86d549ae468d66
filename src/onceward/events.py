"""What happens to a message, as named moments: one list for crash points, for listeners, for spans and for the docs.

A listener is called in the thread where it happened, between two steps of the protocol. What it raises is logged, never
passed on: watching must not change what is watched. (A listener may end the process: that is how crash points are tested.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

logger = logging.getLogger("onceward")

POINTS: Final = {
    "consumer.received": "the delivery is here; nothing is written",
    "consumer.claimed": "effectful: the inbox row is committed as pending, with a lease",
    "consumer.taken": "transactional: the inbox row is inserted, not committed",
    "consumer.duplicate": "the inbox row was there: a redelivery is turned away",
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
    "relay.taken": "a batch is locked, nothing is sent",
    "relay.published": "the sink has answered, the rows are still there",
    "relay.deleted": "what the sink confirmed is deleted and committed",
    "relay.postponed": "a row could not be sent and waits for its retry",
    "upkeep.partition_late": "a partition for a current id was missing: upkeep is late",
}


class Event(NamedTuple):
    """One moment. `point` is a key of `POINTS`; `message_id` is '' where no single message is meant."""

    point: str
    consumer: str
    message_id: str
    fields: dict[str, Any]


Listener = Callable[[Event], None]


class Listeners:
    """Hands each event to every listener; costs nothing but a test when there is none."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = tuple(listeners)

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def emit(self, point: str, consumer: str, message_id: str = "", /, **fields: Any) -> None:
        if not self._listeners:
            return
        event = Event(point, consumer, message_id, fields)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed at %s of message %s", point, message_id)
