"""A day that is past the window when the soak begins: the consumers' own upkeep must drop it while they work.

Days are long, and soaks are short. So a day of two months ago is made beforehand, with finished rows in it; that it is due
is decided by the database's clock and the consumers' own windows, as ever. No row of the days at hand may go with it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, NamedTuple

import psycopg

from onceward.day_partitions import (
    FIRST_AFTER_SECONDS,
    PARTITIONED,
    RETRY_SECONDS,
    database_now,
    make_partitions,
    partition_name,
)
from onceward.message import uuid7_at

AGE: Final = timedelta(days=60)  # the service's window is 30 days
MESSAGES: Final = 500
# Upkeep begins within half a minute of a consumer's start, and is tried again a minute after it met a killed server: a soak
# that is shorter than this may end before it.
JUDGED_AFTER_SECONDS: Final = FIRST_AFTER_SECONDS[1] + RETRY_SECONDS + 10
CONSUMERS: Final = ("payments.charge", "ledger")  # of the service

_FILL: Final = (
    (
        "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) SELECT %(consumer)s, id, '', 'done'"
        " FROM unnest(%(ids)s::uuid[]) AS id"
    ),
    (
        "INSERT INTO onceward.intents (consumer, message_id, n, name, request_fingerprint, key, state, answer)"
        " SELECT %(consumer)s, id, 1, 'charge', '', id::text, 'done', '{}' FROM unnest(%(ids)s::uuid[]) AS id"
    ),
)
_PRESENT: Final = "SELECT count(*) FROM pg_class WHERE relname = ANY (%s)"
_ROWS: Final = "SELECT consumer, count(*) FROM onceward.inbox WHERE message_id >= %s GROUP BY consumer"
# Each placed order is one message of the first consumer, and each paid one is one of the second.
_EXPECTED: Final = "SELECT count(*), count(*) FILTER (WHERE status = 'paid') FROM orders"


class Kept(NamedTuple):
    """The inbox rows of the days at hand: how many a consumer has, and for how many messages."""

    consumer: str
    rows: int
    messages: int


class DueDay:
    """The partitions of that day, full of finished rows. One thread at a time."""

    def __init__(self, database: str) -> None:
        """They are there, as if the service had been at work two months ago. No worker may be at work yet."""
        self.dropped_after_seconds: float | None = None
        self._database = database
        with psycopg.connect(database, autocommit=True) as conn:
            begin = database_now(conn) - AGE
            self._partitions = [partition_name(table, begin.date()) for table in PARTITIONED]
            self._first_id_after = uuid7_at(round((begin + timedelta(days=2)).timestamp() * 1000))
            make_partitions(conn, days=[begin.date()])
            ids = [uuid7_at(round(begin.timestamp() * 1000), n) for n in range(MESSAGES)]
            for statement in _FILL:
                conn.execute(statement.encode(), {"consumer": CONSUMERS[0], "ids": ids})

    def look(self, seconds: float) -> bool:
        """Is it gone? The first time at which it was is kept. Raises `psycopg.Error` while the server is down."""
        gone = self.dropped() == len(self._partitions)
        if gone and self.dropped_after_seconds is None:
            self.dropped_after_seconds = round(seconds, 1)
        return gone

    def dropped(self) -> int:
        """How many of its partitions are gone."""
        with psycopg.connect(self._database, autocommit=True, connect_timeout=2) as conn:
            present = conn.execute(_PRESENT.encode(), [self._partitions]).fetchone() or (0,)
        return len(self._partitions) - int(present[0])

    def kept(self) -> list[Kept]:
        """Of each consumer, what is left of the days at hand. Only when every message has been taken."""
        with psycopg.connect(self._database, autocommit=True) as conn:
            rows: dict[str, int] = dict(conn.execute(_ROWS.encode(), [self._first_id_after]).fetchall())
            messages = conn.execute(_EXPECTED.encode()).fetchone() or (0, 0)
        return [Kept(name, int(rows.get(name, 0)), int(count)) for name, count in zip(CONSUMERS, messages, strict=True)]
