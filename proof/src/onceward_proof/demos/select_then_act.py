"""Two workers hold one message, as in a rebalance.

A barrier lets both look before either acts.
"""

from __future__ import annotations

from typing import Any, Final

from onceward_proof.demos.demonstration import Evidence, Side, Step
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.faults import Boundary
from onceward_proof.workers.reports import Note, Point, Word

LEASE_SECONDS: Final = 4.0  # the claim outlives a machine that is busy
ROWS: Final[dict[Word, str]] = {
    Point.CLAIMED: "one row. Mine",
    Point.IN_FLIGHT: "no row. In flight elsewhere, handed back",
}


def _both_receive(side: Side, *gates: Word, **setting: Any) -> tuple[WorkerProcess, WorkerProcess]:
    """Both hold the same message, and wait at the first gate."""
    one = side.start("charge", "worker-1", *gates, **setting)
    side.place()
    side.see(one, Note.RECEIVED, "receives the message", is_start=True)
    one.expect(gates[0])
    two = side.start("charge", "worker-2", *gates, **setting)
    side.see(two, Note.RECEIVED, "receives the same message (delivery {it.count})")
    two.expect(gates[0])
    return one, two


def naive(side: Side) -> Evidence:
    side.heading(
        "SELECT, then act: 'have I seen this message? then skip it'",
        "Both workers have the message; a barrier holds each of them right after its SELECT.",
    )
    tell = side.tell
    one, two = _both_receive(side, Boundary.REQUEST, Boundary.RESPONSE, variant="select-then-act")
    tell("both", "SELECT 1 FROM processed WHERE message_id = ...: no row. Not seen yet, both conclude")
    one.go()
    two.go()
    charged = {worker.name: worker.expect(Boundary.RESPONSE) for worker in (one, two)}
    side.tell_in_order(*(Step(it.at, name, f"charges the card: {it.charge}") for name, it in charged.items()))
    one.go()
    side.see(one, Boundary.ACK_AFTER, "remembers the message, and acknowledges")
    two.go()
    end = two.expect(Note.RAISED, Boundary.ACK_AFTER)
    tell("worker-2", f"cannot remember it: {end.error}. The unique key speaks up, too late", end.at)
    side.claim("select-then-act: both workers charged the card", len(side.charges()) == 2)
    side.claim("select-then-act: the unique key was violated after the charge", end.error == "UniqueViolation")
    return _evidence(side)


def hardened(side: Side) -> Evidence:
    side.heading(
        "INSERT-first: one statement looks and takes",
        "The same barrier, right before the INSERT: there is no place between the look and the act.",
    )
    tell = side.tell
    one, two = _both_receive(side, Point.RECEIVED, Boundary.REQUEST, heartbeats=False, lease_seconds=LEASE_SECONDS)
    one.go()
    two.go()
    results = {worker.name: worker.expect(Point.CLAIMED, Point.IN_FLIGHT) for worker in (one, two)}
    insert = "INSERT ... ON CONFLICT DO NOTHING"
    side.tell_in_order(*(Step(it.at, name, f"{insert}: {ROWS[it.word]}") for name, it in results.items()))
    takers = [worker for worker in (one, two) if results[worker.name].word is Point.CLAIMED]
    for worker in takers:
        if _acks(worker):
            tell(worker.name, f"has charged {side.charges()[0]}, committed and acknowledged")
    turned_away = sum(result.word is Point.IN_FLIGHT for result in results.values())
    side.claim("INSERT-first: of the two, one took the message, one was turned away", len(takers) == turned_away == 1)
    side.claim("INSERT-first: the card was charged once, and the order is paid", len(side.charges()) == side.paid() == 1)
    return _evidence(side) | {"claimed": len(takers), "turned_away_in_flight": turned_away}


def _acks(taker: WorkerProcess) -> bool:
    """Let it charge, if it still may; whether it finished."""
    if taker.expect(Boundary.REQUEST, Point.LEASE_LOST).word is Boundary.REQUEST:
        taker.go()
        return taker.expect(Boundary.ACK_AFTER, Point.LEASE_LOST).word is Boundary.ACK_AFTER
    return False


def _evidence(side: Side) -> Evidence:
    return {"orders": 1, "workers": 2, "charge_ids": side.charges()}
