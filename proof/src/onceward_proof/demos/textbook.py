"""The pattern as printed: 0 rows inserted by INSERT ... ON CONFLICT DO NOTHING, so skip."""

from __future__ import annotations

from typing import Final

from onceward_proof.demos.demonstration import Evidence, Side
from onceward_proof.prove.faults import Boundary
from onceward_proof.workers.reports import Note, Point, Report

STATUS: Final = "SELECT status FROM charges"


def naive(side: Side) -> Evidence:
    side.heading(
        "The textbook: 0 rows inserted, so skip",
        "COMMIT of the 'pending' row; call the provider; COMMIT of 'done'. A crash may fall between the two.",
    )
    _kill_between_commits(side, "1 row inserted, committed as 'pending'. Next it would call the provider", "textbook")
    two = side.start("charge", "worker-2", variant="textbook")
    side.see(two, Note.RECEIVED, "receives the message (delivery {it.count})")
    side.see(two, Boundary.ACK_AFTER, "0 rows inserted: 'already processed'. Skips, and acknowledges")
    side.tell("queue", f"holds {side.queued()} messages. The row says '{side.look(STATUS)}', for ever")
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
    stopped = _kill_between_commits(side, "inbox row pending, intent row pending, both committed. Next: the provider")
    two = side.start("charge", "worker-2")
    taken = two.expect(Point.CLAIMED, Point.DUPLICATE)
    if taken.word is Point.CLAIMED:
        what = f"0 rows inserted; pending, its lease lapsed: takes over, token {taken.token}"
        side.tell("worker-2", what, taken.at)
        same = two.expect(Boundary.REQUEST).key == stopped.key
        side.see(two, Boundary.RESPONSE, f"{'the same' if same else 'another'} key, {{it.key:.12}}...: {{it.charge}}")
    side.see(two, Boundary.ACK_AFTER, "acknowledges")
    side.claim("hardened: the message was resumed: charged once, paid", len(side.charges()) == side.paid() == 1)
    return _evidence(side)


def _kill_between_commits(side: Side, what: str, variant: str = "") -> Report:
    """The first worker is about to call the provider, which `what` tells, and is killed; how it would have called."""
    one = side.start("charge", "worker-1", Boundary.REQUEST, variant=variant)
    side.place()
    stopped = side.see(one, Boundary.REQUEST, what, is_start=True)
    one.kill()
    side.tell("worker-1", "SIGKILL, between its two commits")
    return stopped


def _evidence(side: Side) -> Evidence:
    return {"orders": 1, "charges": len(side.charges()), "paid": side.paid(), "lost": 1 - side.paid()}
