"""The intent row: "this consumer is about to touch the outside", committed before the call.

Also part of the second door: the caller's connection comes first, and each method is one transaction of its own on it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from onceward.database import check_connection, one_tuple
from onceward.errors import UsageError
from onceward.inbox import Take
from onceward.message import Message, canonical_id, canonical_json
from onceward.protocol.words import Changed, Expired, FencedOff, Intended, Recorded, TwoAnswers
from onceward.provider import ProviderProfile, idempotency_key
from onceward.statements import SCHEMA_DEFAULT, statements


class Intents:
    """The intents of one consumer."""

    def __init__(self, consumer: str, *, schema: str = SCHEMA_DEFAULT) -> None:
        self.consumer = consumer
        self.statements = statements(schema)

    def key(self, message: Message, name: str) -> str:
        """The idempotency key to send with the effect `name` of `message`: the same for every attempt.

        From the id's one canonical spelling: a resend that writes the same UUID in capitals is the same message.
        """
        return idempotency_key(self.consumer, canonical_id(message.id), name)

    def intend(
        self, conn: Connection[Any], message: Message, taking: Take, *, n: int, name: str, request: object,
        provider: ProviderProfile,
    ) -> Intended | Recorded | Expired | Changed | FencedOff:  # fmt: skip
        """The n-th intent of this message is committed, or what is known of it is returned.

        `Intended`: call now, with `key(message, name)`. `Recorded`: its answer, do not call. `Expired`: never call, look it
        up. `Changed`: another effect is recorded at this place. `FencedOff`: the lease is lost or lapsed, do not call.

        Crash after it: the intent is pending; the redelivery calls with the same key, inside the provider's window.
        """
        fingerprint = request_fingerprint(request)
        params = self._params(message, n) | {
            "token": taking.token,
            "name": name,
            "request_fingerprint": fingerprint,
            "key": self.key(message, name),
            "callable_seconds": provider.callable_seconds,
        }
        _check_autocommit(conn)
        held, made, _ = one_tuple(conn, self.statements["intent_insert"], params) or (False, False, None)
        if made:
            return Intended()
        return self._read(conn, params) if held else FencedOff()

    def _read(self, conn: Connection[Any], params: dict[str, Any]) -> Intended | Recorded | Expired | Changed | FencedOff:
        with conn.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(self.statements["intent_read"], params).fetchone()
        if row is None:
            return FencedOff()
        if (row["name"], row["request_fingerprint"]) != (params["name"], params["request_fingerprint"]):
            what = "another request" if row["name"] == params["name"] else f"the effect {row['name']!r}"
            return Changed(f"effect {params['n']} is {params['name']!r} now, but {what} is recorded there")
        if row["state"] == "done":
            return Recorded(row["answer"], row["refused"])
        return Intended() if row["state"] == "pending" and row["callable"] else Expired()

    def record(
        self, conn: Connection[Any], message: Message, *, n: int, answer: str, refused: bool = False
    ) -> Recorded | TwoAnswers:
        """The answer (canonical JSON text) is stored, write-once and not fenced: a fact is a fact, whoever reports it.

        Crash before it: the intent stays pending, and the redelivery asks with the same key.
        Crash after it: the redelivery gets this answer without a call.
        """
        _check_autocommit(conn)
        params = self._params(message, n) | {"answer": answer, "refused": refused}
        with conn.cursor(row_factory=dict_row) as cursor:
            if cursor.execute(self.statements["intent_record"], params).fetchone() is not None:
                return Recorded(answer, refused)
            there = cursor.execute(self.statements["intent_read"], params | {"callable_seconds": 0.0}).fetchone()
        if there is None:
            raise psycopg.InternalError(f"intent {n} of message {message.id} is gone")
        if canonical_json(json.loads(there["answer"])) == answer and there["refused"] == refused:
            return Recorded(answer, refused)
        # The new one first: it is stored nowhere else.
        return TwoAnswers(f"effect {n} met the answer {answer}, but the one that is recorded is {there['answer']}")

    def _params(self, message: Message, n: int) -> dict[str, Any]:
        return {"consumer": self.consumer, "message_id": UUID(message.id), "n": n}


def request_fingerprint(request: object) -> bytes:
    """32 bytes: SHA-256 of the request as canonical JSON. Raises `UsageError` for a request that is no JSON."""
    try:
        return hashlib.sha256(canonical_json(request).encode()).digest()
    except (TypeError, ValueError) as error:
        raise UsageError(f"an effect's request must be plain JSON, to be compared on a retry: {error}") from error


def _check_autocommit(conn: Connection[Any]) -> None:
    check_connection(conn)
    if not conn.autocommit or conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise UsageError("an intent must be committed before its call: use an autocommit connection, outside a transaction")
