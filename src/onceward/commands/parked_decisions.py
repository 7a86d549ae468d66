"""`onceward parked redrive | settle | discard | decisions`: what a person decides about a parked message."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from onceward.commands.arguments import (
    add_by,
    confirmed,
    connected,
    decided_by,
    find,
    one_line,
    printable,
    say,
    say_json,
    warn,
    whole,
)
from onceward.errors import UsageError
from onceward.protocol.reasons import ParkReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from onceward.decisions import Decided, Decision
    from onceward.parked import ParkedMessage

UUID_CHARS: Final = 36
SETTLE: Final = """\
Say what became of an effect of which nobody knows whether it happened. The message then goes on by itself: its handler
gets the answer without a call, or, after --did-not-happen, the effect is called under a new key. (Before that call, the
handler's look-up is asked once more for the former key.)

--force: as long as the provider still knows the former key, a call that is still under way, in a worker that hangs or in
the provider itself, may yet act. Under a new key the provider cannot tell that it is the same, so it would act twice. Use
it only if the provider's own books show that the effect did not happen and that nothing is under way.
"""

# Makes the parser of a verb: its name, what it does, and the function that does it.
AddVerb: TypeAlias = "Callable[[str, str, Any], Any]"


def add_commands(add_verb: AddVerb) -> None:
    redriving = _add_decision(add_verb, "redrive", "send one message again, under its own id", redrive)
    redriving.add_argument("--checked", action="store_true", help="a foreign commit: I looked, none of its writes is there")
    _add_settle(add_verb)
    _add_decision(add_verb, "discard", "do nothing more about one message; it is kept as a decision", discard)
    deciding = add_verb("decisions", "who decided what, when and why, newest first", decisions)
    deciding.add_argument("id", metavar="ID", nargs="?", help="only about this message, or this outbox row's message")
    deciding.add_argument("--limit", type=whole(1, 100_000), default=100, metavar="N", help="at most (default: 100)")


def _add_settle(add_verb: AddVerb) -> None:
    parser = _add_decision(add_verb, "settle", "say whether an effect of one message happened", settle)
    parser.description = SETTLE
    parser.add_argument("--effect", metavar="NAME", required=True, help="which effect, as `show` lists it")
    outcome = parser.add_mutually_exclusive_group(required=True)
    outcome.add_argument("--answer", metavar="JSON", help="it did happen: what its call would have returned")
    outcome.add_argument("--from-lookup", action="store_true", help="it did happen, if the look-up finds it (--handlers)")
    outcome.add_argument("--did-not-happen", action="store_true", help="it did not: call it again, under a new key")
    parser.add_argument("--refused", action="store_true", help="with --answer: it is the reason of the provider's no")
    parser.add_argument("--handlers", metavar="MODULE:CONSUMER", help="your Consumer, whose look-up is asked")
    parser.add_argument("--force", action="store_true", help="with --did-not-happen: take the risk that is told above")
    parser.add_argument("--yes", action="store_true", help="with --did-not-happen: do not ask for the typed confirmation")


def _add_decision(add_verb: AddVerb, name: str, what: str, perform: Any) -> Any:
    parser = add_verb(name, what, perform)
    parser.add_argument("id", metavar="ID", help="the message id, as `list` prints it")
    parser.add_argument("--fingerprint", metavar="HEX", help="which body, where several are parked under one id")
    parser.add_argument("--reason", metavar="TEXT", required=name == "discard", help="why, kept with the decision")
    add_by(parser)
    return parser


def redrive(arguments: Any) -> int:
    from onceward.decisions import redrive as redrive_message  # noqa: PLC0415

    with _about(arguments) as (conn, subject):
        # What its handler wrote may stand: a second run would write it twice.
        if not arguments.checked and any(message.reason is ParkReason.FOREIGN_COMMIT for message in subject.messages):
            warn("its handler ended its transaction by itself: look whether its writes stand, then redrive with --checked")
            return 1
        decided = redrive_message(conn, arguments.id, **subject.options)
    return _say_decided(arguments, decided, f"is pending again for {decided.consumer} {_sent(decided)}")


def settle(arguments: Any) -> int:
    if arguments.did_not_happen:
        return _settle_as_not_happened(arguments)
    if arguments.force or arguments.yes:
        raise UsageError("--force and --yes belong to --did-not-happen")
    if arguments.refused and arguments.from_lookup:
        raise UsageError("--refused belongs to --answer: a look-up finds what happened")
    from onceward.decisions import settle as settle_effect  # noqa: PLC0415

    answer = _answer(arguments.answer) if arguments.answer is not None else None
    refused = arguments.refused
    with _about(arguments) as (conn, subject):
        if arguments.from_lookup:
            answer, refused = _looked_up(arguments, conn, subject)
            if answer is None and subject.messages:
                warn(
                    f"the look-up of {arguments.effect!r} found nothing: nothing was settled; if the provider's own books "
                    "have nothing either, use --did-not-happen"
                )
                return 1
        decided = settle_effect(
            conn, arguments.id, effect=arguments.effect, answer=answer, refused=refused, **subject.options
        )
    return _say_decided(arguments, decided, f"goes on with {arguments.effect!r} as answered {_sent(decided)}")


def _settle_as_not_happened(arguments: Any) -> int:
    if arguments.refused:
        raise UsageError("--refused belongs to --answer: what was refused is an answer, too")
    from onceward.decisions import settle_as_not_happened  # noqa: PLC0415

    with _about(arguments) as (conn, subject):
        if arguments.handlers is not None and subject.messages:
            found, refused = _looked_up(arguments, conn, subject)
            if found is not None and not refused:
                warn(f"the look-up found {arguments.effect!r}, so it did happen: {json.dumps(found)}; use --from-lookup")
                return 1
        # Where nothing is parked there is nothing to confirm: the decision is refused, and says why.
        if subject.messages and not confirmed(_about_to(arguments), arguments.effect, yes=arguments.yes):
            warn("not confirmed: nothing was decided")
            return 1
        decided = settle_as_not_happened(
            conn, arguments.id, effect=arguments.effect, force=arguments.force, **subject.options
        )
    return _say_decided(arguments, decided, f"calls {arguments.effect!r} under a new key {_sent(decided)}")


def _sent(decided: Decided) -> str:
    return f"(token {decided.token}); a relay sends it"


def discard(arguments: Any) -> int:
    from onceward.decisions import discard_parked  # noqa: PLC0415

    with _about(arguments) as (conn, subject):
        decided = discard_parked(conn, arguments.id, **subject.options)
    return _say_decided(arguments, decided, f"is discarded for {decided.consumer}; `onceward parked decisions` keeps it")


class _Subject(NamedTuple):
    """The parked messages that are meant, and what every decision about one of them is told."""

    messages: Sequence[ParkedMessage]
    options: dict[str, Any]


@contextmanager
def _about(arguments: Any) -> Iterator[tuple[Any, _Subject]]:
    """A connection, and what is parked under the id that was typed."""
    from onceward.decisions import Decider  # noqa: PLC0415
    from onceward.parked import parked_like, show_parked  # noqa: PLC0415

    if arguments.reason is not None and not arguments.reason.strip():
        raise UsageError("--reason is empty: say in a few words why, for whoever reads it later")
    decider = Decider(name=decided_by(arguments), reason=arguments.reason or "")
    with connected(arguments.database, schema=arguments.schema) as conn:
        messages = show_parked(conn, arguments.id, consumer=arguments.consumer, schema=arguments.schema)
        # Never for half an id: two messages may begin alike, and a decision about the wrong one cannot be taken back.
        near = [] if messages else parked_like(conn, arguments.id, schema=arguments.schema)
        if near and len(arguments.id) < UUID_CHARS:
            raise UsageError(f"{printable(arguments.id)!r} is not a whole id; type one of {', '.join(near)}")
        # Without a name, only where it cannot be mistaken: each consumer of a message has an inbox row of its own.
        consumers = sorted({message.consumer for message in messages})
        if len(consumers) > 1:
            raise UsageError(f"it is parked for several consumers, name one: --consumer {' | --consumer '.join(consumers)}")
        options = {
            "consumer": consumers[0] if consumers else arguments.consumer or "",
            "fingerprint": arguments.fingerprint, "decider": decider, "schema": arguments.schema,
        }  # fmt: skip
        yield conn, _Subject(messages, options)


def _answer(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f'--answer is not JSON ({error}): write what the effect\'s call returns, for example \'{{"id": "ch_1"}}\''
        ) from None


def _looked_up(arguments: Any, conn: Any, subject: _Subject) -> tuple[Any, bool]:
    """What the handler's own look-up finds of the effect (None: nothing), and whether that is a refusal."""
    import psycopg  # noqa: PLC0415

    from onceward.consumer import Consumer  # noqa: PLC0415
    from onceward.effect_lookup import look_up_effect  # noqa: PLC0415
    from onceward.errors import EffectRefused, OncewardError  # noqa: PLC0415

    if arguments.handlers is None:
        raise UsageError("the look-up is in your handler: name its Consumer, as in --handlers shop.consumers:charges")
    if not subject.messages:
        return None, False
    consumer = find(arguments.handlers, "your Consumer")
    if not isinstance(consumer, Consumer):
        raise UsageError(f"{arguments.handlers} is a {type(consumer).__name__}: it must be a Consumer")
    # The effects are those of the inbox row's body, and a body that is in conflict with it is another one.
    message = next((known for known in subject.messages if known.reason is not ParkReason.CONFLICT), subject.messages[0])
    try:
        return look_up_effect(conn, consumer, message, arguments.effect, schema=arguments.schema), False
    except EffectRefused as error:
        return error.answer, True
    except (OncewardError, psycopg.Error):
        raise
    except Exception as error:
        raise UsageError(
            f"the look-up of {arguments.effect!r} failed, so nothing was decided: {one_line(error)}"
        ) from error


def _about_to(arguments: Any) -> str:
    return (
        f"{arguments.effect!r} of {printable(arguments.id)} is going to be called again, under a new key; if it did happen "
        "after all, it happens twice (have you asked the provider?)"
    )


def _say_decided(arguments: Any, decided: Decided, what: str) -> int:
    if arguments.json:
        # The keys are a contract with programs: they stay as they are, whatever the fields are called.
        say_json({
            "consumer": decided.consumer, "message_id": decided.message_id, "decision": decided.kind.value,
            "token": decided.token, "expect": decided.expect, "refused": decided.why_not, "decided": decided.stands,
            **({"redriven": decided.stands} if decided.kind.value == "redrive" else {}),
        })  # fmt: skip
    elif decided.stands:
        say(f"{decided.message_id} {what}")
        if decided.expect:
            say(f"expect: {decided.expect}")
    if not decided.stands:
        warn(f"{printable(arguments.id)}: nothing was decided ({decided.kind.value}): {decided.why_not}")
    return 0 if decided.stands else 1


def decisions(arguments: Any) -> int:
    from onceward.decisions import list_decisions  # noqa: PLC0415

    with connected(arguments.database, schema=arguments.schema) as conn:
        made = list_decisions(
            conn, message_id=arguments.id, consumer=arguments.consumer, limit=arguments.limit, schema=arguments.schema
        )
    if arguments.json:
        say_json([asdict(decision) | {"kind": decision.kind.value} for decision in made])
    elif not made:
        say("nothing was decided")
    for decision in made if not arguments.json else ():
        # One line each: a reason of several lines must not look like another decision.
        say(printable(" ".join(_decision_line(decision).splitlines())))
    return 0


def _decision_line(decision: Decision) -> str:
    about = f"outbox row {decision.position}" if decision.consumer is None else decision.consumer
    effect = f" {decision.effect}" if decision.effect else ""
    forced = " (forced)" if decision.forced else ""
    why = f": {decision.reason}" if decision.reason else ""
    return (
        f"{decision.decided_at:%Y-%m-%d %H:%M:%S}  {decision.decided_by}  {decision.kind.value}{effect}{forced}  "
        f"{decision.message_id}  {about}{why}"
    )
