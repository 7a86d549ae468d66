"""The layers of hardened, and how each is removed, at one seam, inside a worker of the proof.

Production code knows nothing of this (a test sees to it): a layer is one statement, one method or one constant of it, which
is replaced here in a process that was forked for one row of the ablation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, Final, NamedTuple
from uuid import uuid4

import psycopg
from psycopg import Connection

from onceward import inbox, intents, lease, session, transactions
from onceward.consumer import Consumer
from onceward.message import Message
from onceward.outbox import Nudge
from onceward.protocol.words import Ambiguous, Committed
from onceward.retry import Backoff
from onceward.statements import SCHEMA_DEFAULT, statements
from onceward.transport import Sink
from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.workers.line import Line
from onceward_proof.workers.reports import Report
from payments import hardened

logger = logging.getLogger("onceward_proof")
SinkFactory = Callable[[], Sink]
NEVER: Final = 1e-6  # beats per lease: one in 17 days


class Cut(NamedTuple):
    """One piece of one statement, and what stands there instead."""

    module: ModuleType
    statement: str
    was: str
    becomes: str


STATEMENTS: Final = {
    "inbox": Cut(
        inbox, "inbox_insert", "DO NOTHING",
        "DO UPDATE SET state = excluded.state, token = inbox.token + 1, lease_until = excluded.lease_until,"
        " worker = excluded.worker",
    ),
    "intent": Cut(
        intents, "intent_insert", "DO NOTHING",
        "DO UPDATE SET state = 'pending', refused = false, answer = NULL, started_at = clock_timestamp()",
    ),
    "window-guard": Cut(
        intents, "intent_read", "AND clock_timestamp() < started_at + make_interval(secs => %(callable_seconds)s) AS",
        "AS",
    ),
    "fencing": Cut(inbox, "inbox_finish", " AND state = 'pending' AND token = %(token)s", ""),
}  # fmt: skip


def _cut(cut: Cut) -> None:
    def with_cut(schema: str = SCHEMA_DEFAULT) -> dict[str, str]:
        text = statements(schema)[cut.statement]
        # A cut that finds nothing would remove nothing, and the row would hold for the wrong reason.
        if cut.was not in text:
            raise AssertionError(f"{cut.statement} has changed: there is no {cut.was!r} to remove")
        return {**statements(schema), cut.statement: text.replace(cut.was, cut.becomes)}

    _replace(cut.module, "statements", with_cut)


def _replace(owner: Any, name: str, value: Any) -> None:
    """Replace what `owner` calls `name`; what is not there cannot be removed."""
    getattr(owner, name)
    setattr(owner, name, value)


def _commit_unguarded(conn: Connection[Any], _transaction: str, _putting_back: str) -> Committed | Ambiguous:
    """As most code commits: what the server made of it is not asked, only whether it is there."""
    # Its reply is thrown away, on purpose: "ROLLBACK" is one of them.
    conn.pgconn.exec_(b"COMMIT")
    return Ambiguous() if conn.closed or conn.broken else Committed()


_intend = intents.Intents.intend


def _intend_under_a_fresh_key(self: intents.Intents, *positional: Any, **named: Any) -> intents.Intent:
    """The key is made for each attempt, whatever the intent's row says."""
    return replace(_intend(self, *positional, **named), key=f"ow1:{uuid4().hex}")


# Layer -> whose attribute it is, its name, and what stands there instead.
ATTRIBUTES: Final[dict[str, tuple[Any, str, Any]]] = {
    "idempotency-key": (intents.Intents, "intend", _intend_under_a_fresh_key),
    "commit-guard": (transactions, "commit_guarded", _commit_unguarded),
    "heartbeat": (lease, "BEATS_PER_LEASE", NEVER),
    "nudge": (Nudge, "__call__", lambda _self: None),
    "backoff": (Backoff, "seconds_after", lambda _self, _attempts: 0.0),
}


def _outbox(sink: SinkFactory) -> None:
    """Publish right after the commit, from the process that committed.

    What cannot be sent is a line in the log.
    """
    waiting: list[Message] = []
    opened: list[Sink] = []
    place, commit_guarded = hardened.place, session.commit_guarded

    def send() -> None:
        messages = waiting[:]
        waiting.clear()
        if messages:
            opened[:] = opened or [sink()]
            for error in opened[0].publish(messages):
                if error is not None:
                    logger.error("could not publish: %s", error)

    def place_then_send(conn: Connection[Any], order: dict[str, Any]) -> None:
        waiting.clear()
        place(conn, order)
        send()

    def commit_then_send(conn: Connection[Any], transaction: str, putting_back: str) -> Any:
        event = commit_guarded(conn, transaction, putting_back)
        if isinstance(event, Committed):
            send()
        waiting.clear()
        return event

    _replace(hardened, "publish", lambda _conn, message: waiting.append(message))
    _replace(hardened, "place", place_then_send)
    _replace(transactions, "commit_guarded", commit_then_send)


LAYERS: Final = (*STATEMENTS, *ATTRIBUTES, "outbox")


def remove_layer(layer: str, sink: SinkFactory) -> None:
    """From now on this process works without `layer`.

    Only for a forked worker: there is no way back.
    """
    if layer in STATEMENTS:
        _cut(STATEMENTS[layer])
        if layer == "fencing":
            # The heartbeat of a woken worker may tell its handler of the take-over before the handler gets as far as the
            # finish. That is only a hint; left in, it would win on a busy machine, and the row would hold by chance.
            _replace(lease.LeaseKeeper, "is_lost", lambda _self, _delivery: False)
    elif layer == "outbox":
        _outbox(sink)
    else:
        _replace(*ATTRIBUTES[layer])


def report_handler(consumer: Consumer, message_type: str, line: Line) -> None:
    """The handler reports when it is through.

    Where the fault waits, its last statement fails, and it goes on.
    """
    handler = consumer.handlers[message_type]

    def handle(message: Message, tx: Connection[Any]) -> None:
        handler.call(message, tx)
        passage = Report(Boundary.HANDLER_AFTER, message_type=message.type, order=str(message.subject))
        if line.report(passage) is Answer.FAIL:
            try:
                tx.execute("SELECT 1 / 0")
            except psycopg.Error as error:
                logger.warning("only a statistic, never mind: %s", error)  # what people write

    consumer.handlers[message_type] = handler._replace(call=handle)
