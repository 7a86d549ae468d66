"""Two workers hold one message, as in a rebalance; a barrier lets both look before either acts."""

from __future__ import annotations

from typing import Any, Final

from onceward_proof.demos.actor import Actor, Told
from onceward_proof.demos.stage import Side, Stage

LEASE_SECONDS: Final = 4.0  # the claim outlives a machine that is busy


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "SELECT, then act: 'have I seen this message? then skip it'",
        "Both workers have the message; a barrier holds each of them right after its SELECT.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    stage.narrator.scene(
        "INSERT-first: one statement looks and takes",
        "The same barrier, right before the INSERT: there is no place between the look and the act.",
    )
    _hardened(stage, stage.hardened)


def _both_receive(stage: Stage, side: Side, part: str, gates: tuple[str, ...], **setting: Any) -> tuple[Actor, Actor]:
    """Both hold the same message, and wait at the first gate."""
    tell = stage.narrator.tell
    one = side.cast(part, "worker-1", *gates, **setting)
    side.place()
    received = one.expect("received")
    stage.narrator.start_clock(at=received["at"])
    tell("worker-1", "receives the message", received["at"])
    one.expect(gates[0])
    two = side.cast(part, "worker-2", *gates, **setting)
    again = two.expect("received")
    tell("worker-2", f"receives the same message (delivery {again['count']})", again["at"])
    two.expect(gates[0])
    return one, two


def _naive(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one, two = _both_receive(stage, side, "plain-charge", ("charging", "charged"), more={"module": "select_then_act"})
    tell("both", "SELECT 1 FROM processed WHERE message_id = ...: no row. Not seen yet, both conclude")
    one.go()
    two.go()
    for worker in (one, two):
        charged = worker.expect("charged")
        tell(worker.name, f"charges the card: {charged['charge']}", charged["at"])
    one.go()
    acked = one.expect("acked")
    tell("worker-1", "remembers the message, and acknowledges", acked["at"])
    two.go()
    end = two.expect("raised", "acked")
    tell("worker-2", f"cannot remember it: {end.get('error', '')}. The unique key speaks up, too late", end["at"])
    stage.evidence["naive"] = _evidence(side)
    stage.claim("select-then-act: both workers charged the card", len(side.charges()) == 2)
    stage.claim("select-then-act: the unique key was violated after the charge", end.get("error") == "UniqueViolation")


def _hardened(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one, two = _both_receive(
        stage, side, "hardened-charge", ("consumer.received", "charging"), heartbeats=False, lease_seconds=LEASE_SECONDS
    )
    one.go()
    two.go()
    results = {worker.name: worker.expect("consumer.claimed", "consumer.in_flight") for worker in (one, two)}
    for name, result in sorted(results.items(), key=lambda item: float(item[1]["at"])):
        tell(name, _said(result), result["at"])
    takers = [worker for worker in (one, two) if results[worker.name]["event"] == "consumer.claimed"]
    for worker in takers:
        if _acks(worker):
            tell(worker.name, f"has charged {side.charges()[0]}, committed and acknowledged")
    turned_away = sum(result["event"] == "consumer.in_flight" for result in results.values())
    stage.evidence["hardened"] = _evidence(side) | {"claimed": len(takers), "turned_away_in_flight": turned_away}
    stage.claim("INSERT-first: of the two, one took the message, one was turned away", len(takers) == turned_away == 1)
    stage.claim("INSERT-first: the card was charged once, and the order is paid", len(side.charges()) == side.paid() == 1)


def _acks(taker: Actor) -> bool:
    """Let it charge, if it still may; whether it finished."""
    if taker.expect("charging", "consumer.lease_lost")["event"] == "charging":
        taker.go()
        return bool(taker.expect("acked", "consumer.lease_lost")["event"] == "acked")
    return False


def _said(result: Told) -> str:
    if result["event"] == "consumer.claimed":
        return "INSERT ... ON CONFLICT DO NOTHING: one row. Mine"
    return "INSERT ... ON CONFLICT DO NOTHING: no row. In flight elsewhere, handed back"


def _evidence(side: Side) -> dict[str, Any]:
    return {"orders": 1, "workers": 2, "charge_ids": side.charges()}
