"""The pattern as printed: 0 rows inserted by INSERT ... ON CONFLICT DO NOTHING, so skip."""

from __future__ import annotations

from typing import Final

from onceward_proof.demos.demonstration import Evidence, Side
from onceward_proof.faults import Boundary
from onceward_proof.workers.reports import Note, Point

STATUS: Final = "SELECT status FROM charges"


def naive(side: Side) -> Evidence:
    side.heading(
        "The textbook: 0 rows inserted, so skip",
        "COMMIT of the 'pending' row; call the provider; COMMIT of 'done'. A crash may fall between the two.",
    )
    tell = side.tell
    one = side.start("charge", "worker-1", Boundary.REQUEST, variant="textbook")
    side.place()
    stopped = one.expect(Boundary.REQUEST)
    side.start_clock(at=stopped.at)
    tell("worker-1", f"1 row inserted, committed as '{side.look(STATUS)}'. Next it would call the provider", stopped.at)
    one.kill()
    tell("worker-1", "SIGKILL, between its two commits")
    two = side.start("charge", "worker-2", variant="textbook")
    again = two.expect(Note.RECEIVED)
    tell("worker-2", f"receives the message (delivery {again.count})", again.at)
    tell("worker-2", "0 rows inserted: 'already processed'. Skips, and acknowledges", two.expect(Boundary.ACK_AFTER).at)
    tell("queue", f"holds {side.queued()} messages. The row says '{side.look(STATUS)}', for ever")
    side.claim(
        "textbook: the charge is lost: not made, not queued, not reported",
        side.charges() == [] and side.paid() == 0 and side.queued() == 0,
    )
    return _evidence(side)


def hardened(side: Side) -> Evidence:
    side.heading(
        "Hardened: 0 rows inserted, so read the row, and decide",
        "done: a duplicate. Pending, lease alive: in flight. Pending, lease lapsed: take over, and go on.",
    )
    tell = side.tell
    one = side.start("charge", "worker-1", Boundary.REQUEST)
    side.place()
    stopped = one.expect(Boundary.REQUEST)
    side.start_clock(at=stopped.at)
    tell("worker-1", "inbox row pending, intent row pending, both committed. Next: the provider", stopped.at)
    one.kill()
    tell("worker-1", "SIGKILL, between its two commits")
    two = side.start("charge", "worker-2")
    claimed = two.expect(Point.CLAIMED, Point.DUPLICATE)
    if claimed.word is Point.CLAIMED:
        tell("worker-2", f"0 rows inserted; pending, its lease lapsed: takes over, token {claimed.token}", claimed.at)
        same = two.expect(Boundary.REQUEST).key == stopped.key
        charged = two.expect(Boundary.RESPONSE)
        tell(
            "worker-2",
            f"{'the same' if same else 'another'} key, {(stopped.key or '')[:12]}...: {charged.charge}",
            charged.at,
        )
    two.expect(Boundary.ACK_AFTER)
    tell("worker-2", "acknowledges")
    side.claim("hardened: the message was resumed: charged once, paid", len(side.charges()) == side.paid() == 1)
    return _evidence(side)


def _evidence(side: Side) -> Evidence:
    return {"orders": 1, "charges": len(side.charges()), "paid": side.paid(), "lost": 1 - side.paid()}
