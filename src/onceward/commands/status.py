"""`onceward status`: one screen of what waits, what fails and what needs a person."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import add_database, add_json, add_schema, connected, say, say_json
from onceward.commands.table import duration, print_table

if TYPE_CHECKING:
    from onceward.status import Status

STATUS: Final = """\
examples:
  onceward status
  onceward status --strict              exit code 1 where something waits for a person
  onceward status --json
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="what waits, what fails, what needs a person",
        description="What waits, what fails, and what needs a person.",
        epilog=STATUS,
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 where rows are set aside or messages are parked")
    add_database(parser)
    add_schema(parser)
    add_json(parser)
    parser.set_defaults(perform=status_command)


def status_command(arguments: Any) -> int:
    from onceward.status import read_status  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        status = read_status(conn, schema=arguments.schema)
    if arguments.json:
        say_json({"schema": arguments.schema, **asdict(status), "needs_person": status.needs_person})
    else:
        _print_status(status)
    return 1 if arguments.strict and status.needs_person else 0


def _print_status(status: Status) -> None:
    from onceward.doctor.diagnosis import spoken  # noqa: PLC0415

    outbox = status.outbox
    say(f"outbox       {outbox.waiting} waiting, {outbox.failing} failing{_since(outbox.oldest_seconds)}")
    if outbox.set_aside:
        say(f"set aside    {outbox.set_aside}{_since(outbox.oldest_set_aside_seconds)}: `onceward outbox list --set-aside`")
    say(f"parked       {sum(parked.count for parked in status.parked)}")
    if status.parked:
        lines = [
            (parked.consumer, parked.reason, str(parked.count), duration(parked.oldest_seconds)) for parked in status.parked
        ]
        print_table(("  CONSUMER", "REASON", "COUNT", "OLDEST"), [(f"  {name}", *rest) for name, *rest in lines])
    decided = ", ".join(f"{known.count} x {known.decision} ({known.about})" for known in status.decisions)
    say(f"decisions    {decided or 'none'} within a day")
    say(f"handlers     {'' if status.handlers else 'none measured within 7 days'}".rstrip())
    for times in status.handlers:
        figures = f"average {spoken(times.average_seconds)}, p99 {spoken(times.p99_seconds)}, {times.handled} within 7 days"
        say(f"  {times.consumer}: {figures}")
    say(f"partitions   {f'made until {status.newest_day}' if status.newest_day else 'none: run `onceward upkeep`'}")


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f", the oldest for {duration(seconds)}"
