"""What a role may do with our tables.

That of a session is asked at the start, and answered with the GRANTs that are missing. Four roles that have just what they
need are made by `roles.sql`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.resources import files
from typing import Any, Final

import psycopg
from psycopg import Connection, sql

from onceward.database import check_outside_transaction, one_tuple
from onceward.day_partitions import PARTITIONED, attached, database_now, partition_name
from onceward.errors import UsageError
from onceward.statements import SCHEMA_DEFAULT, check_schema_name, statements

logger = logging.getLogger("onceward")
_TAKEN: Final = ("SELECT", "INSERT", "UPDATE")
# What a consumer needs; roles.sql grants the same.
NEEDED: Final = {
    "inbox": _TAKEN,
    "intents": _TAKEN,
    "attempts": _TAKEN,
    "parked": _TAKEN,
    "consumers": _TAKEN,
    "handler_times": (*_TAKEN, "DELETE"),  # it forgets its own old days
    "outbox": ("INSERT", "SELECT"),
    "migrations": ("SELECT",),
    "retired": ("SELECT",),
}
# What upkeep needs besides, where the consumer does it: it retires days, and forgets windows and attempts.
NEEDED_BY_UPKEEP: Final = {"retired": ("UPDATE",), "consumers": ("DELETE",), "attempts": ("DELETE",)}
TABLES: Final = (*NEEDED, "decisions")
SEQUENCES: Final = ("outbox_position_seq", "decisions_id_seq")
KINDS: Final = ("consumer", "relay", "upkeep", "reader")
LOCK_SECONDS_MAX: Final = 10
_PREFIX: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")


def check_rights(conn: Connection[Any], *, schema: str, upkeep: bool) -> None:
    """Raises `UsageError` unless this role may do what a consumer does.

    With `upkeep`, also make and drop partitions.
    Without `upkeep` another role must do that: an ERROR line is logged when tomorrow's partition is missing.
    """
    needed = _pairs(NEEDED) + (_pairs(NEEDED_BY_UPKEEP) if upkeep else [])
    tables, rights = zip(*needed, strict=True)
    # Asked of the catalogue and not tried: a write that is tried may succeed, and then it is there.
    row = one_tuple(conn, statements(schema)["rights"], {"schema": schema, "tables": [*tables], "rights": [*rights]})
    if row is None:
        return  # no such schema: the check of its version has the better message
    role, may_use, may_create, missing, owners = row
    not_upkeeps = [needed[place - 1] for place in missing if place <= len(_pairs(NEEDED))]
    if not may_use or not_upkeeps:
        raise UsageError(
            f"the role {role!r} may not use all tables of schema {schema!r}; as their owner, run:"
            + ("" if may_use else f"\n  GRANT USAGE ON SCHEMA {_quoted(conn, schema)} TO {_quoted(conn, role)};")
            + _grants(conn, schema, not_upkeeps, role)
        )
    if not upkeep:
        _log_if_late(conn, schema)
    elif owners or not may_create or missing:
        create = "" if may_create else f"\n  GRANT CREATE ON SCHEMA {_quoted(conn, schema)} TO {_quoted(conn, role)};"
        lacking = create + _grants(conn, schema, [needed[place - 1] for place in missing], role)
        raise UsageError(_no_upkeep(conn, schema, role, owners, lacking))


def _pairs(needed: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(table, right) for table, rights in needed.items() for right in rights]


def _grants(conn: Connection[Any], schema: str, missing: Sequence[tuple[str, str]], role: str) -> str:
    """A GRANT for each set of rights, with all the tables that lack just these."""
    by_table: dict[str, list[str]] = {}
    for table, right in missing:
        by_table.setdefault(table, []).append(right)
    by_rights: dict[str, list[str]] = {}
    for table, lacking in by_table.items():
        by_rights.setdefault(", ".join(lacking), []).append(table)
    return "".join(_grant(conn, rights, schema, tables, role) for rights, tables in by_rights.items())


def _grant(conn: Connection[Any], rights: str, schema: str, tables: Sequence[str], role: str) -> str:
    named = sql.SQL(", ").join(sql.Identifier(schema, table) for table in tables)
    return f"\n  GRANT {rights} ON {named.as_string(conn)} TO {_quoted(conn, role)};"


def _no_upkeep(conn: Connection[Any], schema: str, role: str, owners: Sequence[str], lacking: str) -> str:
    """`lacking`: the GRANTs that suffice where the role is a member of all `owners` already (or there are none)."""
    # Whoever owns these tables has the other rights, too: the owner of all of ours, or the role made for upkeep.
    allow = "".join(f"\n  GRANT {_quoted(conn, owner)} TO {_quoted(conn, role)};" for owner in owners) or lacking
    return (
        f"the role {role!r} may not make and drop the partitions of schema {schema!r}, without which messages are left in "
        f"the queue days from now. Either allow it, as the owner:{allow}\nor start without upkeep (upkeep=False; "
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


def role_names(prefix: str) -> tuple[str, ...]:
    """The roles that `roles_sql` makes: consumer, relay, upkeep and reader, each behind the prefix.

    Raises `UsageError` for a prefix that would need quoting.
    """
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(
            f"the prefix {prefix!r} of roles: use lower-case letters, digits and _, at most 48, no digit first"
        )
    return tuple(f"{prefix}_{kind}" for kind in KINDS)


def roles_sql(*, schema: str = SCHEMA_DEFAULT, prefix: str = SCHEMA_DEFAULT) -> str:
    """The script that makes the four roles, and gives each its rights; without a transaction around it.

    Raises `UsageError` for a name that would need quoting.
    """
    check_schema_name(schema)
    places = {
        "{schema}": schema,
        "{prefix}": prefix,
        "{roles}": ", ".join(role_names(prefix)),
        "{tables}": ", ".join(f"{schema}.{table}" for table in TABLES),
        "{sequences}": ", ".join(f"{schema}.{sequence}" for sequence in SEQUENCES),
    }
    text = files("onceward.migrations").joinpath("roles.sql").read_text(encoding="utf-8")
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def make_roles(conn: Connection[Any], *, schema: str = SCHEMA_DEFAULT, prefix: str = SCHEMA_DEFAULT) -> tuple[str, ...]:
    """The four roles exist, each with its rights on the tables of this schema and no other. Returns their names.

    The schema must be at this code's version. Crash in it: nothing happened; run it again.
    Raises `UsageError` when this role may not create roles or does not own the tables.
    """
    check_outside_transaction(conn, "make_roles()")
    script = roles_sql(schema=schema, prefix=prefix)
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout TO '{LOCK_SECONDS_MAX}s'".encode())
            conn.execute(script.encode())
    except psycopg.errors.InsufficientPrivilege as error:
        raise UsageError(
            f"this role may not make roles, or does not own the tables of {schema!r} ({error.diag.message_primary}): let a "
            f"superuser run what `onceward migrate --roles {prefix} --sql --schema {schema}` prints"
        ) from error
    return role_names(prefix)
