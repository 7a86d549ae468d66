"""The provider's durable state: what was charged, and the answer that each idempotency key has. SQLite, one file."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from onceward_proof.provider.answers import Answer, JsonObject
from onceward_proof.provider.call import Call, Fingerprint

WINDOW_SECONDS: Final = 86_400.0

# `created` is the movable clock, `created_real` the wall clock. `keys.created` is indexed for pruning.
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS objects (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, account TEXT NOT NULL,
    transfer_group TEXT, created REAL NOT NULL, created_real REAL NOT NULL,
    idempotency_key TEXT, worker TEXT, body TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS objects_group ON objects (account, kind, transfer_group, position);
CREATE TABLE IF NOT EXISTS keys (
    account TEXT NOT NULL, key TEXT NOT NULL, endpoint TEXT NOT NULL, parameters TEXT NOT NULL,
    created REAL NOT NULL, request_id TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL, charge TEXT,
    PRIMARY KEY (account, key)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_created ON keys (created);
CREATE TABLE IF NOT EXISTS faults (position INTEGER PRIMARY KEY, kind TEXT NOT NULL, transfer_group TEXT) STRICT;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT, WITHOUT ROWID;
"""
FIND_KEY: Final = """SELECT endpoint, parameters, request_id, status, body, charge FROM keys
    WHERE account = :account AND key = :key AND created > :pruned"""
STORE_KEY: Final = """INSERT OR REPLACE INTO keys
    VALUES (:account, :key, :endpoint, :parameters, :created, :request_id, :status, :body, :charge)"""
ADD_FAULT: Final = "INSERT INTO faults (kind, transfer_group) VALUES (:kind, :transfer_group)"
PRUNE_KEYS: Final = "DELETE FROM keys WHERE created <= :pruned"
# The columns are named, so that a ledger from before, which has one more of them, still serves.
ADD_CHARGE: Final = """INSERT INTO objects
    (id, kind, account, transfer_group, created, created_real, idempotency_key, worker, body) VALUES
    (:id, 'charge', :account, :transfer_group, :created, :created_real, :idempotency_key, :worker, :body)"""
FIND_CHARGE: Final = "SELECT body FROM objects WHERE account = :account AND kind = 'charge' AND id = :id"
# A filter that is NULL is off. `since` is inclusive, `until` exclusive.
LIST_CHARGES: Final = """SELECT body FROM objects WHERE account = :account AND kind = 'charge'
    AND (:transfer_group IS NULL OR transfer_group = :transfer_group)
    AND (:since IS NULL OR created >= :since) AND (:until IS NULL OR created < :until)
    AND (:after IS NULL OR position < (SELECT position FROM objects WHERE id = :after))
    ORDER BY position DESC LIMIT :limit"""
ALL_CHARGES: Final = """SELECT body, account, created, created_real, idempotency_key, worker FROM objects
    WHERE kind = 'charge' ORDER BY position"""
SETTINGS: Final = "SELECT name, value FROM settings"
SET: Final = "INSERT OR REPLACE INTO settings VALUES (:name, :value)"


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer that a key has, with what it was first used for."""

    first: Fingerprint
    answer: Answer


class Ledger:
    """The ledger and the key table in one SQLite file (WAL, synchronous=FULL), used by one thread.

    Crash: what was committed is there after a restart, and an answer is sent only after its commit. A charge and the
    answer of its key are one transaction: never one without the other. That a key's request is in flight is not kept:
    if the process dies before the commit, nothing was charged, and the same key starts afresh.
    """

    def __init__(self, database: Path, window_seconds: float | None = None) -> None:
        """`window_seconds` None keeps what the database says."""
        self._connection = sqlite3.connect(database, isolation_level=None, cached_statements=64)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(SCHEMA)
        settings: dict[str, float] = dict(self._connection.execute(SETTINGS).fetchall())
        self.offset_seconds = settings.get("offset_seconds", 0.0)
        self.window_seconds = settings.get("window_seconds", WINDOW_SECONDS)
        if window_seconds is not None:
            self.set_window(window_seconds)

    def close(self) -> None:
        """Close the file; every committed row stays."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens inside as one, durably, or nothing of it."""
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:  # commits, or rolls back
            yield

    # The movable clock and the window.

    def now(self) -> float:
        """Give the movable clock's time: the wall clock's plus the offset."""
        return time.time() + self.offset_seconds

    def set_offset(self, seconds: float) -> None:
        """Move the clock, durably; keys that are old enough by now are pruned."""
        self.offset_seconds = seconds
        self._set("offset_seconds", seconds)

    def set_window(self, seconds: float) -> None:
        """Set the age at which a key is pruned, durably."""
        self.window_seconds = seconds
        self._set("window_seconds", seconds)

    def _set(self, name: str, value: float) -> None:
        with self.transaction():
            self._connection.execute(SET, {"name": name, "value": value})
            self._connection.execute(PRUNE_KEYS, {"pruned": self._pruned()})

    def _pruned(self) -> float:
        """Give the newest time whose keys are gone: a key lives until it is at least `window_seconds` old."""
        return self.now() - self.window_seconds

    # Idempotency keys.

    def find(self, account: str, key: str) -> Stored | None:
        """Give the answer that a key has, unless it is none or pruned."""
        row = self._connection.execute(FIND_KEY, {"account": account, "key": key, "pruned": self._pruned()}).fetchone()
        if row is None:
            return None
        endpoint, parameters, request_id, status, body, charge = row
        return Stored(Fingerprint(endpoint, parameters), Answer(status, body, charge, request_id))

    def store(self, call: Call, answer: Answer) -> None:
        """Give the call's key its answer, inside the transaction of the effect.

        Crash before the commit: neither effect nor answer. Crash after it: both, and the answer is replayed.
        """
        key = {"account": call.account, "key": call.idempotency_key, "created": self.now()}
        first_used = {**call.fingerprint._asdict(), "request_id": call.request_id}
        stored = {"status": answer.status, "body": answer.body, "charge": answer.charge}
        self._connection.execute(STORE_KEY, {**key, **first_used, **stored})

    def add_fault(self, kind: str, call: Call) -> None:
        """Keep that this fault struck the call, in the caller's transaction if one is open."""
        self._connection.execute(ADD_FAULT, {"kind": kind, "transfer_group": call.transfer_group})

    # Charges.

    def add(self, body: JsonObject, call: Call) -> JsonObject:
        """Add the charge that `call` asks for, inside the caller's transaction; its id, type and time are filled in."""
        now = self.now()
        filled = {"id": f"ch_{uuid4().hex[:24]}", "object": "charge", "created": int(now), "livemode": False, **body}
        row = {
            "id": filled["id"],
            "account": call.account,
            "transfer_group": call.transfer_group,
            "created": now,
            "created_real": time.time(),
            "idempotency_key": call.idempotency_key,
            "worker": call.worker,
            "body": json.dumps(filled),
        }
        self._connection.execute(ADD_CHARGE, row)
        return filled

    def charge(self, account: str, id_: str) -> JsonObject | None:
        """Give a charge of this account, or None."""
        row = self._connection.execute(FIND_CHARGE, {"account": account, "id": id_}).fetchone()
        return None if row is None else _loaded(row[0])

    def newest(self, account: str, limit: int, filters: dict[str, Any]) -> list[JsonObject]:
        """Give at most `limit` charges that pass the filters, newest first."""
        off = dict.fromkeys(("transfer_group", "since", "until", "after"))
        values = {**off, **filters, "account": account, "limit": limit}
        return [_loaded(body) for (body,) in self._connection.execute(LIST_CHARGES, values)]

    def money(self) -> list[JsonObject]:
        """Give every charge that moved money, oldest first, with who asked for it: the checker's evidence."""
        charges = [(_loaded(body), origin) for body, *origin in self._connection.execute(ALL_CHARGES)]
        return [
            {name: charge[name] for name in SHOWN} | dict(zip(ORIGIN, origin, strict=True))
            for charge, origin in charges
            if charge["paid"]
        ]


SHOWN: Final = ("id", "amount", "amount_refunded", "currency", "transfer_group", "payment_intent", "metadata", "status")
ORIGIN: Final = ("account", "created", "created_real", "idempotency_key", "worker")


def _loaded(text: str) -> JsonObject:
    document: JsonObject = json.loads(text)
    return document
