"""The schema: plain SQL migrations, one row per version, and the partitions of inbox and intents."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import psycopg
from psycopg import Connection, sql
from psycopg.pq import TransactionStatus

from onceward.database import tuples
from onceward.errors import SchemaMismatch, UsageError
from onceward.message import uuid7_at
from onceward.statements import SCHEMA_DEFAULT, check_schema_name, statements

PARTITIONED: Final = ("inbox", "intents")
DAYS_AHEAD: Final = 3
LOCK_CLASS: Final = 0x6F6E6365  # "once": the first half of every advisory lock of ours
_LOCK_MIGRATE: Final = 1  # of the whole database: two schemas that are made at once would meet in the catalogue
LOCK_UPKEEP: Final = 2
LOCK_RETIRE: Final = 3


class Migration(NamedTuple):
    """One file of `migrations/`: its number, its name, its text."""

    version: int
    name: str
    text: str


def lock_key(schema: str, purpose: int) -> tuple[int, int]:
    """The advisory lock of this schema for this purpose: upkeep of one schema does not wait for that of another."""
    digest = sha256(f"{purpose} {schema}".encode()).digest()
    return LOCK_CLASS, int.from_bytes(digest[:4], "big", signed=True)


def migrations() -> list[Migration]:
    """All migrations that this code knows, oldest first."""
    entries = [entry for entry in files("onceward.migrations").iterdir() if entry.name.endswith(".sql")]
    parsed = [Migration(int(e.name[:4]), e.name[5:-4], e.read_text(encoding="utf-8")) for e in entries]
    return sorted(parsed)


def migrate(conn: Connection[Any], schema: str = SCHEMA_DEFAULT) -> list[Migration]:
    """The schema is at this code's version, with partitions for today; returns what had to be applied.

    Safe to run twice, and by two at once: all of it is one transaction under one advisory lock.
    Crash anywhere in it: nothing happened; run it again.
    Raises `SchemaMismatch` when the database is newer than this code.
    """
    check_schema_name(schema)
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise UsageError("migrate() commits on its own: call it outside a transaction")
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, _LOCK_MIGRATE))
        conn.execute("SET LOCAL lock_timeout TO '10s'")
        _create_history(conn, schema)
        applied = list(_apply_missing(conn, schema))
        make_partitions(conn, schema)
    return applied


def _create_history(conn: Connection[Any], schema: str) -> None:
    conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    conn.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (version integer PRIMARY KEY, name text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        ).format(sql.Identifier(schema, "migrations"))
    )


def _apply_missing(conn: Connection[Any], schema: str) -> Iterator[Migration]:
    there = _version(conn, schema)
    known = migrations()
    _refuse_newer(there, known[-1].version, schema)
    for migration in known:
        if migration.version > there:
            conn.execute(migration.text.replace("{schema}", schema).encode())
            statement = sql.SQL("INSERT INTO {} (version, name) VALUES (%s, %s)")
            conn.execute(statement.format(sql.Identifier(schema, "migrations")), (migration.version, migration.name))
            yield migration


def _version(conn: Connection[Any], schema: str) -> int:
    statement = sql.SQL("SELECT coalesce(max(version), 0) FROM {}").format(sql.Identifier(schema, "migrations"))
    return int(tuples(conn, statement)[0][0])


def check_schema(conn: Connection[Any], schema: str = SCHEMA_DEFAULT) -> None:
    """Raises `SchemaMismatch` unless the database's schema is exactly the one that this code was written for."""
    check_schema_name(schema)
    wanted = migrations()[-1].version
    try:
        there = _version(conn, schema)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMismatch(f"the schema {schema!r} is not in this database: run `onceward migrate`") from None
    except psycopg.errors.InsufficientPrivilege:
        raise UsageError(
            f"the role {conn.info.user!r} may not use the schema {schema!r}; as its owner, run:\n"
            f'  GRANT USAGE ON SCHEMA {schema} TO "{conn.info.user}";\n'
            f'  GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "{conn.info.user}";\n'
            f"or, right by right, what docs/database.md lists"
        ) from None
    _refuse_newer(there, wanted, schema)
    if there < wanted:
        raise SchemaMismatch(
            f"the schema {schema!r} is at version {there}, this code needs {wanted}: run `onceward migrate`"
        )


def _refuse_newer(there: int, wanted: int, schema: str) -> None:
    if there > wanted:
        raise SchemaMismatch(
            f"the schema {schema!r} is at version {there}, newer than this code ({wanted}): deploy newer code"
        )


# ---- partitions: one day each, of the id's own time ------------------------------------------------------------------


def partition_name(table: str, day: date) -> str:
    return f"{table}_p{day:%Y%m%d}"


def partition_day(name: str) -> date | None:
    """The day of a partition, from its name; None for any other table."""
    _, _, digits = name.rpartition("_p")
    try:
        return datetime.strptime(digits, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def partition_bounds(day: date) -> tuple[UUID, UUID]:
    """The smallest UUIDv7 of this day (UTC), and that of the next."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first = int(midnight.timestamp() * 1000)
    return uuid7_at(first), uuid7_at(first + 86_400_000)


def make_partitions(conn: Connection[Any], schema: str = SCHEMA_DEFAULT, *, days: list[date] | None = None) -> list[str]:
    """Partitions of inbox and intents exist for `days` (default: yesterday to three days ahead); returns the new ones.

    Not for a day at or before the youngest that was ever retired: what was finished there would be taken as new.
    CREATE TABLE (LIKE) and then ATTACH: a CREATE TABLE ... PARTITION OF would wait behind every open handler, and
    everybody else behind it. Crash in it: nothing is made, or a whole partition.
    """
    wanted = days if days is not None else _days_around(conn)
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock_key(schema, LOCK_UPKEEP))
        conn.execute("SET LOCAL lock_timeout TO '2s'")
        retired = cast("date | None", tuples(conn, statements(schema)["retired_hold"])[0][0])
        there = {name for name, _ in attached(conn, schema)}
        pairs = [(table, day) for day in wanted if retired is None or day > retired for table in PARTITIONED]
        missing = [(table, day) for table, day in pairs if partition_name(table, day) not in there]
        return [_make_partition(conn, schema, table, day) for table, day in missing]


def make_partition_for(conn: Connection[Any], message_id: str, schema: str = SCHEMA_DEFAULT) -> list[str]:
    """The partitions that this UUIDv7 falls into exist, unless its day was retired."""
    return make_partitions(conn, schema, days=[day_of(UUID(message_id))])


def day_of(message_id: UUID) -> date:
    """The day (UTC) of this UUIDv7's own time."""
    return datetime.fromtimestamp((message_id.int >> 80) / 1000, UTC).date()


def _days_around(conn: Connection[Any]) -> list[date]:
    today = database_now(conn).date()
    return [today + timedelta(days=offset) for offset in range(-1, DAYS_AHEAD + 1)]


def _make_partition(conn: Connection[Any], schema: str, table: str, day: date) -> str:
    name = partition_name(table, day)
    create = sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL)")
    conn.execute(create.format(sql.Identifier(schema, name), sql.Identifier(schema, table)))
    for (owner,) in tuples(conn, statements(schema)["partition_owner"], {"table": f"{schema}.{table}"}):
        change = sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(schema, name), sql.Identifier(owner))
        conn.execute(change)
    conn.execute(attach(schema, table, day))
    return name


def attach(schema: str, table: str, day: date) -> sql.Composed:
    """The statement that makes this day's table a partition of `table`."""
    low, high = partition_bounds(day)
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
        sql.Identifier(schema, table),
        sql.Identifier(schema, partition_name(table, day)),
        sql.Literal(str(low)),
        sql.Literal(str(high)),
    )


def attached(conn: Connection[Any], schema: str) -> list[tuple[str, bool]]:
    """(name, its detaching is half done) of every partition of inbox and intents."""
    rows = tuples(conn, statements(schema)["partitions_attached"], {"schema": schema, "tables": list(PARTITIONED)})
    return [(row[0], row[1]) for row in rows]


def database_now(conn: Connection[Any]) -> datetime:
    """The database's clock, in UTC: the only clock that decides anything."""
    row = tuples(conn, "SELECT clock_timestamp() AT TIME ZONE 'UTC'")[0]
    return cast("datetime", row[0]).replace(tzinfo=UTC)
