"""`onceward parked`: the messages that a person must look at, and the redrive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import add_database, add_json, add_schema, connected, printable, say, say_json, warn, whole
from onceward.commands.bodies import body_json, body_lines, whole_or_cut
from onceward.commands.table import print_table, shortened
from onceward.errors import UsageError
from onceward.protocol.reasons import ParkReason

if TYPE_CHECKING:
    from onceward.parked import ParkedMessage, ParkedRow

PARKED: Final = """\
examples:
  onceward parked list                              the newest first
  onceward parked list --consumer payments.charge --json
  onceward parked show 0198c9f2-...                 body, headers, and what is known of its effects
  onceward parked redrive 0198c9f2-...              after the cause is fixed: sent again, under its own id
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "parked",
        help="messages that a person must look at: list, show, redrive",
        description="Messages that a person must look at. Nothing is dropped: what cannot be handled is kept.",
        epilog=PARKED,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = _add_verb(verbs, "list", "the parked messages, newest first", list_)
    listing.add_argument("--limit", type=whole(1, 100_000), default=100, metavar="N", help="at most (default: 100)")
    showing = _add_verb(verbs, "show", "one message: body, headers, effects", show)
    showing.add_argument("id", metavar="ID", help="the message id, as `list` prints it")
    redriving = _add_verb(verbs, "redrive", "send one message again, under its own id", redrive)
    redriving.add_argument("id", metavar="ID", help="the message id, as `list` prints it")
    redriving.add_argument("--checked", action="store_true", help="a foreign commit: I looked, none of its writes is there")
    redriving.add_argument("--fingerprint", metavar="HEX", help="which body, where several are parked under one id")


def _add_verb(verbs: Any, name: str, what: str, perform: Any) -> Any:
    parser = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=PARKED)
    parser.add_argument("--consumer", metavar="NAME", help="only of this consumer")
    add_database(parser)
    add_schema(parser)
    add_json(parser)
    parser.set_defaults(perform=perform)
    return parser


def list_(arguments: Any) -> int:
    from onceward.parked import list_parked  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        rows = list_parked(conn, consumer=arguments.consumer, limit=arguments.limit, schema=arguments.schema)
    if arguments.json:
        say_json([_fields(row) for row in rows])
    elif not rows:
        say("nothing is parked")
    else:
        _print_list(rows)
        if len(rows) == arguments.limit:
            say(f"(the newest {arguments.limit}; there may be more: --limit)")
    return 0


def _print_list(rows: Sequence[ParkedRow]) -> None:
    titles = ("PARKED AT", "CONSUMER", "ID", "TYPE", "REASON", "TRIES", "DETAIL")
    lines = [
        (f"{row.parked_at:%Y-%m-%d %H:%M:%S}", row.consumer, row.message_id, row.type or "-", row.reason.value,
         str(row.attempts), shortened(row.detail))
        for row in rows
    ]  # fmt: skip
    print_table(titles, lines)


def show(arguments: Any) -> int:
    from onceward.parked import show_parked  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        messages = show_parked(conn, arguments.id, consumer=arguments.consumer, schema=arguments.schema)
    if not messages:
        warn(f"nothing is parked under {printable(arguments.id)}")
        return 1
    if arguments.json:
        say_json([_as_json(message) for message in messages])
    else:
        say("\n\n".join(_as_text(message) for message in messages))
    return 0


def _fields(row: ParkedRow) -> dict[str, Any]:
    return asdict(row) | {"reason": row.reason.value}


def _as_json(message: ParkedMessage) -> dict[str, Any]:
    fields = _fields(message)
    fields["intents"] = [
        asdict(intent) | {"answer": None if intent.answer is None else json.loads(intent.answer)}
        for intent in message.intents
    ]
    del fields["body"]
    return fields | body_json(message.body)


def _as_text(message: ParkedMessage) -> str:
    lines = [
        f"{message.message_id}  {message.type or '-'}  for {message.consumer}",
        f"  parked       {message.parked_at:%Y-%m-%d %H:%M:%S %Z}, after {message.attempts} failed attempts",
        f"  reason       {message.reason.value}: {whole_or_cut(message.detail)}",
        f"  happened     {message.reason.what_happened}",
        f"  to do        {message.reason.what_to_do}",
        f"  from         {message.source}",
        f"  fingerprint  {message.fingerprint}",
        "  headers",
        *(f"    {name}: {value}" for name, value in message.headers.items()),
    ]
    for intent in message.intents:
        answer = "" if intent.answer is None else f", answer {shortened(intent.answer, 300)}"
        refused = " (refused)" if intent.refused else ""
        lines.append(f"  effect {intent.n}     {intent.name}: {intent.state}{refused}, key {intent.key}{answer}")
    lines += [f"  body         {message.body_bytes} bytes", *(f"    {line}" for line in body_lines(message.body))]
    return printable("\n".join(lines))


def redrive(arguments: Any) -> int:
    from onceward.parked import redrive as redrive_message  # noqa: PLC0415
    from onceward.parked import show_parked  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        messages = show_parked(conn, arguments.id, consumer=arguments.consumer, schema=arguments.schema)
        # Without a name, only where it cannot be mistaken: each consumer of a message has an inbox row of its own.
        consumers = sorted({message.consumer for message in messages})
        if len(consumers) > 1:
            raise UsageError(f"it is parked for several consumers, name one: --consumer {' | --consumer '.join(consumers)}")
        consumer = consumers[0] if consumers else arguments.consumer or ""
        # What its handler wrote may stand: a second run would write it twice.
        if not arguments.checked and any(message.reason is ParkReason.FOREIGN_COMMIT for message in messages):
            warn("its handler ended its transaction by itself: look whether its writes stand, then redrive with --checked")
            return 1
        outcome = redrive_message(
            conn, arguments.id, consumer=consumer, fingerprint=arguments.fingerprint, schema=arguments.schema
        )
    if arguments.json:
        # The keys are a contract with programs: they stay as they are, whatever the fields are called.
        fields = asdict(outcome)
        say_json(fields | {"refused": fields.pop("why_not"), "redriven": outcome.redriven})
    elif outcome.redriven:
        say(f"{outcome.message_id} is pending again for {outcome.consumer} (token {outcome.token}); a relay sends it")
        if outcome.expect:
            say(f"expect: {outcome.expect}")
    if not outcome.redriven:
        warn(f"{printable(arguments.id)} was not redriven: {outcome.why_not}")
    return 0 if outcome.redriven else 1
