"""The checker's rolling count: of the orders that are old enough to be finished, which were doubled, and which are gone.

An order that is still on its way (in the outbox or in a queue) is late, not lost; one that is nowhere twice in a row is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from onceward_proof import checker
from onceward_proof.workers.setting import QUEUES

OLD_SECONDS: Final = 45.0  # an order with three faults, each of which costs it a lease, is finished by then


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found. `gone` is not yet lost: another look must find it gone, too."""

    charges: int
    paid: int
    doubled: frozenset[str]
    gone: frozenset[str]
    parked: frozenset[str]
    late: int
    finished: frozenset[str]  # old, and nothing is wrong with it or still to come


def look(ordered: Mapping[str, int], old: frozenset[str], ledger: Path, database: str, queue_database: str) -> Look:
    """Count now. `ordered`: a copy of what was given so far. Raises `psycopg.Error` while a server is down.

    What is on its way is read first: what moves on meanwhile is found where it arrives.
    """
    on_its_way = _on_its_way(database, queue_database)
    evidence = checker.gather(ordered, ledger, database)
    verdict = checker.judge(evidence)
    phantoms = {order for charge, order, _ in evidence.charges if charge in set(verdict.phantom)} & old
    doubled = frozenset({*verdict.double_charged, *verdict.doubled_writes} & set(ordered)) | phantoms
    unfinished = {*verdict.lost, *verdict.wrong_charge} & old
    return Look(
        charges=verdict.charges,
        paid=sum(status == "paid" for _, status, _ in evidence.placed.values()),
        doubled=doubled,
        gone=frozenset(unfinished - on_its_way),
        parked=frozenset(verdict.parked),
        late=len(unfinished & on_its_way),
        finished=old - unfinished - doubled - on_its_way,
    )


def _on_its_way(database: str, queue_database: str) -> frozenset[str]:
    with psycopg.connect(database, autocommit=True, connect_timeout=2) as conn:
        found = {row[0] for row in conn.execute("SELECT aggregateid FROM onceward.outbox")}
    with psycopg.connect(queue_database, autocommit=True, connect_timeout=2) as conn:
        for queue in QUEUES.values():
            statement = sql.SQL("SELECT headers->>'subject' FROM {}").format(sql.Identifier("pgmq", f"q_{queue}"))
            found |= {row[0] for row in conn.execute(statement)}
    return frozenset(found)
