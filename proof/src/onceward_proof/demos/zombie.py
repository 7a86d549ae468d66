"""A worker is stopped past its lease, another finishes its message; then it wakes up and wants to write."""

from __future__ import annotations

from typing import Any, Final

from onceward_proof.demos.actor import Actor
from onceward_proof.demos.stage import Side, Stage

CHARGE_OF_ORDER: Final = "SELECT charge_id FROM orders"


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "Naive: nobody asks whether the message is still mine",
        "SIGSTOP: a long garbage collection, a paused container, a laptop lid.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    stage.narrator.scene(
        "Hardened: the first statement of the finish is fenced",
        "UPDATE inbox SET state = 'done' ... WHERE state = 'pending' AND token = mine; no row: not mine any more.",
    )
    _hardened(stage, stage.hardened)


def _stopped(stage: Stage, side: Side, part: str, gate: str) -> tuple[Actor, str]:
    """The first worker has charged, and is stopped before it writes."""
    one = side.cast(part, "worker-1", gate)
    side.place()
    received = one.expect("received")
    stage.narrator.start_clock(at=received["at"])
    stage.narrator.tell("worker-1", "receives the message; visibility timeout and lease are 1 s", received["at"])
    told = one.expect(gate)
    one.freeze()
    charge = side.charges()[0]
    stage.narrator.tell("worker-1", f"has charged the card, {charge}. SIGSTOP, before it writes", told["at"])
    return one, charge


def _naive(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one, first = _stopped(stage, side, "plain-charge", "charged")
    two = side.cast("plain-charge", "worker-2")
    charged = two.expect("charged")
    tell("worker-2", f"receives it, and charges the card: {charged['charge']}", charged["at"])
    two.expect("acked")
    tell("worker-2", f"writes: paid by {side.look(CHARGE_OF_ORDER)}; publishes order.paid; acknowledges")
    one.wake()
    one.go()
    tell("worker-1", "SIGCONT: it wakes, and knows of nothing")
    one.expect("acked")
    tell("worker-1", f"writes over it: paid by {side.look(CHARGE_OF_ORDER)}; publishes order.paid once more")
    stage.evidence["naive"] = _evidence(side)
    stage.claim("naive: the zombie wrote: the order is paid by the stale charge", side.look(CHARGE_OF_ORDER) == first)
    stage.claim("naive: order.paid went out twice, the card was charged twice", _doubled(side))


def _hardened(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one, first = _stopped(stage, side, "hardened-charge", "effect.recorded")
    two = side.cast("hardened-charge", "worker-2")
    taken = two.expect("consumer.claimed")
    tell("worker-2", f"receives it; the lease has lapsed: takes over, token {taken['token']}", taken["at"])
    replayed = two.expect("effect.replayed")
    tell("worker-2", f"the answer is recorded already, {first}: no second call", replayed["at"])
    two.expect("acked")
    tell("worker-2", f"writes: paid by {side.look(CHARGE_OF_ORDER)}; an outbox row for order.paid; acknowledges")
    one.wake()
    one.go()
    tell("worker-1", "SIGCONT: it wakes, and wants to write")
    refused = _refused(one)
    if refused:
        tell("worker-1", "its fenced UPDATE gives no row: LeaseLost, rolled back, nothing written")
    stage.evidence["hardened"] = _evidence(side) | {"zombie_refused": int(refused)}
    stage.claim("hardened: the zombie was refused at the domain write", refused)
    stage.claim("hardened: one charge, one order.paid", len(side.charges()) == 1 and _events(side) == 1)
    stage.claim("hardened: the order is paid by that charge", side.look(CHARGE_OF_ORDER) == first)


def _refused(one: Actor) -> bool:
    """At the finish, not by the heartbeat (which names the delivery that it lost)."""
    while (told := one.expect("consumer.lease_lost", "consumer.committed"))["event"] == "consumer.lease_lost":
        if "delivery" not in told:
            return True
    return False


def _events(side: Side) -> int:
    """How many order.paid were sent, or are to be."""
    return side.queued("bookings") + side.outbox()


def _doubled(side: Side) -> bool:
    return _events(side) == 2 and len(side.charges()) == 2


def _evidence(side: Side) -> dict[str, Any]:
    return {"orders": 1, "charge_ids": side.charges(), "order_paid_events": _events(side)}
