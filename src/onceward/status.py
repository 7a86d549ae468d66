"""What waits, what fails and what needs a person, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from psycopg import Connection

from onceward.database import dicts
from onceward.day_partitions import attached, days_of
from onceward.handler_times import HandlerTimes, read_handler_times
from onceward.statements import SCHEMA_DEFAULT, statements

LATELY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatus:
    """How many rows are in the outbox. Ages in seconds; None: there is no such row."""

    waiting: int
    failing: int
    set_aside: int
    oldest_seconds: float | None  # of what is still to be sent
    oldest_set_aside_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedStatus:
    """How many messages of a consumer are parked for a reason, and since when the oldest is."""

    consumer: str
    reason: str  # as it is stored: newer code may have written one that this code does not know
    count: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionsStatus:
    """How many decisions of a kind people made within the last day."""

    about: str
    decision: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of one schema. `newest_day`: the last day that has its partitions; None: there are no partitions.

    `handlers`: how long those of each consumer took within the last seven days.
    """

    outbox: OutboxStatus
    parked: Sequence[ParkedStatus]
    decisions: Sequence[DecisionsStatus]
    handlers: Sequence[HandlerTimes]
    newest_day: date | None

    @property
    def needs_person(self) -> bool:
        """Something is held until somebody decides."""
        return bool(self.outbox.set_aside or self.parked)


def read_status(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> Status:
    """The state of this schema now. It reads the outbox and the parked messages once each, from end to end."""
    texts = statements(schema)
    lately = {"seconds": LATELY_SECONDS}
    days = days_of(name for name, half_detached in attached(conn, schema=schema) if not half_detached)
    return Status(
        outbox=read_outbox_status(conn, schema=schema),
        parked=[ParkedStatus(**row) for row in dicts(conn, texts["status_parked"])],
        decisions=[DecisionsStatus(**row) for row in dicts(conn, texts["status_decisions"], lately)],
        handlers=read_handler_times(conn, schema=schema),
        newest_day=max(days, default=None),
    )


def read_outbox_status(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> OutboxStatus:
    """The state of the outbox alone: of all tables, a relay's role may read no other."""
    [row] = dicts(conn, statements(schema)["status_outbox"])
    return OutboxStatus(**row)
