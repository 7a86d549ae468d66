"""The checker: counts what went wrong.

Its witnesses are the provider's ledger, the database and the list of what was ordered. It shares no code with what it
checks: it imports nothing of Onceward (a test enforces that), and it believes no consumer's own account of what
happened.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the three witnesses say, raw. Amounts are in the currency's smallest unit."""

    ordered: Mapping[str, int]  # order id -> amount, as the producer got it
    charges: tuple[tuple[str, str, int], ...]  # (charge id, order id, amount) in the provider's ledger
    placed: Mapping[str, tuple[int, str, str | None]]  # order id -> (amount, status, charge id) in the database
    balances: Mapping[str, int]  # order id -> balance in the database
    parked: frozenset[str]  # orders of parked messages, by name
    park_reasons: Mapping[str, frozenset[str]] = field(default_factory=dict)  # of those orders, as the database has them


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, by order id; and the sums that must agree."""

    orders: int
    charges: int
    double_charged: tuple[str, ...]
    phantom: tuple[str, ...]  # charge ids without a committed order
    lost_first_hop: tuple[str, ...]  # ordered, but neither paid nor named as parked
    lost_second_hop: tuple[str, ...]  # paid, but never booked, and not named as parked
    doubled_writes: tuple[str, ...]  # the balance is more than the amount
    wrong_charge: tuple[str, ...]  # paid by a charge that the ledger does not have, or of another amount
    parked: tuple[str, ...]
    money: Mapping[str, int] = field(default_factory=dict)
    park_reasons: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def lost(self) -> tuple[str, ...]:
        return tuple(sorted({*self.lost_first_hop, *self.lost_second_hop}))

    @property
    def harmed(self) -> frozenset[str]:
        """Every order that was doubled, lost or booked wrongly."""
        return frozenset({*self.double_charged, *self.lost, *self.doubled_writes, *self.wrong_charge})

    @property
    def clean(self) -> bool:
        """Nothing doubled, lost, or out of balance."""
        return not self.harmed and not self.phantom and self.money["charged"] == self.money["paid"] == self.money["booked"]


def gather(ordered: Mapping[str, int], ledger: Path, database: str) -> Evidence:
    """Read the ledger (SQLite, read-only) and the database. Raises what the drivers raise."""
    with psycopg.connect(database, autocommit=True) as conn:
        placed = {
            row[0]: (row[1], row[2], row[3]) for row in conn.execute("SELECT id, amount, status, charge_id FROM orders")
        }
        balances = {row[0]: row[1] for row in conn.execute("SELECT order_id, balance FROM accounts")}
        reasons = _park_reasons(conn)
    return Evidence(ordered, tuple(_charges(ledger)), placed, balances, frozenset(reasons), reasons)


def _charges(ledger: Path) -> Iterable[tuple[str, str, int]]:
    query = (
        "SELECT id, json_extract(body, '$.transfer_group'), json_extract(body, '$.amount') FROM objects"
        " WHERE kind = 'charge' AND json_extract(body, '$.paid') = 1 ORDER BY rowid"
    )
    # Read-only: the provider may still be writing, and the checker must leave no trace in the evidence.
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        for charge_id, order_id, amount in connection.execute(query):
            yield str(charge_id), str(order_id), int(amount)


def _park_reasons(conn: psycopg.Connection[Any]) -> dict[str, frozenset[str]]:
    """Of each order that is parked, every reason for which one of its messages is."""
    # The variants without Onceward have no such table, and park nothing.
    row = conn.execute("SELECT to_regclass('onceward.parked') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return {}
    reasons: dict[str, frozenset[str]] = {}
    for subject, reason in conn.execute("SELECT headers->>'subject', reason FROM onceward.parked"):
        reasons[str(subject)] = reasons.get(str(subject), frozenset()) | {str(reason)}
    return reasons


def judge(evidence: Evidence) -> Verdict:
    """Count. Pure: the same evidence gives the same verdict."""
    e = evidence
    per_order = Counter(order_id for _, order_id, _ in e.charges)
    amounts = {charge_id: (order_id, amount) for charge_id, order_id, amount in e.charges}
    paid = {order_id for order_id, (_, status, _) in e.placed.items() if status == "paid"}
    booked = {order_id for order_id, balance in e.balances.items() if balance > 0}
    return Verdict(
        orders=len(e.ordered),
        charges=len(e.charges),
        double_charged=_sorted(order_id for order_id, count in per_order.items() if count > 1),
        phantom=_sorted(charge_id for charge_id, order_id, _ in e.charges if order_id not in e.placed),
        lost_first_hop=_sorted(set(e.ordered) - paid - e.parked),
        lost_second_hop=_sorted(paid - booked - e.parked),
        doubled_writes=_sorted(
            order_id for order_id, balance in e.balances.items() if balance > e.ordered.get(order_id, 0)
        ),
        wrong_charge=_sorted(
            order_id
            for order_id, (amount, status, charge_id) in e.placed.items()
            if status == "paid" and amounts.get(str(charge_id)) != (order_id, amount)
        ),
        parked=_sorted(e.parked),
        money={
            "charged": sum(amount for _, _, amount in e.charges),
            "paid": sum(amount for amount, status, _ in e.placed.values() if status == "paid"),
            "booked": sum(e.balances.values()),
        },
        park_reasons=e.park_reasons,
    )


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
