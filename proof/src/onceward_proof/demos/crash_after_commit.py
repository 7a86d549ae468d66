"""SIGKILL after the commit, before the ack: the redelivery, and what each side makes of it."""

from __future__ import annotations

from typing import Any, Final

from onceward.message import Message
from onceward_proof.demos.actor import Actor
from onceward_proof.demos.stage import Side, Stage

MESSAGES: Final = 10
ORDERS: Final = [{"id": f"O-{n}", "amount": 5000} for n in range(1, MESSAGES + 1)]
BOOKED: Final = "SELECT sum(balance)::bigint FROM accounts"
WRONG: Final = "SELECT count(*) FROM accounts WHERE balance <> 5000"


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "Naive: write, then acknowledge",
        "The ledger books each paid order: balance = balance + 50. Nothing less idempotent can be written.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    stage.narrator.scene(
        "Hardened: the inbox row and the booking are one transaction",
        "dedup_check_hit_rate: how often the inbox row was there already, of all times that a worker looked.",
    )
    _hardened(stage, stage.hardened)


def _naive(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    _send(side)
    one = side.cast("plain-book", "worker-1", "acking", queue="bookings")
    killed_at = _kill_before_last_ack(stage, one, "acking")
    tell("worker-1", "has committed its last booking. SIGKILL, before the ack", killed_at)
    two = side.cast("plain-book", "worker-2", queue="bookings")
    again = two.expect("received")
    tell("queue", "no ack came: the message is visible again", again["at"])
    acked = two.expect("acked")
    tell("worker-2", f"books it a second time (delivery {again['count']}), and acknowledges", acked["at"])
    stage.evidence["naive"] = _evidence(side, one, two)
    stage.claim("naive: one account is booked twice", side.look(WRONG) == 1 and side.look(BOOKED) == 5000 * (MESSAGES + 1))


def _hardened(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    _send(side)
    one = side.cast("hardened-book", "worker-1", "consumer.committed", queue="bookings")
    killed_at = _kill_before_last_ack(stage, one, "consumer.committed")
    before = _hit_rate(one)
    tell("metric", f"dedup_check_hit_rate = {before:.1%}")
    tell("worker-1", "has committed its last booking. SIGKILL, before the ack", killed_at)
    two = side.cast("hardened-book", "worker-2", queue="bookings")
    again = two.expect("received")
    tell("queue", f"no ack came: the message is visible again (delivery {again['count']})", again["at"])
    caught = two.expect("consumer.duplicate", "consumer.committed")
    if caught["event"] == "consumer.duplicate":
        tell("worker-2", "its INSERT of the inbox row gives no row: a duplicate. Rolled back, no handler ran", caught["at"])
    acked = two.expect("acked")
    tell("worker-2", "acknowledges: the queue is told what the database knew", acked["at"])
    after = _hit_rate(one, two)
    tell("metric", f"dedup_check_hit_rate = {after:.1%}")
    stage.evidence["hardened"] = _evidence(side, one, two) | {
        "duplicates_turned_away": two.count("consumer.duplicate"),
        "dedup_check_hit_rate_before": round(before, 4),
        "dedup_check_hit_rate_after": round(after, 4),
    }
    stage.claim("hardened: every account is booked once", side.look(WRONG) == 0 and side.look(BOOKED) == 5000 * MESSAGES)
    stage.claim("hardened: the redelivery was a duplicate, as a result and not as an error", _caught_once(two))
    stage.claim("hardened: the metric rose from 0, by this one hit", before == 0 and after == 1 / (MESSAGES + 1))
    stage.claim("hardened: the queue is empty", side.queued("bookings") == 0)


def _send(side: Side) -> None:
    for order in ORDERS:
        side.store(order)
    side.send([Message(type="order.paid", subject=order["id"], data=order) for order in ORDERS], "bookings")


def _kill_before_last_ack(stage: Stage, one: Actor, gate: str) -> float:
    """All but the last go through; the last is committed, and its worker killed. When that was."""
    stage.narrator.start_clock()
    for number in range(1, MESSAGES + 1):
        told = one.expect(gate)
        if number == MESSAGES:
            break
        one.go()
        one.expect("acked")
    stage.narrator.tell("worker-1", f"has booked {MESSAGES - 1} orders and acknowledged them")
    one.kill()
    return float(told["at"])


def _hit_rate(*workers: Actor) -> float:
    """From the counters of the consumers' own events, over all processes, as a dashboard adds them up."""
    hits = sum(worker.count("consumer.duplicate") for worker in workers)
    checks = hits + sum(worker.count("consumer.taken") for worker in workers)
    return hits / checks if checks else 0.0


def _caught_once(worker: Actor) -> bool:
    return worker.count("consumer.duplicate") == 1 and worker.count("consumer.taken") == 0


def _evidence(side: Side, *workers: Actor) -> dict[str, Any]:
    return {
        "messages": MESSAGES,
        "redeliveries": sum(worker.count_redelivered() for worker in workers),
        "cents_paid": 5000 * MESSAGES,
        "cents_booked": side.look(BOOKED),
        "wrong_balances": side.look(WRONG),
    }
