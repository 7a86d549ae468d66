"""The order is committed; its event is dropped, or its producer dies before it can send it."""

from __future__ import annotations

from typing import Final

from onceward_proof.demos.demonstration import Evidence, Side
from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.workers.reports import Note, Point

FIRST: Final = {"id": "O-1", "amount": 5000}
SECOND: Final = {"id": "O-2", "amount": 5000}
PLACED: Final = "SELECT count(*) FROM onceward.outbox WHERE type = 'order.placed'"
FAILED: Final = "SELECT error FROM onceward.outbox WHERE attempts > 0"


def naive(side: Side) -> Evidence:
    side.heading(
        "Naive: commit, then publish",
        "Two systems, two writes, nothing that holds them together: the dual write.",
    )
    tell = side.tell
    one = side.start("producer", "producer-1", Boundary.PUBLISH_BEFORE, orders=[FIRST])
    side.see(one, Boundary.PUBLISH_BEFORE, "has committed O-1, and publishes order.placed", is_start=True)
    one.go(Answer.DROP)
    one.finish()
    tell("queue", "the publish fails: all that is left of the event is a line in a log")
    two = side.start("producer", "producer-2", Boundary.PUBLISH_BEFORE, orders=[SECOND])
    two.expect(Boundary.PUBLISH_BEFORE)
    two.kill()
    tell("producer-2", "has committed O-2. SIGKILL, before it publishes")
    tell("queue", f"holds {side.queued()} messages: two orders that nobody will ever charge")
    side.claim("naive: both orders stand, both events are lost", _orders(side) == 2 and side.queued() == 0)
    return _evidence(side)


def hardened(side: Side) -> Evidence:
    side.heading(
        "Hardened: the event is an outbox row in the order's own transaction",
        "A relay publishes the row until the queue confirms, and deletes it only then.",
    )
    tell = side.tell
    side.start_clock()
    side.start("producer", "producer-1", orders=[FIRST]).finish()
    tell("producer-1", "has committed O-1, and its event as an outbox row")
    relay = side.start("relay", "relay", Boundary.PUBLISH_BEFORE)
    side.see(relay, Boundary.PUBLISH_BEFORE, "publishes order.placed of {it.order}")
    relay.go(Answer.DROP)
    postponed = side.see(relay, Point.POSTPONED, "the publish fails", who="queue")
    failure = side.look(FAILED)
    tell("relay", f"the row stays, for a retry: {failure}", postponed.at)
    two = side.start("producer", "producer-2", Note.PLACED, orders=[SECOND])
    two.expect(Note.PLACED)
    two.kill()
    tell("producer-2", "has committed O-2. SIGKILL, before it does anything else")
    pending = side.look(PLACED)
    tell("outbox", f"{pending} rows are pending")
    for _ in range(pending):
        publishing = relay.expect(Boundary.PUBLISH_BEFORE)
        relay.go()
        tell("relay", f"sends {publishing.order}")
    relay.await_count(Point.DELETED, pending)
    tell("outbox", f"what is confirmed is deleted: {side.look(PLACED)} rows are pending")
    _charge(side, pending)
    side.claim("hardened: the failed row stayed pending, with the reason", bool(failure) and pending == 2)
    side.claim("hardened: both orders were charged and paid", len(side.charges()) == 2 and side.paid() == 2)
    return _evidence(side) | {"outbox_rows_at_the_worst": pending, "outbox_rows_left": side.look(PLACED)}


def _charge(side: Side, messages: int) -> None:
    worker = side.start("charge", "worker")
    for _ in range(messages):
        side.see(worker, Boundary.RESPONSE, "charges the card: {it.charge}")
        worker.expect(Boundary.ACK_AFTER)


def _orders(side: Side) -> int:
    return int(side.look("SELECT count(*) FROM orders"))


def _evidence(side: Side) -> Evidence:
    return {"orders": _orders(side), "charges": len(side.charges()), "lost": _orders(side) - len(side.charges())}
