"""The rows of untimed ids: what upkeep prunes of them, because no day's partition takes them along."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from psycopg import Connection

from onceward.database import tuples
from onceward.statements import statements

# Rows in one transaction: few enough that a worker never waits long for one of them.
BATCH_ROWS: Final = 1000


def prune_untimed(conn: Connection[Any], *, schema: str, window_max: timedelta, batch_rows: int = BATCH_ROWS) -> int:
    """No untimed message is kept that is over, and was taken longer ago than its consumer's window; returns how many were.

    A window that is longer than `window_max` counts as that: no timestamp lies so far back.
    A message goes with its effects and its attempts. One that is pending or parked, or has an effect without an answer, is
    never pruned. From here on, a duplicate of what was pruned is taken as new: pruning fails open.

    Crash in it: the batches that were committed are gone, each message whole; the next upkeep goes on.
    """
    pruned = 0
    for consumer, window_seconds in tuples(conn, statements(schema)["windows_by_consumer"]):
        window = min(window_seconds, window_max.total_seconds())
        due = {"consumer": consumer, "window_seconds": window, "limit": batch_rows}
        while batch := len(tuples(conn, statements(schema)["untimed_prune"], due)):
            pruned += batch
        conn.execute(statements(schema)["untimed_prune_attempts"], due)
    return pruned
