"""Leg 1: the queue has stored the message, its ack is lost, the producer sends again."""

from __future__ import annotations

from typing import Any

from onceward_proof.demos.actor import Actor
from onceward_proof.demos.stage import ORDER, Side, Stage


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "Naive: a new message for each attempt",
        "The producer does retry. But the id is made per attempt, as a queue's own ids are.",
        "The consumer is the hardened one, on both sides: it cannot help here.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    stage.narrator.scene(
        "Hardened: the id is made once, with the order",
        "It is a column of the outbox row; the relay sends the row, as often as it takes.",
    )
    _hardened(stage, stage.hardened)


def _naive(stage: Stage, side: Side) -> None:
    producer = side.cast("resending-place", "producer", "published", more={"orders": [ORDER]})
    ids = [_lose_the_ack(stage, producer, "producer")]
    again = producer.expect("published")
    stage.narrator.tell("producer", f"sends again, as {_short(again['id'])}; confirmed", again["at"])
    producer.go()
    producer.finish()
    ids.append(again["id"])
    _consume(stage, side)
    stage.evidence["naive"] = _evidence(side, ids)
    stage.claim("naive: one order became two messages with two ids", len(set(ids)) == 2)
    stage.claim("naive: it was charged twice, by a consumer that looks for duplicates", len(side.charges()) == 2)


def _hardened(stage: Stage, side: Side) -> None:
    side.cast("hardened-place", "producer", more={"orders": [ORDER]}).finish()
    relay = side.cast("hardened-relay", "relay", "published")
    ids = [_lose_the_ack(stage, relay, "relay")]
    relay.expect("relay.postponed")
    again = relay.expect("published")
    stage.narrator.tell("relay", f"sends the row again, as {_short(again['id'])}; confirmed", again["at"])
    relay.go()
    relay.expect("relay.deleted")
    ids.append(again["id"])
    worker = _consume(stage, side)
    duplicates = worker.count("consumer.duplicate")
    stage.evidence["hardened"] = _evidence(side, ids) | {"duplicates_turned_away": duplicates}
    stage.claim("hardened: the queue held two messages with one id", len(set(ids)) == 1)
    stage.claim("hardened: the second was turned away, the card charged once", duplicates == 1 and len(side.charges()) == 1)
    stage.claim("hardened: the order is paid, the queue is empty", side.paid() == 1 and side.queued() == 0)


def _lose_the_ack(stage: Stage, producer: Actor, who: str) -> str:
    """The first attempt: stored, and not confirmed. The id that it went under."""
    published = producer.expect("published")
    stage.narrator.start_clock(at=published["at"])
    stage.narrator.tell(who, f"sends order.placed of O-123, as {_short(published['id'])}", published["at"])
    producer.go("lose")
    stage.narrator.tell("queue", "has stored it; its confirmation is lost on the way back")
    return str(published["id"])


def _consume(stage: Stage, side: Side) -> Actor:
    """Both messages, by a hardened worker."""
    stage.narrator.tell("queue", f"holds {side.queued()} messages")
    worker = side.cast("hardened-charge", "worker")
    for _ in range(2):
        received = worker.expect("received")
        what = worker.expect("charged", "consumer.duplicate")
        did = f"charges the card: {what['charge']}" if what["event"] == "charged" else "finds the inbox row: a duplicate"
        stage.narrator.tell("worker", f"receives {_short(received['id'])}: {did}", what["at"])
        worker.expect("acked")
    return worker


def _short(message_id: str) -> str:
    return f"msg-{message_id[-4:]}"


def _evidence(side: Side, ids: list[str]) -> dict[str, Any]:
    return {"orders": 1, "messages": len(ids), "message_ids": len(set(ids)), "charge_ids": side.charges()}
