"""The order is committed; its event is dropped, or its producer dies before it can send it."""

from __future__ import annotations

from typing import Any, Final

from onceward_proof.demos.stage import Side, Stage

FIRST: Final = {"id": "O-1", "amount": 5000}
SECOND: Final = {"id": "O-2", "amount": 5000}
PLACED: Final = "SELECT count(*) FROM onceward.outbox WHERE type = 'order.placed'"
FAILED: Final = "SELECT error FROM onceward.outbox WHERE attempts > 0"


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "Naive: commit, then publish",
        "Two systems, two writes, nothing that holds them together: the dual write.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    stage.narrator.scene(
        "Hardened: the event is an outbox row in the order's own transaction",
        "A relay publishes the row until the queue confirms, and deletes it only then.",
    )
    _hardened(stage, stage.hardened)


def _naive(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one = side.cast("plain-place", "producer-1", "publishing", more={"orders": [FIRST]})
    publishing = one.expect("publishing")
    stage.narrator.start_clock(at=publishing["at"])
    tell("producer-1", "has committed O-1, and publishes order.placed", publishing["at"])
    one.go("drop")
    one.finish()
    tell("queue", "the publish fails: all that is left of the event is a line in a log")
    two = side.cast("plain-place", "producer-2", "publishing", more={"orders": [SECOND]})
    two.expect("publishing")
    two.kill()
    tell("producer-2", "has committed O-2. SIGKILL, before it publishes")
    tell("queue", f"holds {side.queued()} messages: two orders that nobody will ever charge")
    stage.evidence["naive"] = _evidence(side)
    stage.claim("naive: both orders stand, both events are lost", _orders(side) == 2 and side.queued() == 0)


def _hardened(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    stage.narrator.start_clock()
    side.cast("hardened-place", "producer-1", more={"orders": [FIRST]}).finish()
    tell("producer-1", "has committed O-1, and its event as an outbox row")
    relay = side.cast("hardened-relay", "relay", "publishing")
    publishing = relay.expect("publishing")
    tell("relay", f"publishes order.placed of {publishing['subject']}", publishing["at"])
    relay.go("drop")
    postponed = relay.expect("relay.postponed")
    tell("queue", "the publish fails", postponed["at"])
    failure = side.look(FAILED)
    tell("relay", f"the row stays, for a retry: {failure}", postponed["at"])
    two = side.cast("hardened-place", "producer-2", "placed", more={"orders": [SECOND]})
    two.expect("placed")
    two.kill()
    tell("producer-2", "has committed O-2. SIGKILL, before it does anything else")
    pending = side.look(PLACED)
    tell("outbox", f"{pending} rows are pending")
    for _ in range(pending):
        told = relay.expect("publishing")
        relay.go()
        tell("relay", f"sends {told['subject']}")
    relay.await_count("relay.deleted", pending)
    tell("outbox", f"what is confirmed is deleted: {side.look(PLACED)} rows are pending")
    _charge(stage, side, pending)
    stage.evidence["hardened"] = _evidence(side) | {
        "outbox_rows_at_the_worst": pending,
        "outbox_rows_left": side.look(PLACED),
    }
    stage.claim("hardened: the failed row stayed pending, with the reason", bool(failure) and pending == 2)
    stage.claim("hardened: both orders were charged and paid", len(side.charges()) == 2 and side.paid() == 2)


def _charge(stage: Stage, side: Side, messages: int) -> None:
    worker = side.cast("hardened-charge", "worker")
    for _ in range(messages):
        charged = worker.expect("charged")
        stage.narrator.tell("worker", f"charges the card: {charged['charge']}", charged["at"])
        worker.expect("acked")


def _orders(side: Side) -> int:
    return int(side.look("SELECT count(*) FROM orders"))


def _evidence(side: Side) -> dict[str, Any]:
    return {"orders": _orders(side), "charges": len(side.charges()), "lost": _orders(side) - len(side.charges())}
