"""A lane of a relay: one batch of outbox rows after the other is locked and sent.

A batch is published chunk by chunk, and what the sink confirmed is deleted. The lane carries out what `protocol.relay.step`
says, and decides nothing itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, assert_never

import psycopg
from psycopg import Connection

from onceward.errors import TransportError
from onceward.message import MalformedMessage, Message
from onceward.outbox import row_message
from onceward.outbox_batch import OutboxBatch, Row, described, kept_alive, one_line
from onceward.protocol import relay as p
from onceward.relay_runtime import RelayRuntime
from onceward.statements import storable
from onceward.transport import Sink

logger = logging.getLogger("onceward")
PAUSE_SECONDS_MAX: Final = 5.0
ATTEMPTS_LOUD: Final = 10  # from here on a row that waits is an error, not a warning: by itself it will not go


class Lane:
    """One thread of a relay, with one connection and one batch at a time.

    A relay has several, so that one batch can be locked and read while another one is at the sink. They share nothing but
    their `RelayRuntime`; which rows a lane gets is settled by Postgres's row locks, as between two relays.
    """

    def __init__(self, runtime: RelayRuntime) -> None:
        self._runtime = runtime
        self._conn: Connection[Any] | None = None
        self._lending = ExitStack()
        self._batch: OutboxBatch | None = None
        self._failure = ""

    def run(self) -> None:
        """Carry out the protocol until the stop.

        With `until_empty`, until there is nothing to lock.

        Crash anywhere: rows that were not deleted are sent again, under the same message id.
        """
        try:
            self._run()
        finally:
            self._close()

    def _run(self) -> None:
        state = p.State(patience=self._runtime.patience)
        event: p.Event = p.Woken()
        nudges_seen = self._runtime.nudges.count
        while True:
            state, command = p.step(state, event)
            # A stop ends a lane between two batches, never within one: what the sink confirmed must be deleted.
            if self._runtime.stopping.is_set() and isinstance(command, p.LockBatch | p.Sleep):
                return
            if isinstance(command, p.Sleep):
                if self._runtime.until_empty and not command.failures:
                    return
                self._sleep(command, nudges_seen)
                event = p.Woken()
                continue
            if isinstance(command, p.LockBatch):
                # Before the outbox is looked at: a nudge for a row that this look misses must wake the sleep after it.
                nudges_seen = self._runtime.nudges.count
            event = self._perform(command)

    def _sleep(self, command: p.Sleep, nudges_seen: int) -> None:
        # A pooled connection is not held through a sleep.
        self._close()
        self._runtime.listeners.emit("relay.looked", "", failing=bool(command.failures))
        if not command.failures:
            self._runtime.nudges.wait(self._runtime.poll_seconds, nudges_seen)
            return
        seconds = min(self._runtime.backoff.seconds_after(command.failures), PAUSE_SECONDS_MAX)
        logger.warning("%s; retrying in %.1f s (failures in a row: %d)", self._failure, seconds, command.failures)
        # Nudges do not shorten this pause: new rows make neither the database nor the sink answer.
        self._runtime.stopping.wait(seconds)

    def _perform(self, command: p.LockBatch | p.Publish | p.CommitBatch) -> p.Event:
        try:
            match command:
                case p.LockBatch():
                    return self._lock(command)
                case p.Publish():
                    return self._publish(command)
                case p.CommitBatch():
                    return self._commit(command)
                case _:
                    assert_never(command)
        except psycopg.Error as error:
            self._failure = f"the relay lost the database, and with it the locks on its rows: {one_line(error)}"
            self._close()
            return p.DatabaseLost()

    def _lock(self, command: p.LockBatch) -> p.Event:
        conn = self._open()
        self._runtime.check_numbering(conn)
        self._batch = OutboxBatch(conn, self._runtime.database.statements)
        rows = self._batch.lock(
            rows_max=self._runtime.rows_max,
            except_for=command.beside,
            delay_seconds_max=self._runtime.delay_seconds_max,
        )
        if not rows:
            self._close()
        self._emit("relay.taken", rows)
        return p.BatchLocked(
            tuple(p.OutboxRow(row["position"], row["aggregateid"], row["attempts"], row["payload_bytes"]) for row in rows)
        )

    def _publish(self, command: p.Publish) -> p.Event:
        """The sink was asked to send these rows; its answer.

        What is confirmed now and not deleted later is sent twice, under one id.
        """
        conn, batch = self._open(), self._locked()
        rows = [batch.rows[row.position] for row in command.rows]
        what = f"{len(rows)} outbox rows, from {described(rows[0])} on"
        payload_bytes = sum(row.payload_bytes for row in command.rows)
        # Waiting for a share of the budget is idleness to the server, too: the session is kept alive from before it.
        with kept_alive(conn, self._runtime.beat_seconds, what), self._runtime.budget.share(payload_bytes):
            if self._runtime.stopping.is_set():
                return p.Stopped()
            whole = batch.read(rows)
            started_at = time.monotonic()
            try:
                errors = publish_rows(self._runtime.sink, whole)
            except Exception as error:  # noqa: BLE001 - the sink as a whole: `step` finds out whose fault it is
                self._failure = f"the sink gave no answer for {what}; they stay in the outbox: {one_line(error)}"
                logger.info("%s", self._failure)
                return p.SinkLost(f"{type(error).__name__}: {error}")
        self._emit("relay.published", rows)
        now = time.monotonic()
        late = now - batch.locked_at > self._runtime.batch_seconds
        return p.Published(tuple(errors), now - started_at, late=late)

    def _commit(self, command: p.CommitBatch) -> p.Event:
        """What is confirmed is deleted, what failed waits or is set aside, and the rest is free.

        Crash before COMMIT: everything is there as before, and is sent again under the same ids.
        """
        batch = self._locked()
        batch.delete(command.confirmed)
        for row, error in command.postponed:
            self._postpone(batch, row, error)
        for row, error in command.set_aside:
            batch.set_aside(row.position, error=storable(error))
        batch.commit()
        self._emit("relay.deleted", [batch.rows[position] for position in command.confirmed])
        self._emit("relay.postponed", [batch.rows[row.position] for row, _ in command.postponed])
        for row, error in command.set_aside:
            # After the commit: nobody is to be sent to a row that is not set aside after all.
            _log_set_aside(batch.rows[row.position], row.attempts + 1, error)
        self._emit("relay.set_aside", [batch.rows[row.position] for row, _ in command.set_aside])
        return p.BatchCommitted()

    def _postpone(self, batch: OutboxBatch, row: p.OutboxRow, error: str) -> None:
        attempts = row.attempts + 1
        delay_seconds = self._runtime.delay_seconds(attempts)
        batch.postpone(row.position, error=storable(error), delay_seconds=delay_seconds)
        logger.log(
            logging.ERROR if attempts >= ATTEMPTS_LOUD else logging.WARNING,
            "sending outbox row %s failed (attempt %d); retrying in %.1f s%s: %s",
            described(batch.rows[row.position]), attempts, delay_seconds,
            "" if row.key is None else ", and the later rows of its subject wait", one_line(error),
        )  # fmt: skip

    def _locked(self) -> OutboxBatch:
        if self._batch is None:
            raise AssertionError("the protocol publishes and commits only what is locked")
        return self._batch

    def _open(self) -> Connection[Any]:
        if self._conn is None:
            self._conn = self._lending.enter_context(self._runtime.database.connection())
        return self._conn

    def _close(self) -> None:
        """Roll back what is open, and give the connection back.

        Whatever fails here, the server rolls back by itself.
        """
        conn, self._conn = self._conn, None
        try:
            if conn is not None and not conn.closed and conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                conn.execute("ROLLBACK")
        except psycopg.Error as error:
            logger.info("the relay's connection was lost while rolling back; the next one is new: %s", error)
        try:
            self._lending.close()
        except Exception as error:  # noqa: BLE001 - it was of no use any more; the next one is new
            logger.info("the relay's connection was lost while it was given back; the next one is new: %s", error)

    def _emit(self, point: str, rows: Sequence[Row]) -> None:
        if self._runtime.listeners:
            for row in rows:
                self._runtime.listeners.emit(point, "", row["id"], position=row["position"])


def _log_set_aside(row: Row, attempts: int, error: str) -> None:
    """With the command that shows the row: from now on it waits for whoever reads this."""
    later = "" if row["aggregateid"] is None else ", and the later rows of its subject are sent without it"
    logger.error(
        "sending outbox row %s failed (attempt %d); it is set aside and not tried again%s; see `onceward outbox show %d`, "
        "then retry or discard it: %s",
        described(row), attempts, later, row["position"], one_line(error),
    )  # fmt: skip


def publish_rows(sink: Sink, rows: Sequence[Row]) -> list[str | None]:
    """Why each row could not be sent, or None.

    A row that is not a message is an error of its own, and holds what is behind it of its key; the rest still go.
    """
    errors: list[str | None] = [None] * len(rows)
    messages: list[tuple[int, Message]] = []
    held_keys: set[str] = set()
    for index, row in enumerate(rows):
        key = row["aggregateid"]
        if key is not None and key in held_keys:
            errors[index] = "held by an earlier row of its key"
            continue
        try:
            messages.append((index, row_message(row)))
        except MalformedMessage as error:
            errors[index] = str(error)
            held_keys.update(() if key is None else (key,))
    results = sink.publish([message for _, message in messages]) if messages else []
    if len(results) != len(messages):
        raise TransportError(f"the sink answered for {len(results)} of {len(messages)} messages")
    for (index, _), result in zip(messages, results, strict=True):
        errors[index] = None if result is None else f"{type(result).__name__}: {result}"
    return errors
