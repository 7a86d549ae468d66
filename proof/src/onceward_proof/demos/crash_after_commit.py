"""SIGKILL after the commit, before the ack: the redelivery, and what each side makes of it."""

from __future__ import annotations

from typing import Final

from onceward.message import Message
from onceward_proof.demos.demonstration import Evidence, Side
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.faults import Boundary
from onceward_proof.workers.reports import Note, Point, Word

MESSAGES: Final = 10
ORDERS: Final = [{"id": f"O-{n}", "amount": 5000} for n in range(1, MESSAGES + 1)]
BOOKED: Final = "SELECT sum(balance)::bigint FROM accounts"
WRONG: Final = "SELECT count(*) FROM accounts WHERE balance <> 5000"


def naive(side: Side) -> Evidence:
    side.heading(
        "Naive: write, then acknowledge",
        "The ledger books each paid order: balance = balance + 50. Nothing less idempotent can be written.",
    )
    one = _kill_before_the_last_ack(side, Boundary.ACK_BEFORE)
    two = _redeliver(side)
    side.see(two, Boundary.ACK_AFTER, "books it a second time, and acknowledges")
    side.claim("naive: one account is booked twice", side.look(WRONG) == 1 and side.look(BOOKED) == 5000 * (MESSAGES + 1))
    return _evidence(side, one, two)


def hardened(side: Side) -> Evidence:
    side.heading(
        "Hardened: the inbox row and the booking are one transaction",
        "dedup_check_hit_rate: how often the inbox row was there already, of all times that a worker looked.",
    )
    one = _kill_before_the_last_ack(side, Point.COMMITTED)
    before = _hit_rate(one)
    side.tell("metric", f"of worker-1: dedup_check_hit_rate = {before:.1%}")
    two = _redeliver(side)
    caught = two.expect(Point.DUPLICATE, Point.COMMITTED)
    if caught.word is Point.DUPLICATE:
        side.tell(
            "worker-2", "its INSERT of the inbox row gives no row: a duplicate. Rolled back, no handler ran", caught.at
        )
    side.see(two, Boundary.ACK_AFTER, "acknowledges: the queue is told what the database knew")
    after = _hit_rate(one, two)
    side.tell("metric", f"of both: dedup_check_hit_rate = {after:.1%}")
    side.claim("hardened: every account is booked once", side.look(WRONG) == 0 and side.look(BOOKED) == 5000 * MESSAGES)
    side.claim(
        "hardened: the redelivery was a duplicate, as a result and not as an error",
        two.count(Point.DUPLICATE) == 1 and two.count(Point.TAKEN) == 0,
    )
    side.claim("hardened: the metric rose from 0, by this one hit", before == 0 and after == 1 / (MESSAGES + 1))
    side.claim("hardened: the queue is empty", side.queued("bookings") == 0)
    return _evidence(side, one, two) | {
        "duplicates_turned_away": two.count(Point.DUPLICATE),
        "dedup_check_hit_rate_before": round(before, 4),
        "dedup_check_hit_rate_after": round(after, 4),
    }


def _kill_before_the_last_ack(side: Side, gate: Word) -> WorkerProcess:
    """The first worker has committed every booking, and is killed at `gate` of the last one."""
    for order in ORDERS:
        side.store(order)
    side.send([Message(type="order.paid", subject=order["id"], data=order) for order in ORDERS], "bookings")
    one = side.start("ledger", "worker-1", gate)
    side.start_clock()
    for _ in range(MESSAGES - 1):
        one.expect(gate)
        one.go()
        acked = one.expect(Boundary.ACK_AFTER)
    side.tell("worker-1", f"has booked {MESSAGES - 1} orders and acknowledged them", acked.at)
    side.see(one, gate, "has committed its last booking. SIGKILL, before the ack")
    one.kill()
    return one


def _redeliver(side: Side) -> WorkerProcess:
    """A second worker holds the message that was not acknowledged."""
    two = side.start("ledger", "worker-2")
    side.see(two, Note.RECEIVED, "no ack came: the message is visible again (delivery {it.count})", who="queue")
    return two


def _hit_rate(*workers: WorkerProcess) -> float:
    """From the counters of the consumers' own events, over all processes, as a dashboard adds them up."""
    hits = sum(worker.count(Point.DUPLICATE) for worker in workers)
    checks = hits + sum(worker.count(Point.TAKEN) for worker in workers)
    return hits / checks if checks else 0.0


def _evidence(side: Side, *workers: WorkerProcess) -> Evidence:
    return {
        "messages": MESSAGES,
        "redeliveries": sum(worker.count_redelivered() for worker in workers),
        "cents_paid": 5000 * MESSAGES,
        "cents_booked": side.look(BOOKED),
        "wrong_balances": side.look(WRONG),
    }
