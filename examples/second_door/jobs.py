"""A queue that is a plain table, and the sink by which Onceward's relay fills it from the outbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.types.json import Jsonb

from onceward import Message, Settlement, Traits

VISIBILITY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """One arrival of a message. `deliveries`: how often it has come, this time included."""

    id: int
    headers: Mapping[str, str]
    body: bytes
    deliveries: int


def receive(conn: Connection[Any]) -> Job | None:
    """The oldest job that is visible, hidden from now on for `VISIBILITY_SECONDS`; None when there is none."""
    row = conn.execute(
        """
        UPDATE jobs SET deliveries = deliveries + 1, visible_at = clock_timestamp() + make_interval(secs => %s)
         WHERE id = (SELECT id FROM jobs WHERE visible_at <= clock_timestamp() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id, headers, body, deliveries
        """,
        (VISIBILITY_SECONDS,),
    ).fetchone()
    return Job(*row) if row is not None else None


def settle(conn: Connection[Any], job: Job, settlement: Settlement) -> None:
    """The job is gone, or comes again after the settlement's delay; `leave`: when it becomes visible by itself."""
    match settlement.action:
        case "ack":
            conn.execute("DELETE FROM jobs WHERE id = %s", (job.id,))
        case "release":
            conn.execute(
                "UPDATE jobs SET visible_at = clock_timestamp() + make_interval(secs => %s) WHERE id = %s",
                (settlement.delay_seconds, job.id),
            )
        case "leave":
            pass


def set_aside(conn: Connection[Any], job: Job, reason: str) -> None:
    """The job is a dead letter, with its reason, and no longer in the queue."""
    with conn.transaction():
        conn.execute(
            "INSERT INTO dead_letters (job_id, headers, body, reason) VALUES (%s, %s, %s, %s)",
            (job.id, Jsonb(job.headers), job.body, reason),
        )
        conn.execute("DELETE FROM jobs WHERE id = %s", (job.id,))


class JobSink:
    """Where the relay sends what is in the outbox: the same table."""

    traits = Traits(lease_seconds=VISIBILITY_SECONDS, settle_fenced=False, counts_deliveries=True)

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True)

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """All of them are jobs, in one transaction: None for each. What raises is sent again by the relay."""
        with self._conn.transaction(), self._conn.cursor() as cursor:
            rows = [(Jsonb(headers), body) for headers, body in (message.to_wire() for message in messages)]
            cursor.executemany("INSERT INTO jobs (headers, body) VALUES (%s, %s)", rows)
        return [None] * len(messages)

    def close(self) -> None:
        self._conn.close()
