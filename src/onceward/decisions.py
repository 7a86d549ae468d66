"""What a person decides about a parked message: redrive, settle, did not happen, discard.

Each decision is one transaction, and a row in `decisions` with who, when and why. It begins with the lock of the parked
message: of two people at once, the second finds what the first has decided.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

from psycopg import Connection

from onceward.database import dicts, one_tuple
from onceward.errors import UsageError
from onceward.message import MalformedMessage, Message, canonical_id, canonical_json, row_key
from onceward.outbox import publish
from onceward.parked import InboxState, ParkedIntent, intents_of, typed
from onceward.protocol.reasons import ParkReason
from onceward.provider import idempotency_key
from onceward.statements import SCHEMA_DEFAULT, statements, storable


class DecisionKind(Enum):
    """What was decided; the value is the text in `decisions.decision`."""

    REDRIVE = "redrive"  # try again, as it is
    SETTLE = "settle"  # an effect did happen: its answer is recorded, and the message goes on
    DID_NOT_HAPPEN = "did not happen"  # an effect did not happen: it is called under a new key
    DISCARD = "discard"  # nothing more is done
    RETRY = "retry"  # of an outbox row: it is sent after all


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What became of a decision.

    `why_not`: the reason for which nothing was done; '' when the decision stands.
    `token`: the fencing token under which the message is on its way again; 0 for a discard.
    `expect`: what this decision does not change, and its handler, or a person, will meet; '' when there is no such thing.
    """

    kind: DecisionKind
    consumer: str
    message_id: str
    token: int = 0
    why_not: str = ""
    expect: str = ""

    @property
    def stands(self) -> bool:
        """The decision was made, and is kept."""
        return not self.why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision that was made: a row of `decisions`, without the body of what was discarded.

    `was` is what was held, as it was then. `consumer` is None, and `position` a number, for an outbox row.
    """

    id: int
    about: str
    kind: DecisionKind
    consumer: str | None
    message_id: str
    position: int | None
    effect: str | None
    answer: str | None
    former_key: str | None
    forced: bool
    reason: str
    decided_by: str
    database_role: str
    decided_at: datetime
    was: dict[str, Any]


def list_decisions(
    conn: Connection[Any],
    *,
    message_id: str | None = None,
    consumer: str | None = None,
    limit: int = 100,
    schema: str = SCHEMA_DEFAULT,
) -> list[Decision]:
    """The decisions, newest first, at most `limit`; about one message, of one consumer, or all."""
    params: dict[str, Any] = {"consumer": consumer, "limit": limit}
    if message_id is None:
        rows = dicts(conn, statements(schema)["decisions_list"], params)
    else:
        params["message_id"] = canonical_id(message_id)
        rows = dicts(conn, statements(schema)["decisions_about"], params)
    return [Decision(**row | {"kind": DecisionKind(row["kind"])}) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Who decides, and why; both are kept with the decision. `name` '': the role of the database session."""

    name: str = ""
    reason: str = ""


NOBODY = Decider()


def redrive(
    conn: Connection[Any],
    message_id: str,
    *,
    consumer: str,
    fingerprint: str | None = None,
    decider: Decider = NOBODY,
    schema: str = SCHEMA_DEFAULT,
) -> Decided:
    """The message is pending again, without attempts, and an outbox row sends it under its own id.

    One transaction (a savepoint, inside one of the caller's), under a new token. The inbox row is what lets it past the
    window, so what is parked without one (outside the window, a conflict, no id) is refused with the reason, and so are two
    answers. Effects that have an answer keep it; an unknown one is looked up again, never called. `fingerprint` (or how it
    begins) chooses between two bodies.

    A "foreign commit" runs its handler again: look first that nothing of the first run stands.

    Crash before commit: it is parked as before.
    Crash after commit: the relay finds the outbox row and sends it; the worker that held it before is fenced out.
    """

    def carry_out(case: _Case) -> tuple[int, str]:
        case.choose(fingerprint, _why_not_redriven)
        token = case.reopen()
        case.keep(DecisionKind.REDRIVE, decider)
        return token, _what_to_expect(case.intents())

    return _decide(conn, schema, DecisionKind.REDRIVE, consumer, message_id, carry_out)


def settle(
    conn: Connection[Any],
    message_id: str,
    *,
    consumer: str,
    effect: str,
    answer: object,
    refused: bool = False,
    fingerprint: str | None = None,
    decider: Decider = NOBODY,
    schema: str = SCHEMA_DEFAULT,
) -> Decided:
    """The effect did happen: `answer` is recorded as its answer, and the message goes on from there.

    `answer` is what the effect's call would have returned (any JSON value); `refused`: the provider said no, definitely,
    and `answer` is its reason. Of two answers, only the recorded one can be settled: undo the other at the provider first.
    Refused with the reason: nothing is parked there, no such effect, or another answer is recorded.

    Raises `UsageError` for an answer that is not JSON.

    Crash before commit: it is parked as before, without an answer.
    Crash after commit: the relay sends the message; its handler gets the answer without a call.
    """
    answer_json = _as_json(answer)

    def carry_out(case: _Case) -> tuple[int, str]:
        case.choose(fingerprint, _why_not_settled)
        # The inbox row before the intent, as the workers do: the other order could end in a deadlock with one.
        token = case.reopen()
        intent = case.intent(effect)
        if intent.state == "done":
            _check_equal(intent, answer_json, refused=refused)
        else:
            case.execute("settle_intent", {"n": intent.n, "answer": answer_json, "refused": refused})
        case.keep(DecisionKind.SETTLE, decider, effect=effect, answer=answer_json)
        return token, _what_to_expect(case.intents())

    return _decide(conn, schema, DecisionKind.SETTLE, consumer, message_id, carry_out)


def settle_as_not_happened(
    conn: Connection[Any],
    message_id: str,
    *,
    consumer: str,
    effect: str,
    force: bool = False,
    fingerprint: str | None = None,
    decider: Decider = NOBODY,
    schema: str = SCHEMA_DEFAULT,
) -> Decided:
    """The effect did not happen: the message goes on, and the effect is called under a new key.

    Before that call, the effect's look-up, if it has one, is asked once more for the former key; what it finds is recorded
    instead. A refused effect can be called again in the same way. As long as the provider may still act under the former
    key (its window, by the database's clock), this is refused without `force`: a call that is still under way may yet
    charge, and the new key could not tell.

    Crash before commit: it is parked as before.
    Crash after commit: the relay sends the message; the redelivery calls under the new key (without keys, once).
    """

    def carry_out(case: _Case) -> tuple[int, str]:
        case.choose(fingerprint, _why_not_begun_again)
        token = case.reopen()
        intent = case.intent(effect)
        _check_did_not_happen(intent, force=force)
        key = idempotency_key(consumer, case.message_id, effect, generation=intent.generation + 1)
        case.execute("reopen_intent", {"n": intent.n, "key": key})
        forced = force and not _is_over(intent)
        # The answer, where there is one, is a refusal: it is kept with the decision that sets it aside.
        case.keep(
            DecisionKind.DID_NOT_HAPPEN, decider, effect=effect, answer=intent.answer, former_key=intent.key, forced=forced
        )
        return token, ""

    return _decide(conn, schema, DecisionKind.DID_NOT_HAPPEN, consumer, message_id, carry_out)


def discard_parked(
    conn: Connection[Any],
    message_id: str,
    *,
    consumer: str,
    decider: Decider,
    fingerprint: str | None = None,
    schema: str = SCHEMA_DEFAULT,
) -> Decided:
    """Nothing more is done about the message, which is kept whole in `decisions`.

    Its inbox row, and its effects without an answer, are discarded with it: a redelivery is turned away, and upkeep may
    drop their day. An answer that comes after that parks the message again, as answered after discard. What was parked
    without an inbox row of its own, or beside one, leaves no trace there: if it comes again, it is parked again.

    Raises `UsageError` without a reason.

    Crash before commit: it is parked as before.
    Crash after commit: it is discarded.
    """
    if not decider.reason.strip():
        raise UsageError("a discard needs a reason: it is all that will tell why nothing more was done")

    def carry_out(case: _Case) -> tuple[int, str]:
        case.choose(fingerprint, _why_not_discarded)
        # No row: what is parked beside an inbox row leaves that as it is, and so does what has none.
        case.execute("discard_inbox", {})
        case.keep(DecisionKind.DISCARD, decider)
        # Once the effects are locked: an answer that came a moment ago is told as well. Of what is parked beside an inbox
        # row, the effects are that row's, and go on with it.
        return 0, _what_stays(case.intents()) if case.is_of_the_inbox_row else ""

    return _decide(conn, schema, DecisionKind.DISCARD, consumer, message_id, carry_out)


class _Refusal(Exception):
    """The decision cannot be made; its text is the reason."""


class _Parked(NamedTuple):
    """A parked message, locked, and the inbox row beside it."""

    fingerprint: bytes
    reason: ParkReason
    message: Message | None  # None: its envelope is not one of a message
    malformed: str
    inbox_state: InboxState | None
    same_payload: bool | None


class _Intent(NamedTuple):
    """An effect of the message, locked. `acting_seconds`: for how long the provider may still act; None: nobody knows."""

    n: int
    name: str
    state: str
    refused: bool
    key: str
    generation: int
    answer: str | None
    acting_seconds: float | None


class _Case:
    """One parked message while a person's decision about it is carried out; it lives inside one transaction."""

    def __init__(self, conn: Connection[Any], schema: str, consumer: str, message_id: str) -> None:
        self._conn = conn
        self._schema = schema
        self.message_id = message_id
        # An inbox row is found by its key, a parked row by text: what has no inbox row can be parked, too.
        self._params: dict[str, Any] = {
            "consumer": consumer, "message_id": row_key(message_id), "parked_id": message_id,
        }  # fmt: skip
        self._chosen: _Parked | None = None

    def choose(self, fingerprint: str | None, why_not: Callable[[_Parked], str]) -> None:
        """The one parked message that is meant is locked. Raises `_Refusal` when there is none, or more than one."""
        rows = dicts(self._conn, statements(self._schema)["decide_read"], self._params)
        wanted = (fingerprint or "").lower()
        parked = [_parked(**typed(row)) for row in rows if row["fingerprint"].hex().startswith(wanted)]
        if not parked:
            fingerprints = ", ".join(row["fingerprint"].hex()[:12] for row in rows)
            others = f"what is parked under this id has another fingerprint ({fingerprints})" if rows else ""
            raise _Refusal(others or f"nothing is parked there under this id{self._latest()}")
        possible = [row for row in parked if not why_not(row)]
        if not possible:
            raise _Refusal("; ".join(dict.fromkeys(why_not(row) for row in parked)))
        if len(possible) > 1:
            bodies = ", ".join(row.fingerprint.hex()[:12] for row in possible)
            raise _Refusal(f"{len(possible)} bodies are parked under this id: name one by its fingerprint ({bodies})")
        self._chosen = possible[0]
        self._params["fingerprint"] = self._chosen.fingerprint

    @property
    def is_of_the_inbox_row(self) -> bool:
        """The message is what its inbox row holds as parked."""
        return self._chosen is not None and self._chosen.inbox_state == "parked" and self._chosen.same_payload is True

    def reopen(self) -> int:
        """The inbox row is pending under a new token, which is returned, and the message is in the outbox."""
        token = one_tuple(self._conn, statements(self._schema)["redrive_inbox"], self._params)
        if token is None or self._chosen is None or self._chosen.message is None:
            raise _Refusal(f"its inbox row is not parked any more{self._latest()}")
        self.execute("redrive_delete_attempts", {})
        # Its inbox row says that a consumer has taken it under this id, whatever kind of id that is.
        publish(self._conn, self._chosen.message, schema=self._schema, untimed_ids=True)
        return int(token[0])

    def intents(self) -> list[ParkedIntent]:
        return intents_of(self._conn, self._schema, self._params["consumer"], self.message_id)

    def intent(self, effect: str) -> _Intent:
        """The effect of this name, locked. Raises `_Refusal` when the message has none."""
        rows = dicts(self._conn, statements(self._schema)["decide_intents"], self._params)
        intents = [_Intent(**row) for row in rows]
        named = next((intent for intent in intents if intent.name == effect), None)
        if named is not None:
            return named
        if not intents:
            raise _Refusal("its handler never asked for an effect, so nothing can have happened outside: redrive it")
        known = ", ".join(f"{intent.name!r} ({intent.state})" for intent in intents)
        raise _Refusal(f"it has no effect {effect!r}; recorded are {known}")

    def execute(self, name: str, params: dict[str, Any]) -> None:
        self._conn.execute(statements(self._schema)[name], self._params | params)

    def keep(
        self,
        kind: DecisionKind,
        decider: Decider,
        *,
        effect: str | None = None,
        answer: str | None = None,
        former_key: str | None = None,
        forced: bool = False,
    ) -> None:
        """The message is not parked any more; the decision about it is a row."""
        params = {
            "decision": kind.value, "effect": effect, "answer": answer, "former_key": former_key, "forced": forced,
            "reason": storable(decider.reason.strip()), "decided_by": storable(decider.name.strip()),
        }  # fmt: skip
        self.execute("decide", params)

    def _latest(self) -> str:
        """What was decided about it last, as the end of a sentence; '' when nothing was."""
        # Another consumer's message under the same id is another case; where no consumer was named, the sentence names it.
        consumer = self._params["consumer"] or None
        decisions = list_decisions(self._conn, message_id=self.message_id, consumer=consumer, limit=1, schema=self._schema)
        return "".join(
            f": {decision.decided_by} decided {decision.kind.value!r}{'' if consumer else f' for {decision.consumer}'} at "
            f"{decision.decided_at:%Y-%m-%d %H:%M:%S %Z}"
            for decision in decisions
        )


def _decide(
    conn: Connection[Any],
    schema: str,
    kind: DecisionKind,
    consumer: str,
    message_id: str,
    carry_out: Callable[[_Case], tuple[int, str]],
) -> Decided:
    """The decision is carried out whole, or refused and nothing is written."""
    known = canonical_id(message_id)
    try:
        with conn.transaction():
            token, expect = carry_out(_Case(conn, schema, consumer, known))
    except _Refusal as refusal:
        return Decided(kind=kind, consumer=consumer, message_id=known, why_not=str(refusal))
    return Decided(kind=kind, consumer=consumer, message_id=known, token=token, expect=expect)


def _parked(
    fingerprint: bytes,
    reason: ParkReason,
    headers: dict[str, str],
    body: bytes,
    inbox_state: InboxState | None,
    same_payload: bool | None,
) -> _Parked:
    try:
        message, malformed = Message.from_wire(headers, body), ""
    except MalformedMessage as error:
        message, malformed = None, f"it was parked ({reason.value}) for its {error}"
    return _Parked(fingerprint, reason, message, malformed, inbox_state, same_payload)


_TWO = (
    "its provider gave two answers, so it may have acted twice: undo what is too many there, then settle it with the "
    "recorded answer, or discard it"
)
_FOREIGN = (
    "its handler ended its transaction by itself, so what it wrote may stand: if none of it does, redrive it (--checked); "
    "if all of it does, discard it"
)


def _why_not_redriven(parked: _Parked) -> str:
    """Why a message that is parked so cannot be tried again; '' when it can."""
    # Running the handler again cannot mend that, whatever the inbox row says.
    return _TWO if parked.reason is ParkReason.TWO_ANSWERS else _why_not_sent(parked)


def _why_not_settled(parked: _Parked) -> str:
    """Why no effect of a message that is parked so can be settled; '' when one can."""
    # Its handler would run once more, and nobody has said that its writes do not stand.
    return _FOREIGN if parked.reason is ParkReason.FOREIGN_COMMIT else _why_not_sent(parked)


def _why_not_begun_again(parked: _Parked) -> str:
    return _why_not_redriven(parked) or _why_not_settled(parked)


def _why_not_sent(parked: _Parked) -> str:
    """Why a message that is parked so can never go on; '' when it can."""
    if parked.malformed:
        return parked.malformed
    reason, state = parked.reason.value, parked.inbox_state
    if state is None and parked.reason in (ParkReason.TWO_ANSWERS, ParkReason.ANSWERED_AFTER_DISCARD):
        # Its day is gone, and its effect did happen: published again, it would happen once more.
        return f"it was parked ({reason}), and its inbox row is gone: put it right at the provider, then discard it"
    if state is None:
        return (
            f"it was parked ({reason}) without an inbox row, so nothing would stop a second run: make sure that it "
            "was never handled, publish it again under a new id, and discard this one"
        )
    if not parked.same_payload:
        return (
            f"it was parked ({reason}), and the inbox row of its id is of another payload: one of the two is wrong; "
            "if it is this one, discard it"
        )
    if state == "parked":
        return ""
    if state == "done" and parked.reason is ParkReason.OUTSIDE_WINDOW:
        return f"it was parked ({reason}), and another copy of it was handled since: discard it, nothing else is left to do"
    return f"it was parked ({reason}) beside its inbox row, which is {state}: look into it, then discard it; no retry helps"


def _why_not_discarded(_parked: _Parked) -> str:
    return ""


def _what_to_expect(intents: Sequence[ParkedIntent]) -> str:
    """That a recorded refusal will be raised again; '' when there is none."""
    names = ", ".join(repr(intent.name) for intent in intents if intent.refused)
    if not names:
        return ""
    return (
        f"its provider refused {names}, and that is recorded: the provider is not asked again, `once.effect` raises "
        "`EffectRefused` again, and the message is parked again unless the handler catches it now"
    )


def _what_stays(intents: Sequence[ParkedIntent]) -> str:
    """What the provider has done, or may have done, which a discard does not undo; '' when there is nothing."""
    happened = ", ".join(repr(intent.name) for intent in intents if intent.state == "done" and not intent.refused)
    unknown = ", ".join(repr(intent.name) for intent in intents if intent.state != "done")
    sentences = []
    if happened:
        sentences.append(f"{happened} did happen at the provider, and is not undone by this")
    if unknown:
        sentences.append(f"nobody knows whether {unknown} happened; if an answer still comes, the message is parked again")
    return "; ".join(sentences)


def _check_equal(intent: _Intent, answer_json: str, *, refused: bool) -> None:
    """Raises `_Refusal` unless this is the answer that is recorded."""
    recorded = intent.answer or "null"
    if canonical_json(json.loads(recorded)) == answer_json and intent.refused == refused:
        return
    as_what = "a refusal" if intent.refused else "an answer"
    raise _Refusal(f"effect {intent.name!r} has {as_what} already, which is never replaced: {recorded}")


def _is_over(intent: _Intent) -> bool:
    """The provider can no longer act under this key, or has refused to."""
    return intent.state == "done" or intent.acting_seconds == 0


def _check_did_not_happen(intent: _Intent, *, force: bool) -> None:
    """Raises `_Refusal` when the effect did happen, or may still happen under its key."""
    if intent.state == "done" and not intent.refused:
        raise _Refusal(f"effect {intent.name!r} did happen: its answer is recorded ({intent.answer}); redrive the message")
    if force or _is_over(intent):
        return
    if intent.acting_seconds is None:
        how_long = "nobody knows for how long, because the intent is older than this version"
        instead = "see in the provider's documentation how long it keeps a key"
    else:
        how_long = f"for another {_duration(intent.acting_seconds)}"
        instead = "wait until then"
    if intent.state == "pending":
        instead = "redrive it: its key is sent again as long as that cannot act twice, and after that it is looked up"
    raise _Refusal(
        f"the provider may still act under the key of effect {intent.name!r} ({how_long}): if a call is still under way, a "
        f"new key would make it happen twice; {instead}. --force takes that risk, after a look at the provider's own books"
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _as_json(answer: object) -> str:
    try:
        return canonical_json(answer)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the answer must be plain JSON, as the effect's call returns it: {error}") from None
