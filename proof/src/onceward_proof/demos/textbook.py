"""The pattern as printed: INSERT ... ON CONFLICT DO NOTHING; 0 rows inserted: already processed, skip."""

from __future__ import annotations

from typing import Any, Final

from onceward_proof.demos.stage import Side, Stage

STATUS: Final = "SELECT status FROM charges"


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "The textbook: 0 rows inserted, so skip",
        "COMMIT of the 'pending' row; call the provider; COMMIT of 'done'. A crash may fall between the two.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    stage.narrator.scene(
        "Hardened: 0 rows inserted, so read the row, and decide",
        "done: a duplicate. Pending, lease alive: in flight. Pending, lease lapsed: take over, and go on.",
    )
    _hardened(stage, stage.hardened)


def _naive(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one = side.cast("plain-charge", "worker-1", "charging", more={"module": "textbook"})
    side.place()
    stopped = one.expect("charging")
    stage.narrator.start_clock(at=stopped["at"])
    tell("worker-1", f"1 row inserted, committed as '{side.look(STATUS)}'. Next it would call the provider", stopped["at"])
    one.kill()
    tell("worker-1", "SIGKILL, between its two commits")
    two = side.cast("plain-charge", "worker-2", more={"module": "textbook"})
    again = two.expect("received")
    tell("worker-2", f"receives the message (delivery {again['count']})", again["at"])
    acked = two.expect("acked")
    tell("worker-2", "0 rows inserted: 'already processed'. Skips, and acknowledges", acked["at"])
    tell("queue", f"holds {side.queued()} messages. The row says '{side.look(STATUS)}', for ever")
    stage.evidence["naive"] = _evidence(side)
    stage.claim(
        "textbook: the charge is lost: not made, not queued, not reported",
        side.charges() == [] and side.paid() == 0 and side.queued() == 0,
    )


def _hardened(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one = side.cast("hardened-charge", "worker-1", "charging")
    side.place()
    stopped = one.expect("charging")
    stage.narrator.start_clock(at=stopped["at"])
    tell("worker-1", "inbox row pending, intent row pending, both committed. Next: the provider", stopped["at"])
    one.kill()
    tell("worker-1", "SIGKILL, between its two commits")
    two = side.cast("hardened-charge", "worker-2")
    taken = two.expect("consumer.claimed", "consumer.duplicate")
    if taken["event"] == "consumer.claimed":
        tell("worker-2", f"0 rows inserted; pending, its lease lapsed: takes over, token {taken['token']}", taken["at"])
        same = two.expect("charging")["key"] == stopped["key"]
        charged = two.expect("charged")
        tell(
            "worker-2",
            f"{'the same' if same else 'another'} key, {stopped['key'][:12]}...: {charged['charge']}",
            charged["at"],
        )
    two.expect("acked")
    tell("worker-2", "acknowledges")
    stage.evidence["hardened"] = _evidence(side)
    stage.claim("hardened: the message was resumed: charged once, paid", len(side.charges()) == side.paid() == 1)


def _evidence(side: Side) -> dict[str, Any]:
    return {"orders": 1, "charges": len(side.charges()), "paid": side.paid(), "lost": 1 - side.paid()}
