"""Asks a handler's own look-up whether an effect of a parked message has happened.

An effect's look-up and its request are known to the handler alone, so the handler runs until it asks for that effect.
Nothing is called and nothing is written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from psycopg import Connection

from onceward.database import dicts
from onceward.errors import EffectRefused, UsageError
from onceward.intents import request_fingerprint
from onceward.message import Message, parse_uuid7
from onceward.parked import ParkedMessage
from onceward.perform import Call, check_effect
from onceward.provider import ProviderProfile
from onceward.statements import SCHEMA_DEFAULT, statements

if TYPE_CHECKING:
    from onceward.consumer import Consumer


class _Asked(BaseException):
    """The handler asked for the effect; `answer` is what its look-up said, None when it found nothing."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


def look_up_effect(
    conn: Connection[Any], consumer: Consumer, parked: ParkedMessage, effect: str, *, schema: str = SCHEMA_DEFAULT
) -> Any:
    """What the provider knows of the effect: its answer, or None where the look-up found nothing.

    The handler runs as in any attempt, up to that effect: those before it answer from their rows, and it gets neither a
    provider nor a transaction. What else it does outside of `once` happens again, as in any attempt.

    Raises `UsageError` when the handler cannot be brought there: it has no such effect or no look-up for it, or asks for
    another request than the recorded one. Raises whatever the look-up itself raises.
    """
    handler = consumer.handlers.get(parked.type or "")
    if handler is None or handler.shape != "effectful":
        raise UsageError(f"{consumer.name} has no effectful handler for {parked.type!r}, so it has no look-up either")
    key = {"consumer": parked.consumer, "message_id": parse_uuid7(parked.message_id)}
    rows = dicts(conn, statements(schema)["look_up_intents"], key)
    try:
        handler.call(Message.from_wire(parked.headers, parked.body), _OnlyLooks(effect, rows))
    except _Asked as asked:
        return asked.answer
    raise UsageError(f"the handler of {parked.type!r} ended without asking for the effect {effect!r}")


class _OnlyLooks:
    """Stands in for `Once`: earlier effects answer from their rows, the wanted one is looked up, and nothing else goes."""

    lease_lost = False

    def __init__(self, wanted: str, rows: list[dict[str, Any]]) -> None:
        self._wanted = wanted
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
            answers = (lookup(request, key) for key in (row["key"], *row["former_keys"]))
            raise _Asked(next((answer for answer in answers if answer is not None), None))
        if row["answer"] is None:
            raise UsageError(f"the effect {name!r}, which comes first, has no answer yet: settle that one first")
        answer = json.loads(row["answer"])
        if row["refused"]:
            raise EffectRefused(answer)
        return answer

    def transaction(self) -> NoReturn:
        raise UsageError(f"the handler did not ask for the effect {self._wanted!r} before its transaction")
