"""The schema: plain SQL migrations, one row per version."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection, sql

from onceward.database import check_outside_transaction
from onceward.day_partitions import LOCK_CLASS, make_partitions
from onceward.errors import SchemaMismatch, UsageError
from onceward.statements import SCHEMA_DEFAULT, check_schema_name
from onceward.steps import Steps, all_rows, carry_out

_LOCK_MIGRATE: Final = 1  # of the whole database: two schemas that are made at once would meet in the catalogue
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout TO '10s'"


class Migration(NamedTuple):
    """One file of `migrations/`: its number, its name, its text."""

    version: int
    name: str
    text: str


def migrations() -> list[Migration]:
    """All migrations that this code knows, oldest first."""
    # Their names begin with their number: roles.sql is none of them.
    entries = [entry for entry in files("onceward.migrations").iterdir() if entry.name[:4].isdigit()]
    parsed = [Migration(int(e.name[:4]), e.name[5:-4], e.read_text(encoding="utf-8")) for e in entries]
    return sorted(parsed)


def migrate(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> list[Migration]:
    """The schema is at this code's version, with partitions for today.

    Returns what had to be applied.
    Safe to run twice, and by two at once.
    Crash anywhere in it: nothing happened; run it again.
    Raises `SchemaMismatch` when the database is newer than this code.
    """
    check_schema_name(schema)
    check_outside_transaction(conn, "migrate()")
    # One transaction and one lock: of two deploys at once the second waits, and finds nothing left to do.
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, _LOCK_MIGRATE))
        conn.execute(_LOCK_TIMEOUT)
        for statement in _history(schema):
            conn.execute(statement)
        applied = list(_apply_missing(conn, schema))
        make_partitions(conn, schema=schema)
    return applied


def migration_sql(*, schema: str = SCHEMA_DEFAULT, from_version: int = 0) -> str:
    """One script, in one transaction, after which the schema is at this code's version.

    `from_version`: where the schema is now; 0 where it is not there. Partitions are not in it, because their days depend on
    when it is run: `onceward upkeep`, or the first consumer that starts, makes them.
    Raises `UsageError` for a version that this code does not know.
    """
    check_schema_name(schema)
    known = migrations()
    if not 0 <= from_version <= known[-1].version:
        raise UsageError(f"there is no version {from_version} of our schema: this code knows 1 to {known[-1].version}")
    lock = sql.SQL("SELECT pg_advisory_xact_lock({}, {})").format(LOCK_CLASS, _LOCK_MIGRATE)
    parts = ["BEGIN;", f"{lock.as_string(None)};", f"{_LOCK_TIMEOUT};"]
    parts += [f"{part.as_string(None)};" for part in _history(schema)]
    for migration in known[from_version:]:
        parts += [_text(migration, schema).strip(), f"{_applied(migration, schema).as_string(None)};"]
    return "\n\n".join([*parts, "COMMIT;", ""])


def _history(schema: str) -> tuple[sql.Composed, sql.Composed]:
    """What makes the schema, and the table of its versions, where they are missing."""
    return (
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)),
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (version integer PRIMARY KEY, name text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        ).format(sql.Identifier(schema, "migrations")),
    )


def _text(migration: Migration, schema: str) -> str:
    return migration.text.replace("{schema}", schema)


def _applied(migration: Migration, schema: str) -> sql.Composed:
    """What records that this migration was applied."""
    statement = sql.SQL("INSERT INTO {} (version, name) VALUES ({}, {})")
    return statement.format(sql.Identifier(schema, "migrations"), migration.version, migration.name)


def _apply_missing(conn: Connection[Any], schema: str) -> Iterator[Migration]:
    version = carry_out(conn, _version_steps(schema))
    known = migrations()
    _refuse_newer(version, known[-1].version, schema)
    for migration in known:
        if migration.version > version:
            # As bytes: with parameters psycopg would take one statement only, and a % in the text for a placeholder.
            conn.execute(_text(migration, schema).encode())
            conn.execute(_applied(migration, schema))
            yield migration


def _version_steps(schema: str) -> Steps[int]:
    statement = sql.SQL("SELECT coalesce(max(version), 0) FROM {}").format(sql.Identifier(schema, "migrations"))
    [(version,)] = yield from all_rows(statement)
    return int(version)


def check_schema(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT) -> None:
    """Raises `SchemaMismatch` unless the schema is the one that this code was written for."""
    carry_out(conn, check_schema_steps(schema, conn.info.user))


def check_schema_steps(schema: str, user: str) -> Steps[None]:
    """`check_schema`, as steps; `user` is the role that the connection was made as."""
    check_schema_name(schema)
    needed = migrations()[-1].version
    try:
        version = yield from _version_steps(schema)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMismatch(f"the schema {schema!r} is not in this database: run `onceward migrate`") from None
    except psycopg.errors.InsufficientPrivilege:
        raise UsageError(
            f"the role {user!r} may not use the schema {schema!r}; as its owner, run:\n"
            f'  GRANT USAGE ON SCHEMA {schema} TO "{user}";\n'
            f'  GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "{user}";\n'
            f"or, right by right, what docs/database.md lists"
        ) from None
    _refuse_newer(version, needed, schema)
    if version < needed:
        raise SchemaMismatch(
            f"the schema {schema!r} is at version {version}, this code needs {needed}: run `onceward migrate`"
        )


def _refuse_newer(version: int, newest_known: int, schema: str) -> None:
    # Statements of old code on tables of new code might leave a column empty that decides something.
    if version > newest_known:
        raise SchemaMismatch(
            f"the schema {schema!r} is at version {version}, newer than this code ({newest_known}): deploy newer code"
        )
