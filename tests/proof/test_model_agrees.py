"""The explorer's model of Postgres is held to the real one: random traces of operations, done on both, agree.

What a worker hears, and the rows that are committed, must be the same after every operation. What blocks in the model must
run into the lock timeout here.
"""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import Connect
from tests.proof.model import PARKS, Operation, Pair, runtime

CHOICES = st.lists(st.integers(min_value=0, max_value=10_000), min_size=12, max_size=30)
# If these are not met, the traces went nowhere.
MUST_BE_MET = (
    "take: Taken", "take: Duplicate", "take: InFlight", "take: Conflict", "take: OutsideWindow", "intend: Intended",
    "intend: Recorded", "intend: Expired", "intend: FencedOff", "record: Recorded", "record: TwoAnswers",
    "finish: Finishing", "finish: FencedOff", "commit: Committed", "commit: Aborted", "commit: ForeignCommit",
    "fail: Counted", "fail: Parked", "fail: FencedOff", "give back: GivenBack", "give back: FencedOff",
    "park holder: Parked", "park holder: FencedOff", "park absent: FencedOff",
    "park beside: Parked", "park foreign commit: Parked", "redrive", "redrive refused", "settle", "settle refused",
    "did not happen refused", "discard", "discard refused",
)  # fmt: skip


def test_random_traces_on_the_model_and_on_postgres_agree(dsn: str, connect: Connect) -> None:
    met: Counter[str] = Counter()
    db = connect()

    with runtime(dsn) as shared:

        @settings(
            max_examples=300,
            deadline=None,
            database=None,
            derandomize=bool(os.environ.get("CI")),
            suppress_health_check=list(HealthCheck),
        )
        @given(effectful=st.integers(min_value=0, max_value=2), choices=CHOICES)
        def agree(effectful: int, choices: list[int]) -> None:
            pair = Pair(shared, db, "effectful" if effectful else "transactional", met)
            try:
                for choice in choices:
                    operations = pair.possible()
                    operation, *arguments = operations[choice % len(operations)]
                    operation(*arguments)
                    pair.agree()
            finally:
                pair.close()

        agree()
    assert [what for what in MUST_BE_MET if not met[what]] == []


def test_what_random_traces_seldom_come_to_agrees_as_well(dsn: str, connect: Connect) -> None:
    """An effect that a person begins again, and an answer that comes after a discard."""
    met: Counter[str] = Counter()
    with runtime(dsn) as shared:
        pair = Pair(shared, connect(), "effectful", met)
        unknown = PARKS[0]
        trace: list[Operation] = [
            (pair.take, 0, 0), (pair.intend, 0), (pair.park, 0, unknown), (pair.did_not_happen, False),
            (pair.did_not_happen, True), (pair.take, 1, 0), (pair.intend, 1), (pair.intend, 1), (pair.park, 1, unknown),
            (pair.discard, 0), (pair.record, 1, 0),
        ]  # fmt: skip
        for operation, *arguments in trace:
            operation(*arguments)
            pair.agree()
        pair.close()
    assert met["did not happen refused"] == met["did not happen"] == met["intend: Reopened"] == 1
    assert met["intend: Intended"] == 2
    assert met["record: AnsweredAfterDiscard"] == 1
