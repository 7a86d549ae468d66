"""Tables as they are after a busy day, and the indexes that a plan uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from psycopg import Connection
from psycopg.types.json import Json
from tests.support.deliveries import order
from tests.support.rows import CONSUMER, explain, scalar

from onceward.inbox import InboxTable
from onceward.message import row_key, uuid7_at
from onceward.protocol.reasons import ParkReason
from onceward.provider import idempotency_key

ROWS = 50_000
BLOCK = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name:|\Z)", re.MULTILINE | re.DOTALL)


def named_indexes() -> dict[str, list[str]]:
    """Statement -> the indexes that its `-- index:` line names."""
    found = {}
    for file in files("onceward.sql").iterdir():
        if file.name.endswith(".sql"):
            for name, block in BLOCK.findall(file.read_text(encoding="utf-8")):
                line = re.search(r"^-- index: ([\w, ]+)", block, re.MULTILINE)
                found[name] = [] if line is None or line[1] == "none" else [part.strip() for part in line[1].split(",")]
    return found


def seed(db: Connection[Any]) -> dict[str, Any]:
    """50,000 rows in each table, analysed; the parameters that any statement needs, about a row in the middle."""
    now = int(scalar(db, "SELECT extract(epoch FROM clock_timestamp())::float8") * 1000)
    ids = [uuid7_at(now - 1000 * n // 100, n * 7919) for n in range(ROWS)]
    _copy(db, "inbox (consumer, message_id, fingerprint, state)", [(CONSUMER, i, b"f", "done") for i in ids])
    intents = [(CONSUMER, i, 1, "charge", b"f", "k", "done", "{}") for i in ids]
    _copy(db, "intents (consumer, message_id, n, name, request_fingerprint, key, state, answer)", intents)
    _copy(db, "attempts (consumer, message_id, n, error)", [(CONSUMER, i, 1, "e") for i in ids])
    parked = [(CONSUMER, str(i), b"f", "rejected", "", 1, "test", "{}", b"{}") for i in ids]
    _copy(db, "parked (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)", parked)
    _seed_untimed(db)
    time = datetime.now(UTC)
    waiting = [(str(i), "order", f"key-{n % 5000}", "order.placed", "shop", time, b"{}") for n, i in enumerate(ids)]
    _copy(db, "outbox (id, aggregatetype, aggregateid, type, source, time, payload)", waiting)
    decided = [("outbox", "discard", str(i), n, "why", "who", "{}") for n, i in enumerate(ids)]
    _copy(db, "decisions (about, decision, message_id, position, reason, decided_by, was)", decided)
    redriven = [("parked", "redrive", CONSUMER, str(i), "", "who", "{}") for i in ids]
    _copy(db, "decisions (about, decision, consumer, message_id, reason, decided_by, was)", redriven)
    # All but a few were decided long ago.
    db.execute("UPDATE onceward.decisions SET decided_at = decided_at - interval '30 days' WHERE id > 100")
    _copy(db, "consumers (name, window_seconds)", [(f"consumer-{n}", 1.0) for n in range(2000)])
    db.execute("ANALYZE")
    return _params(str(ids[ROWS // 2]), ids[100:120])


def _seed_untimed(db: Connection[Any]) -> None:
    """Messages with untimed ids, each with an effect; a few have failed, and a few were taken before any window."""
    keys = [row_key(f"event {n}") for n in range(ROWS)]
    now = datetime.now(UTC)
    taken = [now - timedelta(days=60 if n < 50 else 1) for n in range(ROWS)]
    rows = [(CONSUMER, key, b"f", "done", at) for key, at in zip(keys, taken, strict=True)]
    _copy(db, "inbox (consumer, message_id, fingerprint, state, taken_at)", rows)
    intents = [(CONSUMER, key, 1, "charge", b"f", "k", "done", "{}") for key in keys]
    _copy(db, "intents (consumer, message_id, n, name, request_fingerprint, key, state, answer)", intents)
    _copy(db, "attempts (consumer, message_id, n, error)", [(CONSUMER, key, 1, "e") for key in keys[:5000]])


def _copy(db: Connection[Any], target: str, values: list[tuple[Any, ...]]) -> None:
    with db.cursor() as cursor, cursor.copy(f"COPY onceward.{target} FROM STDIN".encode()) as copy:
        for row in values:
            copy.write_row(row)


def _params(message_id: str, others: list[Any]) -> dict[str, Any]:
    message = order(id=message_id, subject="key-7")
    inbox = InboxTable(CONSUMER)
    taking = inbox.take_params(message, "pending", lock_timeout="1s")
    assert taking is not None
    return (
        taking
        | inbox.park_params(message, "test", ParkReason.REJECTED, "")
        | {
            "token": 1,
            "transaction": "750",
            "unknown_n": 1,
            "n": 1,
            "name": "charge",
            "answer": "{}",
            "refused": False,
            "error": "e",
            "failed": 1,
            "session_lost": 0,
            "acting_seconds": 60.0,
            "decision": "redrive",
            "effect": None,
            "former_key": None,
            "forced": False,
            "reason": "",
            "decided_by": "somebody",
        }
        | {"message_ids": others, "tokens": [1] * len(others), "callable_seconds": 1.0, "request_fingerprint": b"f"}
        | {"key": idempotency_key(CONSUMER, message_id, "charge"), "limit": 100, "positions": list(range(100, 200))}
        | {"position": 100, "keys": [f"key-{n}" for n in range(100)], "delay_seconds": 1.0}
        | {"states": ["waiting", "failing"], "behind_max": 1000, "seconds": 86_400.0, "reason": "why", "decided_by": "who"}
        | {"buckets": [1, 2], "handled": [1, 1], "bucket_seconds": [0.1, 0.2], "days": 7}
        | {"delay_seconds_max": 900.0, "except_for": [], "start": 1, "piece_bytes": 1024}
        | {"id": message_id, "aggregatetype": "order", "aggregateid": "key-7", "type": "order.placed", "source": "shop"}
        | {"time": datetime.now(UTC), "traceparent": None, "payload": b"{}", "headers": Json({}), "body": b"{}"}
    )


def indexes_used(db: Connection[Any], statement: str, params: dict[str, Any]) -> tuple[set[str], set[str]]:
    """(indexes by their parent's name, tables that are read whole)."""
    parents = dict(
        db.execute(
            "SELECT c.relname, p.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " JOIN pg_class p ON p.oid = i.inhparent WHERE c.relkind IN ('i', 'r')"
        ).fetchall()
    )
    large = {row[0] for row in db.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples > 1000")}
    used: set[str] = set()
    whole: set[str] = set()
    for node in _nodes(explain(db, statement, params)):
        names = [node["Index Name"]] if "Index Name" in node else node.get("Conflict Arbiter Indexes", [])
        used |= {parents.get(name, name) for name in names}
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in large:
            whole.add(parents.get(node["Relation Name"], node["Relation Name"]))
    return used, whole


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
