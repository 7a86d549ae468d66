"""A worker is stopped past its lease, another finishes its message.

Then it wakes up and wants to write.
"""

from __future__ import annotations

from typing import Final

from onceward_proof.demos.demonstration import Evidence, Side
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.faults import Boundary
from onceward_proof.workers.reports import Note, Point, Word

CHARGE_OF_ORDER: Final = "SELECT charge_id FROM orders"


def _stopped(side: Side, gate: Word) -> tuple[WorkerProcess, str]:
    """The first worker has charged, and is stopped before it writes."""
    one = side.start("charge", "worker-1", gate)
    side.place()
    side.see(one, Note.RECEIVED, "receives the message; visibility timeout and lease are 1 s", is_start=True)
    reached = one.expect(gate)
    one.freeze()
    charge = side.charges()[0]
    side.tell("worker-1", f"has charged the card, {charge}. SIGSTOP, before it writes", reached.at)
    return one, charge


def naive(side: Side) -> Evidence:
    side.heading(
        "Naive: nobody asks whether the message is still mine",
        "SIGSTOP: a long garbage collection, a paused container, a laptop lid.",
    )
    one, first = _stopped(side, Boundary.RESPONSE)
    two = side.start("charge", "worker-2")
    side.see(two, Boundary.RESPONSE, "receives it, and charges the card: {it.charge}")
    two.expect(Boundary.ACK_AFTER)
    side.tell("worker-2", f"writes: paid by {side.look(CHARGE_OF_ORDER)}; publishes order.paid; acknowledges")
    one.wake()
    side.tell("worker-1", "SIGCONT: it wakes, and knows of nothing")
    one.expect(Boundary.ACK_AFTER)
    side.tell("worker-1", f"writes over it: paid by {side.look(CHARGE_OF_ORDER)}; publishes order.paid once more")
    side.claim("naive: the zombie wrote: the order is paid by the stale charge", side.look(CHARGE_OF_ORDER) == first)
    side.claim(
        "naive: order.paid went out twice, the card was charged twice", _events(side) == 2 and len(side.charges()) == 2
    )
    return _evidence(side)


def hardened(side: Side) -> Evidence:
    side.heading(
        "Hardened: the first statement of the finish is fenced",
        "UPDATE inbox SET state = 'done' ... WHERE state = 'pending' AND token = mine; no row: not mine any more.",
    )
    one, first = _stopped(side, Point.RECORDED)
    two = side.start("charge", "worker-2")
    side.see(two, Point.CLAIMED, "receives it; the lease has lapsed: takes over, token {it.token}")
    side.see(two, Point.REPLAYED, f"the answer is recorded already, {first}: no second call")
    two.expect(Boundary.ACK_AFTER)
    side.tell("worker-2", f"writes: paid by {side.look(CHARGE_OF_ORDER)}; an outbox row for order.paid; acknowledges")
    one.wake()
    side.tell("worker-1", "SIGCONT: it wakes, and wants to write")
    refused = _refused(one)
    if refused:
        side.tell("worker-1", "its fenced UPDATE gives no row: LeaseLost, rolled back, nothing written")
    side.claim("hardened: the zombie was refused at the domain write", refused)
    side.claim("hardened: one charge, one order.paid", len(side.charges()) == 1 and _events(side) == 1)
    side.claim("hardened: the order is paid by that charge", side.look(CHARGE_OF_ORDER) == first)
    return _evidence(side) | {"zombie_refused": int(refused)}


def _refused(one: WorkerProcess) -> bool:
    """At the finish, not by the heartbeat (which names the delivery that it lost)."""
    while (report := one.expect(Point.LEASE_LOST, Point.COMMITTED)).word is Point.LEASE_LOST:
        if not report.delivery:
            return True
    return False


def _events(side: Side) -> int:
    """How many order.paid were sent, or are to be."""
    return side.queued("bookings") + int(side.look("SELECT count(*) FROM onceward.outbox"))


def _evidence(side: Side) -> Evidence:
    return {"orders": 1, "charge_ids": side.charges(), "order_paid_events": _events(side)}
