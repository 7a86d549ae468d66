"""`onceward migrate` and `onceward upkeep`: the tables, and their partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import add_database, add_json, add_schema, connected, say, say_json, whole
from onceward.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

MIGRATE: Final = """\
examples:
  onceward migrate --database postgresql://app@db/shop
  ONCEWARD_DATABASE=postgresql://app@db/shop onceward migrate --json
  onceward migrate --sql > onceward.sql                  # for a DBA to run
  onceward migrate --sql --from-version 3 > upgrade.sql
  onceward migrate --roles                               # and four roles with just the rights that they need
  onceward migrate --roles shop --sql > roles.sql        # shop_consumer, shop_relay, shop_upkeep, shop_reader, for a DBA

Safe to run twice, and by two at once: run it in every deploy, before the new code starts.
"""
PREFIX_DEFAULT: Final = "onceward"
SCRIPT: Final = """\
-- Run this as the role that is to own the tables. Then make the partitions of
-- the coming days: `onceward upkeep --schema {schema}`, as the same role.
"""
UPKEEP: Final = """\
examples:
  onceward upkeep
  onceward upkeep --json

Makes the partitions of the next days, and drops those past the longest dedup window in which all is done. `onceward run`
does the same by itself, hourly; run it from cron where no consumer runs for days.
"""


def add_commands(commands: Any) -> None:
    for name, what, epilog, perform in (
        ("migrate", "bring our tables to this version", MIGRATE, migrate_command),
        ("upkeep", "make the coming partitions, drop the past ones", UPKEEP, upkeep_command),
    ):
        parser = commands.add_parser(name, help=what, description=f"{what.capitalize()}.", epilog=epilog)
        add_database(parser)
        add_schema(parser)
        add_json(parser)
        parser.set_defaults(perform=perform)
        if name == "migrate":
            parser.add_argument(
                "--sql", action="store_true", help="print the SQL, and change nothing: no database is asked"
            )
            parser.add_argument(
                "--from-version",
                type=whole(0),
                metavar="N",
                help="with --sql: the schema is at version N (default: 0, not there)",
            )
            parser.add_argument(
                "--roles",
                nargs="?",
                const=PREFIX_DEFAULT,
                metavar="PREFIX",
                help="also the roles PREFIX_consumer, _relay, _upkeep and _reader with their rights (default: onceward); "
                "with --sql, only these",
            )


def migrate_command(arguments: Namespace) -> int:
    from onceward.rights import make_roles, roles_sql  # noqa: PLC0415
    from onceward.schema import migrate, migration_sql, migrations  # noqa: PLC0415

    if arguments.roles is not None and arguments.from_version is not None:
        raise UsageError("--from-version is of the tables: the roles' script is the same from every version")
    if arguments.roles is not None and arguments.sql:
        say(f"BEGIN;\n\n{roles_sql(schema=arguments.schema, prefix=arguments.roles)}\nCOMMIT;")
        return 0
    if arguments.sql:
        script = migration_sql(schema=arguments.schema, from_version=arguments.from_version or 0)
        say(f"{SCRIPT.format(schema=arguments.schema)}{script}".rstrip())
        return 0
    if arguments.from_version is not None:
        raise UsageError("--from-version is of --sql: without that, the database says at which version it is")
    with connected(arguments.database) as conn:
        applied = migrate(conn, schema=arguments.schema)
        roles = () if arguments.roles is None else make_roles(conn, schema=arguments.schema, prefix=arguments.roles)
    version = migrations()[-1].version
    if arguments.json:
        names = [f"{migration.version:04d}_{migration.name}" for migration in applied]
        say_json({"schema": arguments.schema, "version": version, "applied": names, "roles": roles})
        return 0
    for migration in applied:
        say(f"applied {migration.version:04d}_{migration.name}")
    say(f"schema {arguments.schema!r} is at version {version}" + ("" if applied else ", nothing to do"))
    if roles:
        say(f"the roles {', '.join(roles)} have their rights; make your own roles members: GRANT {roles[0]} TO ...")
    return 0


def upkeep_command(arguments: Namespace) -> int:
    from onceward.day_partitions import upkeep  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        result = upkeep(conn, schema=arguments.schema)
    skipped = result.retire_skipped
    if arguments.json:
        # The keys are a contract with programs: they stay as they are, whatever the fields are called.
        report = {"made": result.made, "dropped": result.dropped, "kept": result.unfinished, "pruned": result.pruned}
        say_json({"schema": arguments.schema, **report, "held_back": None if skipped is None else skipped.name.lower()})
        return 0
    say(f"made {len(result.made)} partitions, dropped {len(result.dropped)}")
    if result.pruned:
        say(f"pruned {result.pruned} finished messages with untimed ids: a later duplicate of one is taken as new")
    if skipped is not None:
        say(f"no day was retired: {skipped.value}")
    for day, count in result.unfinished.items():
        say(f"kept {day}: {count} messages there are not finished (see `onceward parked list`)")
    return 0
