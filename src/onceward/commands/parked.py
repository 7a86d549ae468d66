"""`onceward parked`: the messages that wait for a person, and what a person decides about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from onceward.commands import parked_decisions
from onceward.commands.arguments import add_database, add_json, add_schema, connected, printable, say, say_json, warn, whole
from onceward.commands.bodies import body_json, body_lines, whole_or_cut
from onceward.commands.table import print_table, shortened

if TYPE_CHECKING:
    from onceward.parked import ParkedIntent, ParkedMessage, ParkedRow

PARKED: Final = """\
examples:
  onceward parked list                              the newest first
  onceward parked list --consumer payments.charge --json
  onceward parked show 0198c9f2-...                 body, headers, and what is known of its effects
  onceward parked redrive 0198c9f2-...              after the cause is fixed: sent again, under its own id
  onceward parked settle 0198c9f2-... --effect charge --answer '{"id": "ch_1"}'     it did happen: so it goes on
  onceward parked settle 0198c9f2-... --effect charge --did-not-happen              it did not: called under a new key
  onceward parked discard 0198c9f2-... --reason "the customer has cancelled"        nothing more is done
  onceward parked decisions                         who decided what, when and why

docs/running.md says for each reason how to find out what is true, and which of these ends it.
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "parked",
        help="messages that wait for a person: list, show, redrive, settle, discard",
        description="Messages that wait for a person: what cannot be handled is kept, until somebody decides.",
        epilog=PARKED,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = _add_verb(verbs, "list", "the parked messages, newest first", list_)
    listing.add_argument("--limit", type=whole(1, 100_000), default=100, metavar="N", help="at most (default: 100)")
    showing = _add_verb(verbs, "show", "one message: body, headers, effects, decisions", show)
    showing.add_argument("id", metavar="ID", help="the message id, as `list` prints it")
    parked_decisions.add_commands(partial(_add_verb, verbs))


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
        asdict(intent)
        | {"answer": None if intent.answer is None else json.loads(intent.answer), "former_keys": _former(message, intent)}
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
        f"  find out     {message.reason.how_to_find_out}",
        f"  ends it      {message.reason.what_ends_it}",
        f"  from         {message.source}",
        f"  fingerprint  {message.fingerprint}",
        "  headers",
        *(f"    {name}: {value}" for name, value in message.headers.items()),
    ]
    for intent in message.intents:
        answer = "" if intent.answer is None else f", answer {shortened(intent.answer, 300)}"
        refused = " (refused)" if intent.refused else ""
        former = "".join(f", before a decision {key}" for key in _former(message, intent))
        lines.append(f"  effect {intent.n}     {intent.name}: {intent.state}{refused}, key {intent.key}{former}{answer}")
    lines += [f"  body         {message.body_bytes} bytes", *(f"    {line}" for line in body_lines(message.body))]
    return printable("\n".join(lines))


def _former(message: ParkedMessage, intent: ParkedIntent) -> Sequence[str]:
    """The keys that the effect had before a person decided that it had not happened, the latest first."""
    from onceward.intents import former_keys  # noqa: PLC0415

    return former_keys(message.consumer, message.message_id, intent.name, intent.generation)
