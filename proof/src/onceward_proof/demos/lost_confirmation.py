"""Leg 1: the queue has stored the message, its confirmation is lost, the producer sends again."""

from __future__ import annotations

from onceward_proof.demos.demonstration import ORDER, Evidence, Side
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.workers.reports import Note, Point


def naive(side: Side) -> Evidence:
    side.heading(
        "Naive: a new message for each attempt",
        "The producer does retry. But the id is made per attempt, as a queue's own ids are.",
        "The consumer is the hardened one, on both sides: it cannot help here.",
    )
    producer = side.start("producer", "producer", Boundary.PUBLISH_AFTER, variant="resend", orders=[ORDER])
    ids = _send_twice(side, producer, "sends again, as {it.message}; confirmed")
    producer.finish()
    _consume(side)
    side.claim("naive: one order became two messages with two ids", len(set(ids)) == 2)
    side.claim("naive: it was charged twice, by a consumer that looks for duplicates", len(side.charges()) == 2)
    return _evidence(side, ids)


def hardened(side: Side) -> Evidence:
    side.heading(
        "Hardened: the id is made once, with the order",
        "It is a column of the outbox row; the relay sends the row, as often as it takes.",
    )
    side.start("producer", "producer", orders=[ORDER]).finish()
    relay = side.start("relay", "relay", Boundary.PUBLISH_AFTER)
    ids = _send_twice(side, relay, "sends the row again, as {it.message}; confirmed")
    relay.expect(Point.DELETED)
    worker = _consume(side)
    duplicates = worker.count(Point.DUPLICATE)
    side.claim("hardened: the queue held two messages with one id", len(set(ids)) == 1)
    side.claim("hardened: the second was turned away, the card charged once", duplicates == 1 and len(side.charges()) == 1)
    side.claim("hardened: the order is paid, the queue is empty", side.paid() == 1 and side.queued() == 0)
    return _evidence(side, ids) | {"duplicates_turned_away": duplicates}


def _send_twice(side: Side, sender: WorkerProcess, second: str) -> list[str]:
    """The first attempt is stored and not confirmed; the second, told as `second`, is. The ids that they went under."""
    first = "sends order.placed of O-123, as {it.message}"
    stored = side.see(sender, Boundary.PUBLISH_AFTER, first, is_start=True)
    # Told while the sender still waits: once it goes on, it may have sent again before this line.
    side.tell("queue", "has stored it; its confirmation is lost on the way back")
    sender.go(Answer.LOSE)
    confirmed = side.see(sender, Boundary.PUBLISH_AFTER, second)
    sender.go()
    return [stored.message_id, confirmed.message_id]


def _consume(side: Side) -> WorkerProcess:
    """Both messages, by a hardened worker."""
    side.tell("queue", f"holds {side.queued()} messages")
    worker = side.start("charge", "worker")
    for _ in range(2):
        received = worker.expect(Note.RECEIVED)
        what = worker.expect(Boundary.RESPONSE, Point.DUPLICATE)
        did = f"charges the card: {what.charge}" if what.word is Boundary.RESPONSE else "finds the inbox row: a duplicate"
        side.tell("worker", f"receives {received.message}: {did}", what.at)
        worker.expect(Boundary.ACK_AFTER)
    return worker


def _evidence(side: Side, ids: list[str]) -> Evidence:
    return {"orders": 1, "messages": len(ids), "message_ids": len(set(ids)), "charge_ids": side.charges()}
