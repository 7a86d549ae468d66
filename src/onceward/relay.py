"""The relay: takes outbox rows, publishes them, deletes what the sink confirmed. Any number may run at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from onceward import dispatch as d
from onceward.database import Database, DatabaseSource
from onceward.errors import TransportError, UsageError
from onceward.events import Listener, Listeners
from onceward.inbox import storable
from onceward.loop import _signals
from onceward.message import MalformedMessage, Message
from onceward.nudge import channel
from onceward.retry import Backoff
from onceward.schema import check_schema
from onceward.statements import SCHEMA_DEFAULT
from onceward.transport import Sink

logger = logging.getLogger("onceward")
PUBLISH_SECONDS_MAX: Final = 60.0


def relay(
    *,
    sink: Callable[[], Sink],
    database: DatabaseSource,
    schema: str = SCHEMA_DEFAULT,
    batch: int = 100,
    lanes: int = 2,
    poll_seconds: float = 1.0,
    backoff: Backoff = Backoff(),  # noqa: B008 - immutable
    listeners: Sequence[Listener] = (),
    stop: threading.Event | None = None,
    until_empty: bool = False,
) -> None:
    """Send what is in the outbox until SIGTERM or SIGINT (or `stop`).

    With `until_empty`, until there is nothing to take: a row that waits for its retry, or that another relay holds, stays.
    `lanes`: while one batch is being published, the next is taken. Per key, order is the order of commits (as far as the
    application serialises the writers of a key), also with several relays.

    Crash anywhere: rows that were not deleted are sent again, under the same message id.
    """
    if batch < 1 or lanes < 1 or poll_seconds <= 0:
        raise UsageError("batch and lanes must be at least 1, poll_seconds more than 0")
    opened_sink = sink()
    opened = Database(
        database,
        size=lanes + 1,
        schema=schema,
        handler_seconds_max=PUBLISH_SECONDS_MAX,
        application_name="onceward relay",
    )
    try:
        with opened.connection() as conn:
            check_schema(conn, schema)
        limit = min(batch, opened_sink.traits.publish_max)
        loop = _Relay(opened, opened_sink, limit, poll_seconds, backoff, Listeners(listeners), until_empty)
        with _signals(loop.stop, stop):
            loop.run(lanes)
    finally:
        opened_sink.close()
        opened.close()


class _Relay:
    """The lanes of one process, and the ear that wakes them."""

    def __init__(
        self,
        database: Database,
        sink: Sink,
        limit: int,
        poll_seconds: float,
        backoff: Backoff,
        listeners: Listeners,
        until_empty: bool,
    ) -> None:
        self.database = database
        self.sink = sink
        self.limit = limit
        self.poll_seconds = poll_seconds
        self.backoff = backoff
        self.listeners = listeners
        self.until_empty = until_empty
        self._stop = threading.Event()
        self._woken = threading.Condition()
        self._nudges = 0

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def run(self, lanes: int) -> None:
        threads = [threading.Thread(target=Lane(self).run, name=f"onceward-relay-{n}", daemon=True) for n in range(lanes)]
        for thread in threads:
            thread.start()
        if not self.until_empty:
            threading.Thread(target=self._listen, name="onceward-relay-ear", daemon=True).start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(timeout=0.1)

    def _listen(self) -> None:
        """Turn NOTIFY into wake-ups; when it fails, polling covers, and it is tried again."""
        while not self.stopping:
            try:
                with self.database.connection() as conn:
                    conn.execute(f"LISTEN {channel(self.database.schema)}")
                    self._hear(conn)
                    conn.execute("UNLISTEN *")
            except psycopg.Error as error:
                logger.info("nudges are not heard for now, polling goes on: %s", error)
                self._stop.wait(self.poll_seconds)

    def _hear(self, conn: Connection[Any]) -> None:
        while not self.stopping:
            for _ in conn.notifies(timeout=0.5, stop_after=1):
                self.wake()

    def wake(self) -> None:
        with self._woken:
            self._nudges += 1
            self._woken.notify_all()

    def sleep(self, seconds: float, nudges_seen: int | None) -> None:
        """Until a nudge that came after `nudges_seen` (None: whatever nudges come), the time, or the stop."""
        self.listeners.emit("relay.looked", "", failing=nudges_seen is None)
        with self._woken:
            waited = 0.0
            while waited < seconds and nudges_seen in (None, self._nudges) and not self.stopping:
                slice_seconds = min(0.2, seconds - waited)
                self._woken.wait(slice_seconds)
                waited += slice_seconds

    @property
    def nudges(self) -> int:
        return self._nudges


class Lane:
    """One connection and one batch at a time; every decision is `dispatch.step`'s."""

    def __init__(self, relay: _Relay) -> None:
        self._relay = relay
        self._rows: list[dict[str, Any]] = []
        self._conn: Connection[Any] | None = None
        self._held = ExitStack()

    def run(self) -> None:
        state = d.State()
        event: d.Event = d.Woken()
        nudges = self._relay.nudges
        while True:
            state, command = d.step(state, event)
            if self._relay.stopping and isinstance(command, d.Take | d.Sleep):
                self._close()
                return
            if isinstance(command, d.Sleep):
                if self._relay.until_empty and not command.failures:
                    return
                self._sleep(command, nudges)
                event = d.Woken()
            else:
                nudges = self._relay.nudges if isinstance(command, d.Take) else nudges
                event = self._perform(command)

    def _sleep(self, command: d.Sleep, nudges: int) -> None:
        self._close()
        if command.failures:
            self._relay.sleep(min(self._relay.backoff.delay_seconds(command.failures), 5.0), None)
        else:
            self._relay.sleep(self._relay.poll_seconds, nudges)

    def _perform(self, command: d.Take | d.Publish | d.Mark) -> d.Event:
        try:
            match command:
                case d.Take():
                    return self._take()
                case d.Publish():
                    return self._publish()
                case d.Mark():
                    return self._mark(command)
        except psycopg.Error as error:
            logger.warning("the relay lost the database, what it held is free again: %s", error)
            self._close()
            return d.DatabaseLost()

    def _take(self) -> d.Event:
        conn = self._open()
        conn.execute("BEGIN")
        statements = self._relay.database.statements
        with conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(statements["outbox_take_heads"], {"limit": self._relay.limit}).fetchall()
            keys = [row["aggregateid"] for row in rows if row["aggregateid"] is not None]
            room = self._relay.limit - len(rows)
            if keys and room:
                followers = {"keys": keys, "positions": [row["position"] for row in rows], "limit": room}
                rows += cursor.execute(statements["outbox_take_followers"], followers).fetchall()
        if not rows:
            conn.execute("ROLLBACK")
            self._close()
        self._rows = rows
        self._emit("relay.taken", rows)
        return d.Taken(tuple(d.Row(row["position"], row["aggregateid"], row["attempts"]) for row in rows))

    def _publish(self) -> d.Event:
        """Nothing is decided here: what is confirmed now and not deleted later is sent twice, under one id."""
        try:
            errors = publish_rows(self._relay.sink, self._rows)
        except Exception as error:  # noqa: BLE001 - the sink as a whole: its rows stay, and are sent again
            logger.warning("the sink does not answer, %d messages stay in the outbox: %s", len(self._rows), error)
            self._close()
            return d.SinkLost()
        self._emit("relay.published", self._rows)
        return d.Published(tuple(errors))

    def _mark(self, command: d.Mark) -> d.Event:
        conn = self._open()
        statements = self._relay.database.statements
        if command.confirmed:
            conn.execute(statements["outbox_delete"], {"positions": list(command.confirmed)})
        for row, error in command.failed:
            delay = self._relay.backoff.delay_seconds(row.attempts + 1)
            params = {"position": row.position, "error": storable(error), "delay_seconds": delay}
            conn.execute(statements["outbox_postpone"], params)
            logger.warning("outbox row %d could not be sent, tried again in %.1f s: %s", row.position, delay, error)
        conn.execute("COMMIT")
        self._emit("relay.deleted", [row for row in self._rows if row["position"] in set(command.confirmed)])
        if command.failed:
            failed = {row.position for row, _ in command.failed}
            self._emit("relay.postponed", [row for row in self._rows if row["position"] in failed])
        return d.Marked()

    def _open(self) -> Connection[Any]:
        if self._conn is None:
            self._conn = self._held.enter_context(self._relay.database.connection())
        return self._conn

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None and not conn.closed and not conn.broken:
            try:
                if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    conn.execute("ROLLBACK")
            except psycopg.Error as error:
                logger.info("the relay's connection was lost while rolling back: %s", error)
        self._held.close()

    def _emit(self, point: str, rows: list[dict[str, Any]]) -> None:
        if self._relay.listeners:
            for row in rows:
                self._relay.listeners.emit(point, "", row["id"], position=row["position"])


def publish_rows(sink: Sink, rows: list[dict[str, Any]]) -> list[str | None]:
    """Why each row could not be sent, or None. A row that is no message is an error of its own, and holds what is behind
    it of its key; the rest still go."""
    errors: list[str | None] = [None] * len(rows)
    wanted: list[tuple[int, Message]] = []
    held: set[str] = set()
    for index, row in enumerate(rows):
        key = row["aggregateid"]
        if key is not None and key in held:
            errors[index] = "held by an earlier row of its key"
            continue
        try:
            wanted.append((index, row_message(row)))
        except MalformedMessage as error:
            errors[index] = str(error)
            held.update(() if key is None else (key,))
    results = sink.publish([message for _, message in wanted]) if wanted else []
    if len(results) != len(wanted):
        raise TransportError(f"the sink answered for {len(results)} of {len(wanted)} messages")
    for (index, _), result in zip(wanted, results, strict=True):
        errors[index] = None if result is None else f"{type(result).__name__}: {result}"
    return errors


def row_message(row: dict[str, Any]) -> Message:
    """The message in an outbox row."""
    return Message(
        id=row["id"],
        type=row["type"],
        source=row["source"],
        subject=row["aggregateid"],
        time=row["time"],
        traceparent=row["traceparent"],
        body=bytes(row["payload"]),
    )
