"""`onceward outbox`: the messages that are to be sent, and the end of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import (
    add_by,
    add_database,
    add_json,
    add_schema,
    confirmed,
    connected,
    decided_by,
    printable,
    say,
    say_json,
    warn,
    whole,
)
from onceward.commands.bodies import body_json, body_lines, whole_or_cut
from onceward.commands.table import duration, print_table, shortened
from onceward.errors import UsageError

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from psycopg import Connection

    from onceward.outbox_rows import OutboxDecision, OutboxMessage, OutboxRow

OUTBOX: Final = """\
examples:
  onceward outbox list                              what is to be sent, in its order
  onceward outbox list --set-aside                  what failed too often, and waits for you
  onceward outbox show 4711                         body, whole error, and what waits behind it
  onceward outbox retry 4711                        after the cause is mended: sent again, under its own id
  onceward outbox retry --all-set-aside
  onceward outbox discard 4711 --reason "sent by hand, ticket 88"
"""
PLACE_HELP: Final = "a position, or a whole message id, as `list` prints them"
LISTED_MAX: Final = 1_000_000
DISCARD_WORD: Final = "discard"


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "outbox",
        help="messages that are to be sent: list, show, retry, discard",
        description="Messages that are to be sent. A row that fails too often is set aside, and waits for a person.",
        epilog=OUTBOX,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = _add_verb(verbs, "list", "the messages that are to be sent, in their order", list_)
    listing.add_argument("--set-aside", action="store_true", help="those that failed too often: they are not tried again")
    listing.add_argument("--failing", action="store_true", help="those that failed, and are tried again")
    listing.add_argument("--limit", type=whole(1, 100_000), default=100, metavar="N", help="at most (default: 100)")
    showing = _add_verb(verbs, "show", "one message: body, error, what waits behind it", show)
    showing.add_argument("place", metavar="POSITION|ID", help=PLACE_HELP)
    retrying = _add_verb(verbs, "retry", "try messages again now, as if they had never failed", retry)
    retrying.add_argument("places", metavar="POSITION|ID", nargs="*", help=PLACE_HELP)
    retrying.add_argument("--all-set-aside", action="store_true", help="all that are set aside")
    retrying.add_argument("--reason", default="", metavar="TEXT", help="why, for whoever asks later")
    add_by(retrying)
    discarding = _add_verb(verbs, "discard", "take one message out of the outbox, unsent", discard)
    discarding.add_argument("place", metavar="POSITION|ID", help=PLACE_HELP)
    discarding.add_argument("--reason", required=True, metavar="TEXT", help="why, for whoever asks later")
    discarding.add_argument("--yes", action="store_true", help="do not ask")
    add_by(discarding)


def _add_verb(verbs: Any, name: str, what: str, perform: Any) -> ArgumentParser:
    parser: ArgumentParser = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=OUTBOX)
    add_database(parser)
    add_schema(parser)
    add_json(parser)
    parser.set_defaults(perform=perform)
    return parser


def list_(arguments: Any) -> int:
    from onceward.outbox_rows import OutboxState, list_outbox  # noqa: PLC0415

    wanted = {OutboxState.SET_ASIDE: arguments.set_aside, OutboxState.FAILING: arguments.failing}
    states = [state for state, asked in wanted.items() if asked] or [*OutboxState]
    with connected(arguments.database, schema=arguments.schema) as conn:
        rows = list_outbox(conn, states=states, limit=arguments.limit, schema=arguments.schema)
    if arguments.json:
        say_json([_fields(row) for row in rows])
    elif not rows:
        say("no such rows are in the outbox" if arguments.set_aside or arguments.failing else "the outbox is empty")
    else:
        _print_list(rows)
        if len(rows) == arguments.limit:
            say(f"(the first {arguments.limit}; there may be more: --limit)")
    return 0


def _print_list(rows: Sequence[OutboxRow]) -> None:
    titles = ("POSITION", "ID", "TYPE", "SUBJECT", "AGE", "TRIES", "NEXT TRY", "SET ASIDE", "BEHIND", "ERROR")
    lines = [
        (
            str(row.position), row.message_id, row.type, row.subject or "-", duration(row.age_seconds), str(row.attempts),
            _next_try(row), _moment(row.set_aside_at), _behind(row), shortened(row.error or "-"),
        )
        for row in rows
    ]  # fmt: skip
    print_table(titles, lines)


def _next_try(row: OutboxRow) -> str:
    if row.set_aside_at is not None:
        return "never"
    return "now" if row.retry_at is None else _moment(row.retry_at)


def _moment(time: Any) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def _behind(row: OutboxRow) -> str:
    from onceward.outbox_rows import BEHIND_MAX  # noqa: PLC0415

    return str(row.behind) if row.behind < BEHIND_MAX else f"{BEHIND_MAX} or more"


def show(arguments: Any) -> int:
    from onceward.outbox_rows import show_outbox  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        positions = _positions(conn, arguments.place, arguments.schema)
        found = [show_outbox(conn, position, schema=arguments.schema) for position in positions]
    messages = [message for message in found if message is not None]
    if not messages:
        if positions:
            warn(f"{printable(arguments.place)} was sent or discarded at this moment")
        return 1
    if arguments.json:
        say_json([_as_json(message) for message in messages])
    else:
        say("\n\n".join(_as_text(message) for message in messages))
    return 0


def _positions(conn: Connection[Any], place: str, schema: str) -> list[int]:
    """The positions of the rows that are meant; empty, after a line that says so, when there are none."""
    from onceward.outbox_rows import find_outbox  # noqa: PLC0415

    found = find_outbox(conn, place, schema=schema)
    if found.begin_so:
        warn(f"no whole id is {printable(place)}; these begin so: {printable(', '.join(found.begin_so))}")
    elif not found.positions:
        gone = found.discarded or "it was sent, or it never was there"
        warn(f"nothing is in the outbox under {printable(place)}: {printable(gone)}")
    return found.positions


def _fields(row: OutboxRow) -> dict[str, Any]:
    return asdict(row) | {"state": row.state.value}


def _as_json(message: OutboxMessage) -> dict[str, Any]:
    fields = _fields(message)
    fields["error"] = fields.pop("whole_error")
    del fields["body"]
    return fields | body_json(message.body)


def _as_text(message: OutboxMessage) -> str:
    from onceward.outbox_rows import OutboxState  # noqa: PLC0415

    lines = [
        f"{message.position}  {message.message_id}  {message.type}",
        f"  subject      {message.subject or '-'} ({_behind(message)} wait behind it)",
        f"  written      {_moment(message.created_at)}, {duration(message.age_seconds)} ago, by {message.source}",
        f"  state        {message.state.value}, after {message.attempts} failed attempts; next try: {_next_try(message)}",
    ]
    if message.state is OutboxState.SET_ASIDE:
        lines.append(f"  set aside    {_moment(message.set_aside_at)}")
        lines.append(
            f"  to do        mend what the error shows, then `onceward outbox retry {message.position}`, or discard it"
        )
    if message.whole_error is not None:
        lines.append(f"  error        {whole_or_cut(message.whole_error)}")
    lines += [f"  body         {message.body_bytes} bytes", *(f"    {line}" for line in body_lines(message.body))]
    return printable("\n".join(lines))


def retry(arguments: Any) -> int:
    from onceward.outbox_rows import OutboxState, list_outbox, retry_outbox  # noqa: PLC0415

    if bool(arguments.places) == arguments.all_set_aside:
        raise UsageError("name rows by their position or id, or all of them with --all-set-aside: one of the two")
    by, schema = decided_by(arguments), arguments.schema
    with connected(arguments.database, schema=schema) as conn:
        if arguments.all_set_aside:
            rows = list_outbox(conn, states=[OutboxState.SET_ASIDE], limit=LISTED_MAX, schema=schema)
            positions = [row.position for row in rows]
        else:
            # All are found before the first is decided: a word that is wrong must not leave half of them done.
            positions = _one_each(conn, arguments.places, schema)
            if not positions:
                return 1
        outcomes = [
            retry_outbox(conn, position, decided_by=by, reason=arguments.reason, schema=schema) for position in positions
        ]
    if arguments.all_set_aside and not outcomes and not arguments.json:
        say("nothing is set aside")
    _report(arguments, outcomes, "is due now; a relay sends it under its own id")
    return 0 if all(outcome.decided for outcome in outcomes) else 1


def discard(arguments: Any) -> int:
    from onceward.outbox_rows import discard_outbox  # noqa: PLC0415

    if not arguments.reason.strip():
        raise UsageError("--reason: a discarded message is sent by nobody: give the reason, for whoever asks later")
    by, schema = decided_by(arguments), arguments.schema
    with connected(arguments.database, schema=schema) as conn:
        positions = _one_each(conn, [arguments.place], schema)
        if not positions:
            return 1
        question = (
            f"outbox row {positions[0]} will not be sent any more (it may have been sent although no confirmation came)"
        )
        if not confirmed(question, DISCARD_WORD, yes=arguments.yes):
            warn("nothing was discarded")
            return 1
        outcome = discard_outbox(conn, positions[0], decided_by=by, reason=arguments.reason, schema=schema)
    _report(arguments, [outcome], "is discarded; it is kept in the table `decisions`")
    return 0 if outcome.decided else 1


def _one_each(conn: Connection[Any], places: Sequence[str], schema: str) -> list[int]:
    """The position of the one row that each place names; empty, after a line that says so, when one names none.

    Raises `UsageError` where one names several rows.
    """
    found = [_positions(conn, place, schema) for place in places]
    for place, positions in zip(places, found, strict=True):
        if len(positions) > 1:
            named = ", ".join(map(str, positions))
            raise UsageError(f"{printable(place)} names several rows: give one of their positions, {named}")
    # A row that is named twice, by its position and its id, is decided once.
    return [*dict.fromkeys(positions[0] for positions in found)] if all(found) else []


def _report(arguments: Any, outcomes: Sequence[OutboxDecision], what: str) -> None:
    if arguments.json:
        # The keys are a contract with programs, as those of `parked redrive` are.
        say_json([_outcome_fields(outcome) for outcome in outcomes])
    for outcome in outcomes:
        if not outcome.decided:
            warn(f"outbox row {outcome.position} was left as it is: {printable(outcome.why_not)}")
        elif not arguments.json:
            say(f"{outcome.position} ({printable(outcome.message_id)}) {what}")
            if outcome.expect:
                say(f"expect: {printable(outcome.expect)}")


def _outcome_fields(outcome: OutboxDecision) -> dict[str, Any]:
    fields = asdict(outcome)
    return fields | {"refused": fields.pop("why_not"), "decided": outcome.decided}
