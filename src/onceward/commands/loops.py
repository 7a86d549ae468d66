"""`onceward run` and `onceward relay`: the two loops, consumer in and relay out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import add_database, add_schema, answering, connected, find, seconds, warn, whole
from onceward.commands.logs import add_log, announce, log_to_stderr
from onceward.errors import UsageError
from onceward.protocol.relay import ATTEMPTS_MAX

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from onceward.consumer import Consumer
    from onceward.endpoints import SinkOrFactory, SourceOrFactory
    from onceward.events import Listener
    from onceward.transport import Sink

RUN: Final = """\
examples:
  onceward run shop.consumers:charges --queue orders
  onceward run shop.consumers:charges --queue orders --threads 16 --visibility 60 --drain 30
  onceward run shop.consumers:charges --queue sqs://orders            # or amqp://…, kafka://…: the same consumer
  onceward run shop.consumers:charges --source shop.queues:orders     # orders() gives a Source
  onceward run shop.consumers:charges --queue orders --log-format json --health :8080
  onceward run shop.consumers:charges=orders shop.consumers:ledger=bookings   # two consumers in one process

A queue is pgmq:NAME (a bare NAME is the same), sqs://NAME, amqp://USER:PASSWORD@HOST/VHOST?queue=NAME or
kafka://HOST:PORT/TOPIC?group=GROUP. Credentials and regions are each client's own to find.

Of several consumers, each has --threads of its own. A consumer without =QUEUE takes the next --queue or --source, in their
order. All drain at once; if one can never go on, all end, with its error.

SIGTERM or Ctrl-C: receives nothing more, lets running handlers finish (at most --drain seconds), releases the rest, ends.
"""
RELAY: Final = """\
examples:
  onceward relay --queues order.placed=orders order.paid=ledger,emails
  onceward relay --queues events                       # every type to one queue
  onceward relay --queues order.placed=sqs://orders order.paid=sqs://ledger,sqs://emails
  onceward relay --sink shop.queues:sink               # sink() gives a Sink
  onceward relay --queues events --until-empty         # send what is there, then end: 0 = empty

Any number may run at once; the order of each key holds all the same.
"""


def add_commands(commands: Any) -> None:
    _add_run(commands)
    _add_relay(commands)


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run", help="consume", description="Consume a queue until SIGTERM, then drain.", epilog=RUN
    )
    parser.add_argument(
        "consumers", metavar="MODULE:CONSUMER[=QUEUE]", nargs="+",
        help="your Consumer, imported with the current folder first; there may be several, each with its queue",
    )  # fmt: skip
    parser.add_argument(
        "--queue", metavar="NAME", dest="origins", action="append", type=QueueName, default=[],
        help="a pgmq queue, or the URL of a queue",
    )  # fmt: skip
    parser.add_argument(
        "--source", metavar="MODULE:FACTORY", dest="origins", action="append", type=SourceTarget,
        help="your Source, or a function that gives one",
    )  # fmt: skip
    parser.add_argument("--queue-database", metavar="DSN", help="where the pgmq queue is (default: the same database)")
    parser.add_argument("--threads", type=whole(1, 1000), default=8, metavar="N", help="handlers at once (default: 8)")
    parser.add_argument("--prefetch", type=whole(0), metavar="N", help="deliveries that wait here (default: the threads)")
    parser.add_argument("--drain", type=seconds, default=20.0, metavar="SECONDS", help="how long a drain may take (20)")
    parser.add_argument("--visibility", type=whole(1), default=30, metavar="SECONDS", help="the queue's lease (30)")
    parser.add_argument("--no-upkeep", action="store_true", help="`onceward upkeep` is run daily by the tables' owner")
    parser.add_argument(
        "--allow-short-window", action="store_true",
        help="start although the queue keeps messages for longer than the consumer's window: those are parked, not handled",
    )  # fmt: skip
    _add_watching(parser)
    add_database(parser)
    parser.set_defaults(perform=run_command)


def _add_relay(commands: Any) -> None:
    parser = commands.add_parser(
        "relay", help="send what is in the outbox", description="Send what is in the outbox until SIGTERM.", epilog=RELAY
    )
    sink = parser.add_mutually_exclusive_group(required=True)
    sink.add_argument("--queues", nargs="+", metavar="TYPE=QUEUE[,QUEUE]", help="which type goes to which queues")
    sink.add_argument("--sink", metavar="MODULE:FACTORY", help="your Sink, or a function that gives one")
    parser.add_argument("--queue-database", metavar="DSN", help="where the pgmq queues are (default: the same database)")
    parser.add_argument("--batch", type=whole(1, 10_000), default=100, metavar="N", help="rows sent at once (100)")
    parser.add_argument("--lanes", type=whole(1, 100), default=2, metavar="N", help="batches at once (2)")
    parser.add_argument("--poll", type=seconds, default=1.0, metavar="SECONDS", help="the wait without a nudge (1)")
    parser.add_argument(
        "--attempts-max", type=whole(1), default=ATTEMPTS_MAX, metavar="N",
        help=f"failures of a row until it is set aside ({ATTEMPTS_MAX}: 11 to 22 hours)",
    )  # fmt: skip
    parser.add_argument(
        "--hold-subjects", action="store_true", help="a row with a subject is never set aside: its subject waits for it"
    )
    parser.add_argument("--until-empty", action="store_true", help="end when the outbox is empty")
    _add_watching(parser)
    add_database(parser)
    add_schema(parser)
    parser.set_defaults(perform=relay_command)


def _add_watching(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--health", metavar="FILE|[HOST]:PORT",
        help="where live, ready and the last progress can be read: a file of JSON, or GET /live, /ready and /",
    )  # fmt: skip
    parser.add_argument(
        "--listeners", metavar="MODULE:NAME[,NAME]", action="append", default=[],
        help="functions of yours that are called with each event (may be repeated)",
    )  # fmt: skip
    add_log(parser)


def run_command(arguments: Namespace) -> int:
    from onceward.consumer_loop import run  # noqa: PLC0415
    from onceward.health import Health, shown  # noqa: PLC0415
    from onceward.loops_together import run_all  # noqa: PLC0415
    from onceward.queue_urls import without_secrets  # noqa: PLC0415

    # What the user wrote is read before any database is asked: its mistakes are reported first.
    named = [(_consumer(target), origin) for target, origin in with_origins(arguments.consumers, arguments.origins)]
    for schema in sorted({consumer.schema for consumer, _ in named}):
        dsn = answering(arguments.database, schema=schema)
    made = [(consumer, _source(origin, arguments, dsn, consumer.name)) for consumer, origin in named]
    listeners = _listeners(arguments.listeners)
    # After the user's module was imported: if that has configured logging, it stands.
    log_to_stderr(arguments.log_level, arguments.log_format)
    health = Health()
    options: dict[str, Any] = {
        "database": dsn, "threads": arguments.threads, "prefetch": arguments.prefetch, "drain_seconds": arguments.drain,
        "upkeep": not arguments.no_upkeep, "listeners": listeners, "allow_short_window": arguments.allow_short_window,
        # Where no probe reads it, an idle consumer need not ask its database anything.
        "health": None if arguments.health is None else health,
    }  # fmt: skip
    with shown(health, arguments.health):
        for consumer, origin in named:
            queue = without_secrets(origin)
            announce(f"{consumer.name} consumes {queue} with {arguments.threads} threads; Ctrl-C drains and ends")
        if len(made) == 1:
            [(consumer, source)] = made
            run(consumer, source=source, **options)
        else:
            run_all(made, **options)
    return 0


class QueueName(str):
    """Where a consumer's messages come from: a queue, by its name or URL."""


class SourceTarget(str):
    """The same: a Source of the user's, or what makes one, as MODULE:NAME."""


Origin = QueueName | SourceTarget


def with_origins(targets: Sequence[str], origins: Sequence[Origin]) -> list[tuple[str, Origin]]:
    """Each MODULE:CONSUMER with where its messages come from: the queue behind its =, or the next of `origins`.

    Raises `UsageError` unless each consumer has one, and none is left over.
    """
    # A URL may have an equals sign of its own, but a consumer has none.
    split = [target.partition("=") for target in targets]
    without = [name for name, equals, _ in split if not equals]
    if bare := [name for name, equals, queue in split if equals and not queue]:
        raise UsageError(f"{bare[0]}=: name the queue behind the =, for example {bare[0]}=orders")
    if len(targets) == 1 and len(origins) != len(without):
        raise UsageError("name the consumer's queue once: --queue NAME, --source MODULE:FACTORY or MODULE:CONSUMER=QUEUE")
    if len(without) != len(origins):
        raise UsageError(
            f"{len(without)} of the consumers have no queue of their own, and --queue or --source is given {len(origins)} "
            "times: give it once for each, in their order, or write MODULE:CONSUMER=QUEUE"
        )
    rest = iter(origins)
    return [(name, QueueName(queue) if equals else next(rest)) for name, equals, queue in split]


def _consumer(target: str) -> Consumer:
    from onceward.consumer import Consumer  # noqa: PLC0415

    consumer = find(target, "a Consumer")
    if not isinstance(consumer, Consumer):
        raise UsageError(f"{target} is a {type(consumer).__name__}, not a Consumer")
    return consumer


def _target_without_secrets(item: str) -> str:
    """`TYPE=QUEUE,QUEUE`, or a queue alone, as it may be logged."""
    from onceward.queue_urls import split, without_secrets  # noqa: PLC0415

    message_type, equals, names = item.partition("=")
    if not equals or ":" in message_type:
        return without_secrets(item)
    return f"{message_type}={','.join(map(without_secrets, split(names)))}"


def _source(origin: Origin, arguments: Namespace, dsn: str, consumer: str) -> SourceOrFactory:
    if isinstance(origin, SourceTarget):
        source: SourceOrFactory = _found(origin, "a Source, or a function that gives a Source", or_with="receive")
        return source
    from onceward import queue_urls  # noqa: PLC0415

    queue = queue_urls.parse(origin, database=_queue_dsn(arguments, dsn))
    queue.check()
    return queue.source(consumer=consumer, visibility_seconds=arguments.visibility)


def _queue_dsn(arguments: Namespace, dsn: str) -> str:
    """Where the pgmq queues are: the same database, unless another one is named."""
    return answering(arguments.queue_database, option="--queue-database") if arguments.queue_database else dsn


def relay_command(arguments: Namespace) -> int:
    from onceward.health import Health, of_relay, shown  # noqa: PLC0415
    from onceward.relay_loop import relay  # noqa: PLC0415

    # What the user wrote is read before any database is asked: its mistakes are reported first.
    sink: SinkOrFactory
    if arguments.sink is not None:
        sink = _found(arguments.sink, "a Sink, or a function that gives a Sink", or_with="publish")
        dsn = answering(arguments.database, schema=arguments.schema)
    else:
        queues = parse_queues(arguments.queues)
        dsn = answering(arguments.database, schema=arguments.schema)
        sink = _sink(queues, _queue_dsn(arguments, dsn))
    listeners = _listeners(arguments.listeners)
    log_to_stderr(arguments.log_level, arguments.log_format)
    health = Health()
    with shown(health, arguments.health):
        targets = " ".join(map(_target_without_secrets, arguments.queues or [arguments.sink]))
        announce(f"the outbox of schema {arguments.schema!r} goes to {targets}; Ctrl-C ends")
        relay(
            sink=sink, database=dsn, schema=arguments.schema, batch=arguments.batch, lanes=arguments.lanes,
            poll_seconds=arguments.poll, attempts_max=arguments.attempts_max, hold_subjects=arguments.hold_subjects,
            until_empty=arguments.until_empty,
            listeners=[*listeners, *([of_relay(health)] if arguments.health else [])],
        )  # fmt: skip
    return _warn_of_what_waits(arguments) if arguments.until_empty else 0


def _warn_of_what_waits(arguments: Namespace) -> int:
    """The exit code after `--until-empty`.

    0, or 1 with a line about what is still in the outbox.
    """
    from onceward.status import read_outbox_status  # noqa: PLC0415

    with connected(arguments.database) as conn:
        outbox = read_outbox_status(conn, schema=arguments.schema)
    if outbox.oldest_seconds is not None:
        age = f"{outbox.oldest_seconds:.0f} s old"
        warn(f"the outbox is not empty: its oldest message, {age}, waits for a retry or is held by another relay")
    if outbox.set_aside:
        warn(f"{outbox.set_aside} messages are set aside and not tried again: run `onceward outbox list --set-aside`")
    return 1 if outbox.oldest_seconds is not None or outbox.set_aside else 0


def _sink(queues: str | dict[str, list[str]], dsn: str) -> Callable[[], Sink]:
    from onceward import queue_urls  # noqa: PLC0415

    sink = queue_urls.sink_at(queues, database=dsn)
    for url in [queues] if isinstance(queues, str) else {url for urls in queues.values() for url in urls}:
        queue_urls.parse(url, database=dsn).check()
    return sink


def _listeners(targets: list[str]) -> list[Listener]:
    """What `MODULE:NAME,NAME` names, in that order; all must be there, and functions."""
    split = [target.partition(":") for target in targets]
    each = [f"{module}:{name.strip()}" for module, _, names in split for name in names.split(",")]
    return [_found(one, "a function that takes an Event") for one in each]


def _found(target: str, what: str, *, or_with: str = "") -> Any:
    """The user's function; or an object that has the method `or_with`."""
    found = find(target, what)
    if not callable(found) and not (or_with and hasattr(found, or_with)):
        raise UsageError(f"{target} is a {type(found).__name__}, not {what}")
    return found


def parse_queues(items: list[str]) -> str | dict[str, list[str]]:
    """`TYPE=QUEUE,QUEUE ...` as a mapping; one bare QUEUE takes every type."""
    from onceward.queue_urls import split  # noqa: PLC0415

    # A URL may have an equals sign of its own, behind its scheme.
    if len(items) == 1 and "=" not in items[0].partition(":")[0]:
        return items[0]
    queues: dict[str, list[str]] = {}
    for item in items:
        message_type, _, names = item.partition("=")
        targets = split(names)
        if not message_type or not all(targets):
            raise UsageError(f"--queues: {item!r} is not TYPE=QUEUE[,QUEUE]; example: order.paid=ledger,emails")
        if message_type in queues:
            raise UsageError(f"--queues: the type {message_type!r} is named twice; write {message_type}=A,B")
        queues[message_type] = targets
    return queues
