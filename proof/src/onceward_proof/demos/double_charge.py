"""The incident: T=0 s received, T=0.5 s charged, T=30 s visible again, T=31 s acknowledged, too late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from onceward_proof.demos.actor import Actor
from onceward_proof.demos.stage import Side, Stage, wait_until

TIMEOUT_SECONDS: Final = 30.0  # the incident's visibility timeout
LEASE_SECONDS: Final = 4.0  # of our inbox row: its own heartbeat keeps it, also on a machine that is busy
CHARGED_AT, BUSY_AT, ACKED_AT = 0.5, 29.0, 31.0


def perform(stage: Stage) -> None:
    visibility_seconds = 1 if stage.narrator.fast else 2
    scale = TIMEOUT_SECONDS / visibility_seconds
    stage.narrator.scene(
        "Naive: charge, write, acknowledge",
        f"Time is scaled: the visibility timeout of 30 s takes {visibility_seconds} s here; 1 s is told as {scale:g} s.",
        "Nobody crashes. The database is slow after the charge, that is all.",
    )
    _naive(_Incident(stage, stage.naive, scale, visibility_seconds))
    stage.exeunt()
    stage.narrator.scene(
        f"Hardened: an inbox row before the work (1 s is told as {scale:g} s)",
        "The same slow database. A heartbeat would keep the message hidden: so the heartbeats to the queue are",
        "dropped, because what must hold is the row, not the heartbeat.",
    )
    _hardened(_Incident(stage, stage.hardened, scale, visibility_seconds))


@dataclass(slots=True)
class _Incident:
    """One side's run of the timeline."""

    stage: Stage
    side: Side
    scale: float
    visibility_seconds: int
    began: float = 0.0

    def cast(self, part: str, name: str, *gates: str) -> Actor:
        return self.side.cast(
            part, name, *gates, visibility_seconds=self.visibility_seconds, lease_seconds=LEASE_SECONDS, heartbeats=False
        )

    def wait_for(self, seconds: float) -> None:
        """Until T=`seconds` of the incident."""
        wait_until(self.began + seconds / self.scale)

    def tell(self, who: str, what: str, at: float | None = None) -> None:
        self.stage.narrator.tell(who, what, at)

    def charge_slowly(self, one: Actor) -> dict[str, Any]:
        """From T=0 s to T=29 s, the same on both sides."""
        self.side.place()
        received = one.expect("received")
        self.began = self.side.received_at(self.visibility_seconds)
        self.stage.narrator.start_clock(scale=self.scale, at=self.began)
        message = f"msg-{received['id'][-4:]}"
        self.tell("worker-1", f'receives {message}, "charge $50 for order O-123"; the queue hides it for 30 s', self.began)
        one.expect("charging")
        self.wait_for(CHARGED_AT)
        one.go()
        charged = one.expect("charged")
        self.tell("worker-1", f"charges the card: {charged['charge']}", charged["at"])
        return charged

    def redelivery(self, two: Actor) -> None:
        self.wait_for(BUSY_AT)
        self.tell("worker-1", "is still running: its database is slow. Nothing is acknowledged")
        again = two.expect("received")
        self.tell("queue", "the timeout has passed: the message is visible again", again["at"])
        self.tell("worker-2", f"receives it (delivery {again['count']})", again["at"])


def _naive(incident: _Incident) -> None:
    stage, side = incident.stage, incident.side
    one = incident.cast("plain-charge", "worker-1", "charging", "charged")
    incident.charge_slowly(one)
    two = incident.cast("plain-charge", "worker-2", "charged")
    incident.redelivery(two)
    second = two.expect("charged")
    incident.tell("worker-2", f"charges the card: {second['charge']}", second["at"])
    incident.wait_for(ACKED_AT)
    one.go()
    acked = one.expect("acked")
    incident.tell("worker-1", "acknowledges; the message is gone, and the damage is done", acked["at"])
    two.go()
    two.expect("acked")
    stage.evidence["naive"] = _evidence(side)
    stage.claim("naive: one order of $50 was charged twice, $100", side.charged() == 10_000 and len(side.charges()) == 2)


def _hardened(incident: _Incident) -> None:
    stage, side = incident.stage, incident.side
    one = incident.cast("hardened-charge", "worker-1", "charging", "effect.recorded")
    charged = incident.charge_slowly(one)
    one.expect("effect.recorded")
    two = incident.cast("hardened-charge", "worker-2")
    incident.redelivery(two)
    turned = two.expect("consumer.in_flight", "consumer.claimed")
    if turned["event"] == "consumer.in_flight":
        two.expect("released")
        incident.tell("worker-2", "finds the inbox row, its lease alive: in flight, handed back untouched", turned["at"])
    incident.wait_for(ACKED_AT)
    one.go()
    if one.expect("consumer.committed", "consumer.lease_lost")["event"] == "consumer.committed":
        acked = one.expect("acked")
        incident.tell("worker-1", f"commits (paid by {charged['charge']}) and acknowledges", acked["at"])
    stage.evidence["hardened"] = _evidence(side) | {"turned_away_in_flight": two.count("consumer.in_flight")}
    stage.claim(
        "hardened: the order was charged once, $50", side.charged() == 5000 and side.charges() == [charged["charge"]]
    )
    stage.claim(
        "hardened: the second worker was turned away before any code of the handler ran",
        two.count("consumer.in_flight") >= 1 and two.count("consumer.claimed") == 0 and two.count("charging") == 0,
    )
    stage.claim("hardened: the order is paid, the queue is empty", side.paid() == 1 and side.queued() == 0)


def _evidence(side: Side) -> dict[str, Any]:
    return {"orders": 1, "charge_ids": side.charges(), "cents_ordered": 5000, "cents_charged": side.charged()}
