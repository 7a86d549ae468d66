"""What the lanes of one relay process share.

That is where from, where to, the limits, the wake-ups and the stop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg import Connection

from onceward.database import Database
from onceward.events import Listeners
from onceward.outbox import check_numbering
from onceward.outbox_batch import IDLE_SECONDS_MAX
from onceward.protocol.relay import Patience
from onceward.retry import Backoff
from onceward.transport import Sink

BATCH_SECONDS: Final = 20.0  # then what was confirmed is deleted, whatever of the batch is left
PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024  # of all lanes of a process; a larger row is there alone
NUMBERING_SECONDS: Final = 60.0
DELAY_SECONDS_MAX: Final = 365 * 86_400.0  # what Postgres, and a person, can still make a date of


class PayloadBudget:
    """At most `bytes_max` of payloads are in this process at once, over all lanes.

    Lanes are served in the order in which they ask: a large payload must not wait for ever while small ones slip past it.
    """

    def __init__(self, bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._free = bytes_max
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def share(self, payload_bytes: int) -> Iterator[None]:
        """Inside, so many bytes are ours.

        A payload larger than the budget gets all of it: it is alone then.
        """
        # A turn is any object of its own: the deque is the order in which lanes asked.
        share, turn = min(payload_bytes, self._bytes_max), object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and self._free >= share)
            self._waiting.popleft()
            self._free -= share
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += share
                self._changed.notify_all()


class Nudges:
    """How many NOTIFYs have come.

    A lane reads the count before it looks at the outbox, so it misses none.
    """

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def add(self) -> None:
        """One has come, or a stop: lanes that wait wake up."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, seconds: float, seen: int) -> None:
        """Returns at a nudge after the `seen`-th, or at the time."""
        with self._changed:
            self._changed.wait_for(lambda: self.count != seen, timeout=seconds)


@dataclass
class RelayRuntime:
    """What the lanes of one relay process share."""

    database: Database
    sink: Sink
    rows_max: int
    poll_seconds: float
    backoff: Backoff
    listeners: Listeners
    until_empty: bool
    patience: Patience = field(default_factory=Patience)
    # Four beats in the time after which the server would end the session: three may come late.
    beat_seconds: float = IDLE_SECONDS_MAX / 4
    batch_seconds: float = BATCH_SECONDS
    numbering_seconds: float = NUMBERING_SECONDS
    budget: PayloadBudget = field(default_factory=PayloadBudget)
    nudges: Nudges = field(default_factory=Nudges)
    stopping: threading.Event = field(default_factory=threading.Event)
    _numbering_due: float = 0.0

    def delay_seconds(self, attempts: int) -> float:
        """How long a row waits after so many failed attempts."""
        return min(self.backoff.seconds_after(attempts), DELAY_SECONDS_MAX)

    @property
    def delay_seconds_max(self) -> float:
        """The longest that a row may wait.

        A retry that is further ahead was written by a clock that was ahead.
        """
        return min(self.backoff.seconds_max, DELAY_SECONDS_MAX)

    def check_numbering(self, conn: Connection[Any]) -> None:
        """Raises `UsageError` when positions were reset.

        Asked at the first call and then once in a while: a failover, which can reset them, may happen while the relay runs.
        """
        now = time.monotonic()
        if now >= self._numbering_due:
            self._numbering_due = now + self.numbering_seconds
            check_numbering(conn, schema=self.database.schema)
