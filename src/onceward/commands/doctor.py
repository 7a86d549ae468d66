"""`onceward doctor`: what is wrong with the settings of queues and of the database, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from textwrap import indent, wrap
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import (
    add_database,
    add_json,
    connected,
    dsn_of,
    find,
    printable,
    say,
    say_json,
    seconds,
    whole,
)
from onceward.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from onceward.consumer import Consumer
    from onceward.doctor import Diagnosis, Needs
    from onceward.doctor.diagnosis import Leg
    from onceward.queue_urls import QueueUrl

DOCTOR: Final = """\
examples:
  onceward doctor shop.consumers:charges --queue sqs://orders
  onceward doctor shop.consumers:charges --queue 'amqp://host/shop?queue=orders' --management http://host:15672
  onceward doctor shop.consumers:charges --queue kafka://host:9092/orders --dead-letter kafka://host:9092/orders-dead
  onceward doctor --queue orders                  a pgmq queue; a Consumer's defaults are assumed
  onceward doctor                                 the database alone
  onceward doctor --queue sqs://orders --json     for a deploy that must not go on with a wrong setting

It changes nothing. Each setting is read from its server and held against what the consumer needs: its window, its attempts,
and how long its handlers take, which every consumer measures by itself and keeps in the database. What is wrong is shown
with what it should be, why, and the command that mends it; what could not be read is shown as unknown (?), never left out.

  ✗ error: a message is lost, set aside, or handled by two, once the wrong thing happens
  ! warning: it costs redeliveries, or hides what goes wrong

exit codes: 0 nothing is wrong, 1 something is (--strict: or is unknown), 2 usage or environment
"""
MARKS: Final = {"error": "✗", "warning": "!", "unknown": "?", "right": "✓"}
WIDTH: Final = 112


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is wrong with the settings of queue and database",
        description="Read the settings of queues and of the database, and say what is wrong, why, and what mends it.",
        epilog=DOCTOR,
    )
    parser.add_argument("consumer", metavar="MODULE:CONSUMER", nargs="?", help="whose window, attempts and times count")
    parser.add_argument("--queue", metavar="URL", action="append", default=[], help="a queue (may be repeated)")
    parser.add_argument(
        "--dead-letter", metavar="URL", help="where its dead letters go, if the broker does not know (Kafka)"
    )
    parser.add_argument("--queue-database", metavar="DSN", help="where the pgmq queues are (default: the same database)")
    parser.add_argument(
        "--management", metavar="URL", help="of RabbitMQ's management plugin (default: port 15672 of the host)"
    )
    parser.add_argument(
        "--consumer-timeout",
        type=seconds,
        metavar="SECONDS",
        help="RabbitMQ's consumer_timeout, which its plugin does not know",
    )
    parser.add_argument(
        "--visibility", type=whole(1), default=30, metavar="SECONDS", help="that `run` is started with (30)"
    )
    parser.add_argument("--threads", type=whole(1, 1000), default=8, metavar="N", help="that `run` is started with (8)")
    parser.add_argument("--dev", action="store_true", help="one broker is enough: do not ask for replicas")
    parser.add_argument("--strict", action="store_true", help="exit code 1 also where something is unknown")
    add_database(parser)
    add_json(parser)
    parser.set_defaults(perform=doctor_command)


def doctor_command(arguments: Namespace) -> int:
    from onceward.doctor import Surroundings, Verdict, examine, findings  # noqa: PLC0415

    consumer = _consumer(arguments.consumer)
    dsn = dsn_of(arguments.queue_database or arguments.database)
    queues = [_parsed(url, dsn) for url in arguments.queue]
    surroundings = Surroundings(
        dead_letter=_parsed(arguments.dead_letter, dsn) if arguments.dead_letter else None,
        management=arguments.management,
        consumer_timeout_seconds=arguments.consumer_timeout,
    )
    needs, diagnoses = _examine_database(arguments, consumer)
    if arguments.queue_database:
        diagnoses += _examine_queue_database(arguments, needs)
    for queue in queues:
        diagnoses += examine(queue, needs, surroundings)
    if arguments.json:
        _say_json(diagnoses, needs)
    else:
        _print(diagnoses)
    unknown = [diagnosis for diagnosis in diagnoses if diagnosis.verdict is Verdict.UNKNOWN]
    return 1 if findings(diagnoses) or (arguments.strict and unknown) else 0


def _consumer(target: str | None) -> Consumer | None:
    from onceward.consumer import Consumer  # noqa: PLC0415

    if target is None:
        return None
    found = find(target, "a Consumer")
    if not isinstance(found, Consumer):
        raise UsageError(f"{target} is a {type(found).__name__}, not a Consumer")
    return found


def _parsed(url: str, dsn: str) -> QueueUrl:
    from onceward import queue_urls  # noqa: PLC0415

    return queue_urls.parse(url, database=dsn)


def _examine_database(arguments: Namespace, consumer: Consumer | None) -> tuple[Needs, list[Diagnosis]]:
    """What the consumer needs, with the times that it has measured, and what is said of the database."""
    from onceward.doctor import Needs, postgres  # noqa: PLC0415
    from onceward.handler_times import read_handler_times  # noqa: PLC0415

    needs = Needs(visibility_seconds=arguments.visibility, one_broker=arguments.dev)
    # Without a consumer, our tables need not be there: a database can be judged before anything is migrated.
    schema = None if consumer is None else consumer.schema
    with connected(arguments.database, schema=schema) as conn:
        facts = postgres.gather(conn, threads=arguments.threads)
        if consumer is not None:
            measured = {times.consumer: times for times in read_handler_times(conn, schema=consumer.schema)}
            needs = replace(
                needs, window_seconds=consumer.window.total_seconds(), attempts_max=consumer.attempts_max,
                deliveries_max=consumer.deliveries_max, claim_seconds=consumer.lease_seconds,
                times=measured.get(consumer.name),
            )  # fmt: skip
    return needs, [*postgres.judge(facts, needs)]


def _examine_queue_database(arguments: Namespace, needs: Needs) -> list[Diagnosis]:
    from onceward.doctor import postgres  # noqa: PLC0415

    with connected(arguments.queue_database, option="--queue-database") as conn:
        return [*postgres.judge(postgres.gather(conn), needs)]


def _say_json(diagnoses: Iterable[Diagnosis], needs: Needs) -> None:
    from onceward.doctor import Verdict, findings  # noqa: PLC0415

    known = [*diagnoses]
    times = needs.times
    say_json(
        {
            "findings": [_as_json(diagnosis) for diagnosis in findings(known)],
            "unknown": [_as_json(diagnosis) for diagnosis in known if diagnosis.verdict is Verdict.UNKNOWN],
            "right": [_as_json(diagnosis) for diagnosis in known if diagnosis.verdict is Verdict.RIGHT],
            "handlers": None if times is None else {
                "consumer": times.consumer, "handled": times.handled, "average_seconds": times.average_seconds,
                "p99_seconds": times.p99_seconds,
            },
        }
    )  # fmt: skip


def _as_json(diagnosis: Diagnosis) -> dict[str, str]:
    check = diagnosis.check
    return {
        "check": check.name, "leg": check.leg.value, "place": diagnosis.place, "severity": diagnosis.verdict.value,
        "found": diagnosis.found, "wanted": diagnosis.wanted, "why": check.why, "mend": diagnosis.mend,
    }  # fmt: skip


def _print(diagnoses: Sequence[Diagnosis]) -> None:
    from onceward.doctor import Leg  # noqa: PLC0415

    for leg in Leg:
        _print_leg(leg, [diagnosis for diagnosis in diagnoses if diagnosis.check.leg is leg])
    counts = {name: sum(diagnosis.verdict.value == name for diagnosis in diagnoses) for name in MARKS}
    say(", ".join(f"{name}: {count}" for name, count in counts.items()))


def _print_leg(leg: Leg, diagnoses: Sequence[Diagnosis]) -> None:
    if not diagnoses:
        return
    say(leg.title)
    for mark in MARKS:
        for diagnosis in diagnoses:
            if diagnosis.verdict.value == mark:
                _print_one(diagnosis)
    say()


def _print_one(diagnosis: Diagnosis) -> None:
    # What a server says must not steer the terminal.
    found, mend = (printable(text).replace("\n", " ") for text in (diagnosis.found, diagnosis.mend))
    wanted = f"; wanted: {printable(diagnosis.wanted)}" if diagnosis.wanted else ""
    say(f"  {MARKS[diagnosis.verdict.value]} {diagnosis.check.name}  {printable(diagnosis.place)}: {found}{wanted}")
    if diagnosis.is_finding:
        say(indent("\n".join(wrap(diagnosis.check.why, WIDTH)), "      "))
    if mend:
        say(f"      → {mend}")
