"""A day of two months ago: its partitions, and a message in them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Final

import psycopg
from tests.support import rows
from tests.support.deliveries import order_aged

from onceward.day_partitions import attached, database_now, make_partition_for, partition_name
from onceward.message import Message

Db = psycopg.Connection[Any]
SCHEMA: Final = "onceward"
OLD_SECONDS: Final = 60 * 86_400


def partitions(db: Db) -> set[str]:
    return {name for name, _ in attached(db, schema=SCHEMA)}


def tables(db: Db) -> set[str]:
    found = db.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(inbox|intents)_p[0-9]'")
    return {row[0] for row in found}


def old_message(db: Db, state: str = "done") -> Message:
    """A message of 60 days ago, in this state, in partitions of its day."""
    message = order_aged(db, OLD_SECONDS)
    make_partition_for(db, message.id, schema=SCHEMA)
    db.execute(
        "INSERT INTO onceward.inbox (consumer, message_id, fingerprint, state) VALUES (%s, %s, '', %s)",
        (rows.CONSUMER, message.id, state),
    )
    return message


def old_day(db: Db) -> date:
    return (database_now(db) - timedelta(seconds=OLD_SECONDS)).date()


def names_of(day: date) -> set[str]:
    return {partition_name(table, day) for table in ("inbox", "intents")}
