"""`onceward parked`: the messages that wait for a person, and what a person decides about them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from onceward.commands import parked_decisions
from onceward.commands.arguments import add_database, add_json, add_schema, connected, printable, say, say_json, warn, whole

if TYPE_CHECKING:
    from onceward.parked import ParkedIntent, ParkedMessage, ParkedRow

SHOWN_BYTES_MAX: Final = 4096
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
        _print_table(rows)
        if len(rows) == arguments.limit:
            say(f"(the newest {arguments.limit}; there may be more: --limit)")
    return 0


def _print_table(rows: Sequence[ParkedRow]) -> None:
    titles = ("PARKED AT", "CONSUMER", "ID", "TYPE", "REASON", "TRIES", "DETAIL")
    cells = [
        (f"{row.parked_at:%Y-%m-%d %H:%M:%S}", row.consumer, row.message_id, row.type or "-", row.reason.value,
         str(row.attempts), _shortened(row.detail))
        for row in rows
    ]  # fmt: skip
    # What others wrote must not steer the terminal, nor break the table.
    clean = [tuple(printable(cell).replace("\n", " ") for cell in line) for line in cells]
    widths = [max(len(line[column]) for line in (titles, *clean)) for column in range(len(titles))]
    for line in (titles, *clean):
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _shortened(text: str, chars_max: int = 100) -> str:
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"


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
    # Either key says how to read the body, so that no program takes base64 for a text.
    del fields["body"]
    cut = len(message.body) > SHOWN_BYTES_MAX
    fields["body_cut"] = cut
    decoded = None if cut else _decoded(message.body)
    if decoded is not None:
        return fields | {"body": decoded[0]}
    return fields | {"body_base64": base64.b64encode(message.body[:SHOWN_BYTES_MAX]).decode()}


def _decoded(body: bytes) -> tuple[Any] | None:
    """The body as a JSON value, in a tuple (it may be null); None when it is not JSON."""
    try:
        return (json.loads(body.decode()),)
    except (ValueError, RecursionError):
        return None


def _as_text(message: ParkedMessage) -> str:
    lines = [
        f"{message.message_id}  {message.type or '-'}  for {message.consumer}",
        f"  parked       {message.parked_at:%Y-%m-%d %H:%M:%S %Z}, after {message.attempts} failed attempts",
        f"  reason       {message.reason.value}: {_whole_or_cut(message.detail)}",
        f"  happened     {message.reason.what_happened}",
        f"  find out     {message.reason.how_to_find_out}",
        f"  ends it      {message.reason.what_ends_it}",
        f"  from         {message.source}",
        f"  fingerprint  {message.fingerprint}",
        "  headers",
        *(f"    {name}: {value}" for name, value in message.headers.items()),
    ]
    for intent in message.intents:
        answer = "" if intent.answer is None else f", answer {_shortened(intent.answer, 300)}"
        refused = " (refused)" if intent.refused else ""
        former = "".join(f", before a decision {key}" for key in _former(message, intent))
        lines.append(f"  effect {intent.n}     {intent.name}: {intent.state}{refused}, key {intent.key}{former}{answer}")
    lines += [f"  body         {message.body_bytes} bytes", *(f"    {line}" for line in _body_lines(message.body))]
    return printable("\n".join(lines))


def _former(message: ParkedMessage, intent: ParkedIntent) -> Sequence[str]:
    """The keys that the effect had before a person decided that it had not happened, the latest first."""
    from onceward.intents import former_keys  # noqa: PLC0415

    return former_keys(message.consumer, message.message_id, intent.name, intent.generation)


def _body_lines(body: bytes) -> list[str]:
    decoded = _decoded(body)
    try:
        text = body.decode() if decoded is None else json.dumps(decoded[0], indent=2, ensure_ascii=False)
    except UnicodeDecodeError:
        shown = body[: SHOWN_BYTES_MAX // 2]
        lines = [f"(not UTF-8, shown in hex) {shown.hex()}"]
        return lines if shown == body else [*lines, _cut(len(shown), len(body))]
    if len(text) <= SHOWN_BYTES_MAX:
        return text.splitlines()
    return [*text[:SHOWN_BYTES_MAX].splitlines(), _cut(SHOWN_BYTES_MAX, len(text))]


def _whole_or_cut(text: str) -> str:
    return text if len(text) <= SHOWN_BYTES_MAX else f"{text[:SHOWN_BYTES_MAX]} {_cut(SHOWN_BYTES_MAX, len(text))}"


def _cut(shown: int, whole_length: int) -> str:
    return f"... (cut: {shown} of {whole_length} shown)"
