"""The checker's rolling count: which orders are doubled, and which are missing.

An order that is still on its way (in the outbox or in a queue) is late. One that two looks in a row find nowhere is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from onceward_proof.brokers.pgmq import orders_in_queues
from onceward_proof.prove import checker
from onceward_proof.prove.clusters import orders_in_outbox
from onceward_proof.prove.processes import Processes

OLD_SECONDS: Final = 45.0  # an order with three faults, each of which costs it a lease, is finished by then


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found. `missing` is not yet lost: the next look must miss it, too."""

    charges: int
    doubled: frozenset[str]
    missing: frozenset[str]
    late: int
    finished: frozenset[str]  # old, and nothing is wrong with it or still to come


def look(processes: Processes, ordered: Mapping[str, int], old: frozenset[str]) -> Look:
    """Count now. Raises `psycopg.Error` while a server is down.

    `ordered`: a copy of what was ordered so far; `old`: those of it that should be finished.
    """
    # What is on its way is read first: an order that moves on meanwhile is then found where it arrives.
    outbox = orders_in_outbox(processes.database)
    waiting = frozenset(chain(outbox, *orders_in_queues(processes.queues.address).values()))
    evidence = checker.gather(ordered, processes.ledger, processes.database)
    verdict = checker.judge(evidence)
    phantoms = {order for charge, order, _ in evidence.charges if charge in set(verdict.phantom)} & old
    doubled = frozenset({*verdict.double_charged, *verdict.doubled_writes} & set(ordered)) | phantoms
    unfinished = frozenset({*verdict.lost, *verdict.wrong_charge}) & old
    return Look(
        charges=verdict.charges,
        doubled=doubled,
        missing=unfinished - waiting,
        late=len(unfinished & waiting),
        finished=old - unfinished - doubled - waiting,
    )
