"""What the role of a session may do with our tables.

It is asked at the start, and answered with the GRANTs that are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from psycopg import Connection, sql

from onceward.database import one_tuple
from onceward.day_partitions import PARTITIONED, attached, database_now, partition_name
from onceward.errors import UsageError
from onceward.statements import statements

logger = logging.getLogger("onceward")
WRITTEN: Final = ("inbox", "intents", "outbox", "attempts", "parked", "consumers", "handler_times")
READ: Final = ("migrations", "retired")
_DML: Final = "SELECT, INSERT, UPDATE, DELETE"


def check_rights(conn: Connection[Any], *, schema: str, upkeep: bool) -> None:
    """Raises `UsageError` unless this role may do what a consumer does.

    With `upkeep`, also make and drop partitions.
    Without `upkeep` another role must do that: an ERROR line is logged when tomorrow's partition is missing.
    """
    # Asked of the catalogue and not tried: a write that is tried may succeed, and then it is there.
    row = one_tuple(conn, statements(schema)["rights"], {"schema": schema, "written": [*WRITTEN], "read": [*READ]})
    if row is None:
        return  # no such schema: the check of its version has the better message
    role, may_use, may_create, not_written, not_read, owners = row
    if not may_use or not_written or not_read:
        raise UsageError(
            f"the role {role!r} may not use all tables of schema {schema!r}; as their owner, run:"
            + ("" if may_use else f"\n  GRANT USAGE ON SCHEMA {_quoted(conn, schema)} TO {_quoted(conn, role)};")
            + _grant(conn, _DML, schema, not_written, role)
            + _grant(conn, "SELECT", schema, not_read, role)
        )
    if not upkeep:
        _log_if_late(conn, schema)
    elif owners or not may_create:
        raise UsageError(_no_upkeep(conn, schema, role, owners))


def _grant(conn: Connection[Any], rights: str, schema: str, tables: Sequence[str], role: str) -> str:
    if not tables:
        return ""
    named = sql.SQL(", ").join(sql.Identifier(schema, table) for table in tables)
    return f"\n  GRANT {rights} ON {named.as_string(conn)} TO {_quoted(conn, role)};"


def _no_upkeep(conn: Connection[Any], schema: str, role: str, owners: Sequence[str]) -> str:
    create = "" if owners else f"\n  GRANT CREATE ON SCHEMA {_quoted(conn, schema)} TO {_quoted(conn, role)};"
    member = "".join(f"\n  GRANT {_quoted(conn, owner)} TO {_quoted(conn, role)};" for owner in owners)
    return (
        f"the role {role!r} may not make and drop the partitions of schema {schema!r}, without which messages are left in "
        f"the queue days from now. Either allow it, as the owner:{member}{create}\nor start without upkeep (upkeep=False; "
        f"`onceward run --no-upkeep`) and run `onceward upkeep --schema {schema}` every day as the owner"
    )


def _quoted(conn: Connection[Any], name: str) -> str:
    return sql.Identifier(name).as_string(conn)


def _log_if_late(conn: Connection[Any], schema: str) -> None:
    tomorrow = database_now(conn).date() + timedelta(days=1)
    existing = {name for name, half_detached in attached(conn, schema=schema) if not half_detached}
    missing = [name for table in PARTITIONED if (name := partition_name(table, tomorrow)) not in existing]
    if missing:
        logger.error(
            "partition %s is missing: from midnight (UTC) on, messages will stay in the queue; run "
            "`onceward upkeep --schema %s` as the owner, now and daily",
            " and ".join(missing), schema,
        )  # fmt: skip
