"""The intent row: "this consumer is about to touch the outside", committed before the call.

`Intents` is the second door, for code that keeps its own loop, and what the runtime itself uses.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import psycopg
from psycopg import BaseConnection, Connection

from onceward.database import check_connection
from onceward.errors import UsageError
from onceward.inbox import Take
from onceward.message import Message, canonical_id, canonical_json, row_key
from onceward.provider import ProviderProfile, idempotency_key
from onceward.statements import SCHEMA_DEFAULT, statements
from onceward.steps import Steps, all_rows, carry_out, one_row


class IntentResult(Enum):
    """What is to be done about an effect. Only CALL allows the call."""

    CALL = "call"  # the intent is committed, and the provider still knows its key: call now, with that key
    ANSWERED = "answered"  # the answer is recorded: use it, do not call
    CHECK = "check"  # a person decided that it had not happened: look it up; if nothing is found, intend as `checked`
    LOOK_UP = "look up"  # it may have happened, and the provider may have forgotten the key: look it up, never call
    CHANGED = "changed"  # another effect or request is recorded under this number: never call, a person must look
    LEASE_LOST = "lease lost"  # the claim lapsed or is another worker's: stop, touch nothing


@dataclass(frozen=True, slots=True)
class Intent:
    """The result of `Intents.intend`."""

    result: IntentResult
    key: str  # the idempotency key: the same on every attempt, until a person decides that the effect did not happen
    answer_json: str = "null"  # ANSWERED: the recorded answer, as JSON text
    refused: bool = False  # ANSWERED: the provider refused, and the answer is its reason
    detail: str = ""
    former_keys: tuple[str, ...] = ()  # those under which it was called before such a decision

    @property
    def answer(self) -> Any:
        """The recorded answer as a JSON value; None unless the result is ANSWERED."""
        return json.loads(self.answer_json)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key under which the effect may have happened: a look-up asks for each."""
        return (self.key, *self.former_keys)


class RecordResult(Enum):
    """What became of an answer."""

    RECORDED = "recorded"  # stored, now or before
    TWO_ANSWERS = "two answers"  # another answer is stored: the effect may have happened twice, a person must look
    SUPERSEDED = "superseded"  # not stored: a refusal under a key that a person has since replaced; stop, touch nothing
    AFTER_DISCARD = "after discard"  # not stored: a person has discarded the message, and must hear that it happened


@dataclass(frozen=True, slots=True)
class Record:
    """The result of `Intents.record`; `detail` holds both answers where there are two."""

    result: RecordResult
    detail: str = ""


class IntentRow(NamedTuple):
    """One look at an intent, as `intent_read` gives it."""

    name: str
    request_fingerprint: bytes
    key: str
    generation: int
    state: str
    refused: bool
    answer: str
    callable: bool


class IntentCalls:
    """The second door's calls as steps, and how it is made: what `Intents` and `onceward.aio.Intents` share."""

    def __init__(self, consumer: str, *, schema: str = SCHEMA_DEFAULT) -> None:
        self.consumer = consumer
        self.statements = statements(schema)

    def key(self, message: Message, name: str) -> str:
        """The first idempotency key of the effect `name` of `message`: what `intend` says is the one to send."""
        # From the id's one canonical spelling: a resend that writes the same UUID in capitals is the same message.
        return idempotency_key(self.consumer, canonical_id(message.id), name)

    def _intend_steps(
        self,
        message: Message,
        *,
        take: Take,
        n: int,
        name: str,
        request: object,
        provider: ProviderProfile,
        checked: bool,
    ) -> Steps[Intent]:
        key = self.key(message, name)
        params = self._row(message, n) | {
            "token": take.token,
            "name": name,
            "request_fingerprint": request_fingerprint(request),
            "key": key,
            "callable_seconds": provider.callable_seconds,
            "acting_seconds": provider.acting_seconds,
            "checked": checked,
        }
        # One statement that locks the claim and inserts: between a check of the lease and an INSERT behind it, another
        # worker could take the message over and call as well.
        [(held, made, _)] = yield from all_rows(self.statements["intent_insert"], params)
        if made:
            return Intent(IntentResult.CALL, key)
        return (yield from self._read(message, params)) if held else Intent(IntentResult.LEASE_LOST, key)

    def _read(self, message: Message, params: dict[str, Any]) -> Steps[Intent]:
        found = yield from one_row(self.statements["intent_read"], params)
        if found is None:
            # Between the two statements the lease ran out, and upkeep dropped the message's day.
            return Intent(IntentResult.LEASE_LOST, params["key"])
        row = IntentRow(*found)
        # Not the key that the code would make: a person's decision may have given the effect another one.
        key = row.key
        # Before the state: an answer that is recorded belongs to the effect that was asked for then.
        if (row.name, row.request_fingerprint) != (params["name"], params["request_fingerprint"]):
            recorded = "another request" if row.name == params["name"] else f"the effect {row.name!r}"
            detail = f"effect {params['n']} is {params['name']!r} now, but {recorded} is recorded there"
            return Intent(IntentResult.CHANGED, key, detail=detail)
        if row.state == "done":
            return Intent(IntentResult.ANSWERED, key, row.answer, row.refused)
        former = former_keys(self.consumer, canonical_id(message.id), row.name, row.generation)
        has_no_keys = not params["callable_seconds"]
        if row.state != "pending" or not (row.callable or (has_no_keys and former)):
            return Intent(IntentResult.LOOK_UP, key, former_keys=former)
        if former and not params["checked"]:
            return Intent(IntentResult.CHECK, key, former_keys=former)
        # Without keys, this is the one call that a person's decision allows: that it begins must be committed before it
        # does, or a redelivery after a crash would call once more.
        if has_no_keys and (yield from one_row(self.statements["intent_begin_unkeyed"], params)) is None:
            return Intent(IntentResult.LOOK_UP, key, former_keys=former)
        return Intent(IntentResult.CALL, key, former_keys=former)

    def record_steps(self, message: Message, *, n: int, answer_json: str, refused: bool, key: str | None) -> Steps[Record]:
        """`Intents.record` as steps, for an answer that is canonical JSON text already."""
        params = self._row(message, n) | {"answer": answer_json, "refused": refused, "key": key}
        if (yield from one_row(self.statements["intent_record"], params)) is not None:
            return Record(RecordResult.RECORDED)
        found = yield from one_row(self.statements["intent_read"], params | {"callable_seconds": 0.0})
        if found is None:
            raise psycopg.InternalError(f"intent {n} of message {message.id} is gone")
        row = IntentRow(*found)
        if row.state == "discarded":
            how = "refused" if refused else "answered"
            detail = f"effect {n} was {how} by {answer_json}, but a person has discarded the message"
            return Record(RecordResult.AFTER_DISCARD, detail)
        if row.state != "done":
            return Record(RecordResult.SUPERSEDED, f"effect {n} was refused under a former key, and has begun again since")
        # Postgres gives the text back as it stores it, so both are compared in the one canonical form.
        if canonical_json(json.loads(row.answer)) == answer_json and row.refused == refused:
            return Record(RecordResult.RECORDED)
        # The new answer first: it is stored nowhere else, and a long detail is cut at its end.
        detail = f"effect {n} was answered by {answer_json}, but the answer that is recorded is {row.answer}"
        return Record(RecordResult.TWO_ANSWERS, detail)

    def _row(self, message: Message, n: int) -> dict[str, Any]:
        return {"consumer": self.consumer, "message_id": row_key(message.id), "n": n}


class Intents(IntentCalls):
    """The intents of one consumer, for code that keeps its own loop.

    Each method is one transaction of its own on the caller's connection, which must be in autocommit mode with no
    transaction open: an intent that the caller could still roll back would not say that a call may have happened. For
    asyncio: `onceward.aio.Intents`.
    """

    def intend(
        self,
        conn: Connection[Any],
        message: Message,
        *,
        take: Take,
        n: int,
        name: str,
        request: object,
        provider: ProviderProfile,
        checked: bool = False,
    ) -> Intent:
        """The intent is committed, or what is known of it is returned; see `IntentResult`.

        `take` is what `Inbox.claim` returned. `n` counts this message's effects from 1, in the order in which the code asks
        for them: on a retry, the n-th effect must be the one that was recorded as the n-th, with the same `name` and an
        equal `request` (plain JSON). By its name alone, an effect that a deploy renamed would be new, and be called again.
        `checked`: the result before was CHECK, and the look-up of every key found nothing.

        Raises `UsageError` for a request that is not plain JSON, or inside a transaction.

        Crash after it: the intent is pending; the redelivery calls with the same key, inside the provider's window. Where a
        person has begun the effect again, it looks it up first; without keys, it never calls again.
        """
        _check_autocommit(conn)
        steps = self._intend_steps(message, take=take, n=n, name=name, request=request, provider=provider, checked=checked)
        return carry_out(conn, steps)

    def record(
        self,
        conn: Connection[Any],
        message: Message,
        *,
        n: int,
        answer: object,
        refused: bool = False,
        key: str | None = None,
    ) -> Record:
        """The answer (any JSON value) of the n-th effect is stored, write-once.

        It needs no lease: an answer is a fact, whoever reports it, and a worker that was taken over must not throw away the
        only trace of a charge. `refused`: the provider said no, definitely, and `answer` is its reason. `key`: under which
        it answered; a refusal under a former key says nothing of the effect since a person began it again.

        Crash before it: the intent stays pending, and the redelivery asks with the same key.
        Crash after it: the redelivery gets this answer without a call.
        """
        return record_json(self, conn, message, n=n, answer_json=canonical_json(answer), refused=refused, key=key)


def record_json(
    intents: Intents, conn: Connection[Any], message: Message, *, n: int, answer_json: str, refused: bool, key: str | None
) -> Record:
    """As `Intents.record`, for an answer that is canonical JSON text already."""
    _check_autocommit(conn)
    return carry_out(conn, intents.record_steps(message, n=n, answer_json=answer_json, refused=refused, key=key))


def former_keys(consumer: str, message_id: str, name: str, generation: int) -> tuple[str, ...]:
    """The keys of the effect's earlier generations, the latest first."""
    return tuple(
        idempotency_key(consumer, message_id, name, generation=earlier) for earlier in range(generation - 1, 0, -1)
    )


def request_fingerprint(request: object) -> bytes:
    """32 bytes: SHA-256 of the request as canonical JSON. Raises `UsageError` for a request that is not JSON."""
    try:
        return hashlib.sha256(canonical_json(request).encode()).digest()
    except (TypeError, ValueError) as error:
        raise UsageError(f"an effect's request must be plain JSON, to be compared on a retry: {error}") from error


def _check_autocommit(conn: Connection[Any]) -> None:
    check_connection(conn)
    check_commits_by_itself(conn)


def check_commits_by_itself(conn: BaseConnection[Any]) -> None:
    """Raises `UsageError` unless each statement on `conn` is committed on its own; for a connection of either kind."""
    if not conn.autocommit or conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise UsageError("an intent must be committed before its call: use an autocommit connection, outside a transaction")
