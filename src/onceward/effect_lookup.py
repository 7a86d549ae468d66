"""Asks a handler's own look-up whether an effect of a parked message has happened.

An effect's look-up and its request are known to the handler alone, so the handler runs until it asks for that effect.
Nothing is called and nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from psycopg import Connection

from onceward.callables import check_done
from onceward.database import dicts
from onceward.errors import EffectRefused, UsageError
from onceward.intents import former_keys, request_fingerprint
from onceward.message import Message, row_key
from onceward.parked import ParkedMessage
from onceward.perform import Call, check_effect, read_answer
from onceward.protocol.words import Unreadable
from onceward.provider import ProviderProfile
from onceward.statements import SCHEMA_DEFAULT, statements

if TYPE_CHECKING:
    from onceward.consumer import Consumer


class _Asked(BaseException):
    """The handler asked for the effect. Not an Exception, which a handler may catch."""

    def __init__(self, look_up: Call, request: Any, keys: Sequence[str]) -> None:
        super().__init__()
        self.look_up = look_up
        self.request = request
        self.keys = keys


def look_up_effect(
    conn: Connection[Any], consumer: Consumer, parked: ParkedMessage, effect: str, *, schema: str = SCHEMA_DEFAULT
) -> Any:
    """What the provider knows of the effect: its answer as plain JSON, or None where the look-up found nothing.

    The handler runs as in any attempt, up to that effect: those before it answer from their rows, and it gets neither a
    provider nor a transaction. What else it does outside of `once` happens again, as in any attempt. The effect is looked
    up under its key, and under the keys that it had before a person decided that it had not happened.

    Raises `EffectRefused` when the look-up found a refusal; `UsageError` when the handler cannot be brought there: it is
    another consumer's, has no such effect or no look-up for it, or asks for another request than the recorded one. Raises
    whatever the look-up itself raises.
    """
    if consumer.name != parked.consumer:
        raise UsageError(f"the message is parked for {parked.consumer}, and these are the handlers of {consumer.name}")
    handler = consumer.handlers.get(parked.type or "")
    if handler is None or handler.shape != "effectful":
        raise UsageError(f"{consumer.name} has no effectful handler for {parked.type!r}, so it has no look-up either")
    key = {"consumer": parked.consumer, "message_id": row_key(parked.message_id)}
    rows = dicts(conn, statements(schema)["look_up_intents"], key)
    try:
        handler.call(Message.from_wire(parked.headers, parked.body), _OnlyLooks(effect, parked, rows))
    except _Asked as asked:
        return _look_up(asked, effect)
    raise UsageError(f"the handler of {parked.type!r} ended without asking for the effect {effect!r}")


def _look_up(asked: _Asked, effect: str) -> Any:
    # Out of the handler's reach, which may make something else of what the look-up raises.
    refusal: EffectRefused | None = None
    for key in asked.keys:
        try:
            found = asked.look_up(asked.request, key)
        except EffectRefused as error:
            # Under another key it may have happened. Of a former key, a refusal says nothing more: it was begun again.
            refusal = refusal or (error if key == asked.keys[0] else None)
            continue
        check_done(found, f"effect {effect!r}: its look-up")
        if found is None:
            continue
        answer = read_answer(found, effect)
        if isinstance(answer, Unreadable):
            raise UsageError(answer.detail)
        return json.loads(answer.answer)
    if refusal is not None:
        raise refusal
    return None


class _OnlyLooks:
    """Stands in for `Once`: earlier effects answer from their rows, the wanted one is looked up, and nothing else goes."""

    lease_lost = False

    def __init__(self, wanted: str, parked: ParkedMessage, rows: list[dict[str, Any]]) -> None:
        self._wanted = wanted
        self._parked = parked
        self._rows = {row["name"]: row for row in rows}

    def effect(self, name: str, call: Call, *, request: Any, provider: ProviderProfile, lookup: Call | None = None) -> Any:
        check_effect(name, call, provider, lookup)
        row = self._rows.get(name)
        if row is None or row["request_fingerprint"] != request_fingerprint(request):
            raise UsageError(
                f"the handler asks for the effect {name!r}, but another request, or none, is recorded under that name: use "
                "the code that made the recorded one"
            )
        if name == self._wanted:
            if lookup is None:
                raise UsageError(f"the effect {name!r} has no look-up: ask the provider yourself for the key {row['key']}")
            former = former_keys(self._parked.consumer, self._parked.message_id, name, row["generation"])
            raise _Asked(lookup, request, (row["key"], *former))
        if row["answer"] is None:
            raise UsageError(f"the effect {name!r}, which comes first, has no answer yet: settle that one first")
        answer = json.loads(row["answer"])
        if row["refused"]:
            raise EffectRefused(answer)
        return answer

    def transaction(self) -> NoReturn:
        raise UsageError(f"the handler did not ask for the effect {self._wanted!r} before its transaction")
