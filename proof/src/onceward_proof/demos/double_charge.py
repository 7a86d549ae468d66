"""The incident: T=0 s received, T=0.5 s charged, T=30 s visible again, T=31 s acknowledged, too late."""

from __future__ import annotations

import time
from typing import Any, Final

from onceward_proof.demos.demonstration import Evidence, Side, wait_until
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.faults import Boundary
from onceward_proof.workers.reports import Note, Point, Report, Word

TIMEOUT_SECONDS: Final = 30.0  # the incident's visibility timeout
LEASE_SECONDS: Final = 4.0  # of our inbox row: its own heartbeat keeps it, also on a machine that is busy
CHARGED_AT, BUSY_AT, ACKED_AT = 0.5, 29.0, 31.0


class _Incident:
    """One side's run of the timeline."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.visibility_seconds = 1 if side.fast else 2
        self.scale = TIMEOUT_SECONDS / self.visibility_seconds
        self.began = 0.0
        self.charged_at = 0.0

    def charge(self, name: str, *gates: Word) -> WorkerProcess:
        seconds: dict[str, Any] = {"visibility_seconds": self.visibility_seconds, "lease_seconds": LEASE_SECONDS}
        return self.side.start("charge", name, *gates, **seconds, heartbeats=False)

    def moment(self, seconds: float) -> float:
        """T=`seconds` of the incident, as an instant of the monotonic clock."""
        return self.began + seconds / self.scale

    def wait_for(self, seconds: float) -> None:
        """Until T=`seconds` of the incident."""
        wait_until(self.moment(seconds))

    def charge_slowly(self, one: WorkerProcess) -> Report:
        """From T=0 s to T=29 s, the same on both sides."""
        self.side.place()
        received = one.expect(Note.RECEIVED)
        self.began = self.side.received_at(self.visibility_seconds)
        self.side.start_clock(scale=self.scale, at=self.began)
        what = f'receives {received.message}, "charge $50 for order O-123"; the queue hides it for 30 s'
        self.side.tell("worker-1", what, self.began)
        one.expect(Boundary.REQUEST)
        self.wait_for(CHARGED_AT)
        called_at = time.monotonic()
        one.go()
        charged = one.expect(Boundary.RESPONSE)
        self.charged_at = charged.at
        # At the time of the call. How long the provider took is not scaled, so the answer's own time would mean nothing.
        self.side.tell("worker-1", f"calls the provider, which charges the card: {charged.charge}", called_at)
        return charged

    def redeliver(self, two: WorkerProcess) -> None:
        self.wait_for(BUSY_AT)
        busy = "is still running: its database is slow. Nothing is acknowledged"
        # On a machine that is very busy, the charge itself may have taken longer than that.
        self.side.tell("worker-1", busy, max(self.moment(BUSY_AT), self.charged_at))
        again = self.side.see(two, Note.RECEIVED, "the timeout has passed: the message is visible again", who="queue")
        self.side.tell("worker-2", f"receives it (delivery {again.count})", again.at)


def naive(side: Side) -> Evidence:
    incident = _Incident(side)
    side.heading(
        "Naive: charge, write, acknowledge",
        f"Time is scaled: the visibility timeout of 30 s takes {incident.visibility_seconds} s here; "
        f"1 s is told as {incident.scale:g} s.",
        "Nobody crashes. The database is slow after the charge, that is all.",
    )
    one = incident.charge("worker-1", Boundary.REQUEST, Boundary.RESPONSE)
    incident.charge_slowly(one)
    two = incident.charge("worker-2", Boundary.RESPONSE)
    incident.redeliver(two)
    called = two.expect(Boundary.REQUEST)
    incident.wait_for(ACKED_AT)
    one.go()
    acked = one.expect(Boundary.ACK_AFTER)
    charged = two.expect(Boundary.RESPONSE)
    # The second charge was asked for before the ack, whichever of the two answers came first.
    side.tell("worker-2", f"calls the provider, which charges the card again: {charged.charge}", called.at)
    side.tell("worker-1", "acknowledges; the message is gone, and the damage is done", acked.at)
    two.go()
    two.expect(Boundary.ACK_AFTER)
    side.claim("naive: one order of $50 was charged twice, $100", side.charged() == 10_000 and len(side.charges()) == 2)
    return _evidence(side)


def hardened(side: Side) -> Evidence:
    incident = _Incident(side)
    side.heading(
        f"Hardened: an inbox row before the work (1 s is told as {incident.scale:g} s)",
        "The same slow database. A heartbeat would keep the message hidden: so the heartbeats to the queue are",
        "dropped, because what must hold is the row, not the heartbeat.",
    )
    one = incident.charge("worker-1", Boundary.REQUEST, Point.RECORDED)
    charged = incident.charge_slowly(one)
    one.expect(Point.RECORDED)
    two = incident.charge("worker-2")
    incident.redeliver(two)
    outcome = two.expect(Point.IN_FLIGHT, Point.CLAIMED)
    if outcome.word is Point.IN_FLIGHT:
        two.expect(Note.RELEASED)
        side.tell("worker-2", "finds the inbox row, its lease alive: in flight, handed back untouched", outcome.at)
    incident.wait_for(ACKED_AT)
    one.go()
    if one.expect(Point.COMMITTED, Point.LEASE_LOST).word is Point.COMMITTED:
        side.see(one, Boundary.ACK_AFTER, f"commits (paid by {charged.charge}) and acknowledges")
    side.claim("hardened: the order was charged once, $50", side.charged() == 5000 and side.charges() == [charged.charge])
    side.claim(
        "hardened: the second worker was turned away before any code of the handler ran",
        two.count(Point.IN_FLIGHT) >= 1 and two.count(Point.CLAIMED) == 0 and two.count(Boundary.REQUEST) == 0,
    )
    side.claim("hardened: the order is paid, the queue is empty", side.paid() == 1 and side.queued() == 0)
    return _evidence(side) | {"turned_away_in_flight": two.count(Point.IN_FLIGHT)}


def _evidence(side: Side) -> Evidence:
    return {"orders": 1, "charge_ids": side.charges(), "cents_ordered": 5000, "cents_charged": side.charged()}
