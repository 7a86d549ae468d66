"""`onceward migrate` and `onceward upkeep`: the tables, and their partitions."""

from __future__ import annotations

from typing import Any, Final

from onceward.commands.arguments import add_database, add_json, add_schema, connected, say, say_json

MIGRATE: Final = """\
examples:
  onceward migrate --database postgresql://app@db/shop
  ONCEWARD_DATABASE=postgresql://app@db/shop onceward migrate --json

Safe to run twice, and by two at once: run it in every deploy, before the new code starts.
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
        ("migrate", "bring our tables to this version", MIGRATE, migrate),
        ("upkeep", "make the coming partitions, drop the past ones", UPKEEP, upkeep),
    ):
        parser = commands.add_parser(name, help=what, description=f"{what.capitalize()}.", epilog=epilog)
        add_database(parser)
        add_schema(parser)
        add_json(parser)
        parser.set_defaults(perform=perform)


def migrate(given: Any) -> int:
    from onceward.schema import migrate as bring_up  # noqa: PLC0415
    from onceward.schema import migrations  # noqa: PLC0415

    with connected(given.database) as conn:
        applied = bring_up(conn, schema=given.schema)
    version = migrations()[-1].version
    if given.json:
        names = [f"{migration.version:04d}_{migration.name}" for migration in applied]
        say_json({"schema": given.schema, "version": version, "applied": names})
        return 0
    for migration in applied:
        say(f"applied {migration.version:04d}_{migration.name}")
    say(f"schema {given.schema!r} is at version {version}" + ("" if applied else ", nothing was to be done"))
    return 0


def upkeep(given: Any) -> int:
    from onceward.partitions import upkeep as keep_up  # noqa: PLC0415

    with connected(given.database, schema=given.schema) as conn:
        kept_up = keep_up(conn, given.schema)
    if given.json:
        held_back = kept_up.held_back.name.lower() if kept_up.held_back is not None else None
        done = {"made": kept_up.made, "dropped": kept_up.dropped, "kept": kept_up.kept, "held_back": held_back}
        say_json({"schema": given.schema, **done})
        return 0
    say(f"made {len(kept_up.made)} partitions, dropped {len(kept_up.dropped)}")
    if kept_up.held_back is not None:
        say(f"no day was retired: {kept_up.held_back.value}")
    for day, count in kept_up.kept.items():
        say(f"kept {day}: {count} messages there are not finished (see `onceward parked list`)")
    return 0
