"""Parked messages, what a person decides about them, and a process that is killed while it decides."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_one_answer_is_kept
from tests.support.deliveries import Provider, delivery
from tests.support.shop import charging

from onceward.consumer import OpenConsumer
from onceward.decisions import (
    Decided,
    Decider,
    Decision,
    DecisionKind,
    discard_parked,
    list_decisions,
    redrive,
    settle,
    settle_as_not_happened,
)
from onceward.errors import Reject
from onceward.message import Message
from onceward.provider import idempotency_key
from onceward.transport import ACK, Settlement

T = TypeVar("T")
Conn = psycopg.Connection[Any]
KINDS: Final = (DecisionKind.REDRIVE, DecisionKind.SETTLE, DecisionKind.DID_NOT_HAPPEN, DecisionKind.DISCARD)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
ANN: Final = Decider(name="ann", reason="asked the provider")
SECOND: Final = Decider(name="bob", reason="I was quicker")
SETTLED: Final = {"id": "ch_of_the_dashboard"}
PAST_THE_WINDOW: Final = timedelta(hours=25)
TABLES: Final = ("inbox", "intents", "attempts", "parked", "outbox", "decisions")


def decide(
    conn: Conn, kind: DecisionKind, message: Message, *, answer: object = SETTLED, decider: Decider = ANN, **options: Any
) -> Decided:
    options = {"consumer": rows.CONSUMER, "decider": decider, **options}
    match kind:
        case DecisionKind.REDRIVE:
            return redrive(conn, message.id, **options)
        case DecisionKind.SETTLE:
            return settle(conn, message.id, effect="charge", answer=answer, **options)
        case DecisionKind.DID_NOT_HAPPEN:
            return settle_as_not_happened(conn, message.id, effect="charge", **options)
        case DecisionKind.DISCARD:
            return discard_parked(conn, message.id, **options)
    raise AssertionError(kind)


def park_unknown(
    opened: Callable[..., OpenConsumer], db: Conn, message: Message, provider: Provider, *, charged: bool, **options: Any
) -> OpenConsumer:
    """Its call was cut off, and its key is forgotten by now. The consumer that parked it."""
    (provider.after if charged else provider.before).append(ConnectionError("cut"))
    consumer = opened(charging(provider, **options))
    assert consumer.deliver(delivery(message)).action == "release"
    rows.age_intents(db, message, PAST_THE_WINDOW)
    assert consumer.deliver(delivery(message)) == ACK
    assert reasons(db) == ["unknown"]
    return consumer


def reasons(db: Conn) -> list[str]:
    return [entry.reason for entry in rows.parked(db)]


def redeliver(consumer: OpenConsumer, db: Conn, message: Message) -> Settlement:
    """The one outbox row of the message leaves, and arrives."""
    [row] = [row for row in rows.outbox(db) if row.id == message.id]
    assert (row.type, bytes(row.payload)) == (message.type, message.body)
    db.execute("DELETE FROM onceward.outbox WHERE position = %s", (row.position,))
    return consumer.deliver(delivery(message))


def decided(db: Conn) -> Decision:
    """The one decision that was made."""
    [decision] = list_decisions(db)
    return decision


def snapshot(db: Conn) -> list[list[Any]]:
    """All that is written, of every message."""
    return [db.execute(f"SELECT * FROM onceward.{table} ORDER BY 1, 2, 3".encode()).fetchall() for table in TABLES]


def key_of(message: Message, generation: int = 1) -> str:
    return idempotency_key(rows.CONSUMER, message.id, "charge", generation=generation)


def inside_a_transaction(connect: Callable[..., Conn]) -> Conn:
    conn = connect(autocommit=False)
    conn.execute("SELECT 1")
    return conn


def reject(_message: Message, _given: Any) -> None:
    raise Reject("not today")


def state_of_effects(db: Conn, message: Message) -> list[str]:
    return [intent.state for intent in rows.intents(db, message)]


def park_with_two_answers(opened: Callable[..., OpenConsumer], db: Conn, message: Message) -> None:
    check_one_answer_is_kept(opened, db, message=message)


class Dying(psycopg.Connection[Any]):
    """Kills its process by SIGKILL after so many statements, BEGIN and COMMIT included."""

    left = -1

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        done = super().wait(gen, *args, **options)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def decide_and_die(dsn: str, kind: DecisionKind, message: Message, statements: int) -> None:
    """In the child: the decision, cut off after so many statements."""
    conn = Dying.connect(dsn, autocommit=True)
    conn.left = statements
    made = decide(conn, kind, message)
    assert made.stands, made
    conn.close()
