"""`onceward run` and `onceward relay`: the two loops, consumer in and relay out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.environment import add_database, add_schema, answering, connected, find, seconds, warn, whole
from onceward.errors import UsageError

if TYPE_CHECKING:
    from onceward.transport import Sink, Source

RUN: Final = """\
examples:
  onceward run shop.consumers:charges --queue orders
  onceward run shop.consumers:charges --queue orders --threads 16 --visibility 60 --drain 30
  onceward run shop.consumers:charges --source shop.queues:orders     # orders() gives a Source

SIGTERM or Ctrl-C: receives nothing more, lets what runs end (at most --drain seconds), gives the rest back, and ends.
"""
RELAY: Final = """\
examples:
  onceward relay --queues order.placed=orders order.paid=ledger,emails
  onceward relay --queues events                       # every type to one queue
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
    parser.add_argument("consumer", metavar="MODULE:CONSUMER", help="your Consumer; imported with the current folder first")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--queue", metavar="NAME", help="a pgmq queue")
    source.add_argument("--source", metavar="MODULE:FACTORY", help="a function of yours that gives a Source")
    parser.add_argument("--queue-database", metavar="DSN", help="where the pgmq queue is (default: the same database)")
    parser.add_argument("--threads", type=whole(1, 1000), default=8, metavar="N", help="handlers at once (default: 8)")
    parser.add_argument("--prefetch", type=whole(0), metavar="N", help="deliveries that wait here (default: as threads)")
    parser.add_argument("--drain", type=seconds, default=20.0, metavar="SECONDS", help="how long a drain may take (20)")
    parser.add_argument("--visibility", type=whole(1), default=30, metavar="SECONDS", help="the queue's lease (30)")
    add_database(parser)
    parser.set_defaults(perform=run)


def _add_relay(commands: Any) -> None:
    parser = commands.add_parser(
        "relay", help="send what is in the outbox", description="Send what is in the outbox until SIGTERM.", epilog=RELAY
    )
    sink = parser.add_mutually_exclusive_group(required=True)
    sink.add_argument("--queues", nargs="+", metavar="TYPE=QUEUE[,QUEUE]", help="which type goes to which pgmq queues")
    sink.add_argument("--sink", metavar="MODULE:FACTORY", help="a function of yours that gives a Sink")
    parser.add_argument("--queue-database", metavar="DSN", help="where the pgmq queues are (default: the same database)")
    parser.add_argument("--batch", type=whole(1, 10_000), default=100, metavar="N", help="rows sent at once (100)")
    parser.add_argument("--lanes", type=whole(1, 100), default=2, metavar="N", help="batches at once (2)")
    parser.add_argument("--poll", type=seconds, default=1.0, metavar="SECONDS", help="the wait without a nudge (1)")
    parser.add_argument("--until-empty", action="store_true", help="end when the outbox is empty")
    add_database(parser)
    add_schema(parser)
    parser.set_defaults(perform=relay)


def run(given: Any) -> int:
    from onceward.consumer import Consumer  # noqa: PLC0415
    from onceward.loop import run as consume  # noqa: PLC0415

    consumer = find(given.consumer, "a Consumer")
    if not isinstance(consumer, Consumer):
        raise UsageError(f"{given.consumer} is a {type(consumer).__name__}, not a Consumer")
    dsn = answering(given.database, schema=consumer.schema)
    source = _source(given, dsn)
    _log_to_stderr()
    warn(f"{consumer.name} consumes {given.queue or given.source} with {given.threads} threads; Ctrl-C drains and ends")
    consume(
        consumer, source=source, database=dsn, threads=given.threads, prefetch=given.prefetch, drain_seconds=given.drain
    )
    return 0


def _source(given: Any, dsn: str) -> Callable[[], Source]:
    if given.source is not None:
        return _factory(given.source, "a function that gives a Source")
    from onceward.transports import pgmq  # noqa: PLC0415

    queue_dsn = answering(given.queue_database, option="--queue-database") if given.queue_database else dsn
    pgmq.check_queue(queue_dsn, given.queue)
    return lambda: pgmq.Source(given.queue, queue_dsn, visibility_seconds=given.visibility)


def relay(given: Any) -> int:
    from onceward.relay import relay as send  # noqa: PLC0415

    if given.sink is not None:
        sink = _factory(given.sink, "a function that gives a Sink")
        dsn = answering(given.database, schema=given.schema)
    else:
        queues = parse_queues(given.queues)
        dsn = answering(given.database, schema=given.schema)
        queue_dsn = answering(given.queue_database, option="--queue-database") if given.queue_database else dsn
        sink = _pgmq_sink(queues, queue_dsn)
    _log_to_stderr()
    warn(f"the outbox of schema {given.schema!r} goes to {' '.join(given.queues or [given.sink])}; Ctrl-C ends")
    send(
        sink=sink, database=dsn, schema=given.schema, batch=given.batch, lanes=given.lanes, poll_seconds=given.poll,
        until_empty=given.until_empty,
    )  # fmt: skip
    return _say_what_is_left(given) if given.until_empty else 0


def _say_what_is_left(given: Any) -> int:
    from onceward.statements import statements  # noqa: PLC0415

    with connected(given.database) as conn:
        row = conn.execute(statements(given.schema)["outbox_oldest_seconds"]).fetchone()
    if row is None:
        return 0
    warn(f"the outbox is not empty: its oldest message, {row[0]:.0f} s old, waits for a retry or is held by another relay")
    return 1


def _pgmq_sink(queues: str | dict[str, list[str]], dsn: str) -> Callable[[], Sink]:
    from onceward.transports import pgmq  # noqa: PLC0415

    for name in [queues] if isinstance(queues, str) else {name for names in queues.values() for name in names}:
        pgmq.check_queue(dsn, name)
    return lambda: pgmq.Sink(queues, dsn)


def _factory(target: str, what: str) -> Callable[[], Any]:
    factory = find(target, what)
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}, not {what}")
    found: Callable[[], Any] = factory
    return found


def parse_queues(items: list[str]) -> str | dict[str, list[str]]:
    """`TYPE=QUEUE,QUEUE ...` as a mapping; one bare QUEUE takes every type."""
    if len(items) == 1 and "=" not in items[0]:
        return items[0]
    queues: dict[str, list[str]] = {}
    for item in items:
        message_type, _, names = item.partition("=")
        targets = [name.strip() for name in names.split(",")]
        if not message_type or not all(targets):
            raise UsageError(f"--queues: {item!r} is no TYPE=QUEUE[,QUEUE]; example: order.paid=ledger,emails")
        if message_type in queues:
            raise UsageError(f"--queues: the type {message_type!r} is named twice; write {message_type}=A,B")
        queues[message_type] = targets
    return queues


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
