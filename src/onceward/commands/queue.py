"""`onceward queue`: the queues that `run` reads and `relay` fills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import add_database, add_json, connected, dsn_of, say, say_json
from onceward.errors import UsageError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from onceward.transports.pgmq import Queue

QUEUE: Final = """\
examples:
  onceward queue create orders bookings    pgmq too, where it is missing
  onceward queue create orders --sql       the same as SQL, for a DBA to run
  onceward queue create sqs://orders amqp://localhost?queue=orders kafka://localhost:9092/orders
  onceward queue list
  onceward queue list --json

At a broker, a queue is made as our adapters want it: durable, and replicated
where the broker does that. What your operations team makes is as good, if
`onceward queue create` finds it there already. `list` and --sql know pgmq's.

pgmq is tables and functions in Postgres, and needs no extension. Safe to run
twice, and by two at once. The role that runs it owns what it makes.
"""
SCRIPT: Final = """\
-- pgmq, and the queues, in one transaction. Where pgmq is in the database
-- already, nothing is changed and an error says so: run only the last lines
-- there, from the first `SELECT pgmq.create`.
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "queue", help="queues: create, list", description="Queues: made at any server; listed of pgmq.", epilog=QUEUE
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    creating = verbs.add_parser(
        "create",
        help="make queues, and install pgmq where it is missing",
        description="Make queues, and install pgmq where it is missing.",
        epilog=QUEUE,
    )
    creating.add_argument("names", metavar="NAME", nargs="+", help="a queue, or its URL; there may be several")
    creating.add_argument("--sql", action="store_true", help="print the SQL, and change nothing: no database is asked")
    listing = verbs.add_parser("list", help="the queues, with what is in them", description="The queues.", epilog=QUEUE)
    for verb, perform in ((creating, create), (listing, list_)):
        _add_databases(verb)
        add_json(verb)
        verb.set_defaults(perform=perform)


def _add_databases(parser: ArgumentParser) -> None:
    parser.add_argument("--queue-database", metavar="DSN", help="where the queues are (default: the same database)")
    add_database(parser)


def _named(arguments: Namespace) -> tuple[str | None, str]:
    """The DSN of the queues' database, and the option that names it."""
    if arguments.queue_database:
        return arguments.queue_database, "--queue-database"
    return arguments.database, "--database"


def create(arguments: Namespace) -> int:
    from onceward.queue_urls import PgmqQueue, parse  # noqa: PLC0415
    from onceward.transports import pgmq  # noqa: PLC0415

    value, option = _named(arguments)
    dsn = dsn_of(value, option=option)
    queues = {name: parse(name, database=dsn) for name in arguments.names}
    in_postgres = [queue.name for queue in queues.values() if isinstance(queue, PgmqQueue)]
    if arguments.sql:
        if len(in_postgres) != len(queues):
            raise UsageError("--sql is for pgmq queues: those of a broker are not made by SQL")
        say(SCRIPT + pgmq.creation_sql(in_postgres))
        return 0
    installed = False
    if in_postgres:
        with connected(value, option=option) as conn:
            installed = pgmq.install(conn)
    made = [name for name, queue in queues.items() if queue.create()]
    if arguments.json:
        say_json({"pgmq_installed": installed, "created": made})
        return 0
    if installed:
        say("pgmq is installed")
    for name in queues:
        say(f"queue {name!r} is made" if name in made else f"queue {name!r} was there already, nothing to do")
    return 0


def list_(arguments: Namespace) -> int:
    from onceward.transports import pgmq  # noqa: PLC0415

    value, option = _named(arguments)
    with connected(value, option=option) as conn:
        queues = pgmq.list_queues(conn)
    if arguments.json:
        say_json([queue._asdict() for queue in queues])
        return 0
    for queue in queues:
        say(_line(queue))
    if not queues:
        say("there is no queue: make one with `onceward queue create NAME`")
    return 0


def _line(queue: Queue) -> str:
    oldest = "" if queue.oldest_seconds is None else f", the oldest {queue.oldest_seconds} s old"
    unlogged = "" if queue.durable else "  UNLOGGED: a crash of its server empties it"
    return f"{queue.name}  {queue.messages} messages{oldest}{unlogged}"
