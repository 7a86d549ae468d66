"""One lane of a relay: takes a batch of outbox rows, publishes it chunk by chunk, deletes what the sink confirmed.

Carries out what `dispatch.step` says, and decides nothing itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from onceward.database import Database
from onceward.events import Listeners
from onceward.outbox import check_numbering
from onceward.outgoing import one_line, publish_rows, read
from onceward.protocol import relay as d
from onceward.retry import Backoff
from onceward.session import our_work
from onceward.statements import storable
from onceward.transport import Sink

logger = logging.getLogger("onceward")
BATCH_SECONDS: Final = 20.0  # then a batch is marked, whatever of it is left
IDLE_SECONDS_MAX: Final = 60.0  # a process that is frozen for longer gives its rows to other relays
PUBLISH_SECONDS_MAX: Final = 900.0  # longer than any client's own timeout: a sink that says nothing for so long is hung
PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024  # of all lanes of a process; a larger row is there alone
NUMBERING_SECONDS: Final = 60.0
PAUSE_SECONDS_MAX: Final = 5.0
DELAY_SECONDS_MAX: Final = 365 * 86_400.0  # what Postgres, and a person, can still make a date of
ATTEMPTS_LOUD: Final = 10  # from here on a row that waits is an error, not a warning: by itself it will not go


class Budget:
    """At most `bytes_max` of payloads are in this process at once, over all lanes; whoever asks first is served first.

    In order, because a large payload must not wait for ever while small ones slip past it.
    """

    def __init__(self, bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._free = bytes_max
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def share(self, payload_bytes: int) -> Iterator[None]:
        """Inside, the share is ours. What is larger than all there is gets all there is: it is alone then."""
        share, turn = min(payload_bytes, self._bytes_max), object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and self._free >= share)
            self._waiting.popleft()
            self._free -= share
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += share
                self._changed.notify_all()


@dataclass
class Shared:
    """What the lanes of one process share: where from, where to, how, and until when."""

    database: Database
    sink: Sink
    limit: int
    poll_seconds: float
    backoff: Backoff
    listeners: Listeners
    until_empty: bool
    pulse_seconds: float = IDLE_SECONDS_MAX / 4
    batch_seconds: float = BATCH_SECONDS
    numbering_seconds: float = NUMBERING_SECONDS
    budget: Budget = field(default_factory=Budget)
    nudges: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    _woken: threading.Condition = field(default_factory=threading.Condition)
    _numbering_due: float = 0.0

    def wake(self) -> None:
        with self._woken:
            self.nudges += 1
            self._woken.notify_all()

    def sleep(self, seconds: float, nudges_seen: int | None) -> None:
        """Until a nudge that came after `nudges_seen` (None: whatever nudges come), the time, or the stop."""
        self.listeners.emit("relay.looked", "", failing=nudges_seen is None)
        with self._woken:
            waited = 0.0
            while waited < seconds and nudges_seen in (None, self.nudges) and not self.stopped.is_set():
                slice_seconds = min(0.2, seconds - waited)
                self._woken.wait(slice_seconds)
                waited += slice_seconds

    def delay_seconds(self, attempts: int) -> float:
        return min(self.backoff.seconds_after(attempts), DELAY_SECONDS_MAX)

    @property
    def delay_seconds_max(self) -> float:
        return min(self.backoff.seconds_max, DELAY_SECONDS_MAX)

    def look_at_numbering(self, conn: Connection[Any]) -> None:
        """At the first call, and now and then: a failover may happen while the relay runs."""
        now = time.monotonic()
        if now >= self._numbering_due:
            self._numbering_due = now + self.numbering_seconds
            check_numbering(conn, schema=self.database.schema)


class Lane:
    """One connection and one batch at a time; every decision is `dispatch.step`'s."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._statements = shared.database.statements
        self._rows: dict[int, dict[str, Any]] = {}
        self._taken_at = 0.0
        self._why = ""
        self._conn: Connection[Any] | None = None
        self._held = ExitStack()

    def run(self) -> None:
        """Until the stop, or (with `until_empty`) until there is nothing to take.

        Crash anywhere: rows that were not deleted are sent again, under the same message id.
        """
        try:
            self._run()
        finally:
            self._close()

    def _run(self) -> None:
        state = d.State()
        event: d.Event = d.Woken()
        nudges = self._shared.nudges
        while True:
            state, command = d.step(state, event)
            if self._shared.stopped.is_set() and isinstance(command, d.Take | d.Sleep):
                return
            if isinstance(command, d.Sleep):
                if self._shared.until_empty and not command.failures:
                    return
                self._sleep(command, nudges)
                event = d.Woken()
            else:
                nudges = self._shared.nudges if isinstance(command, d.Take) else nudges
                event = self._perform(command)

    def _sleep(self, command: d.Sleep, nudges: int) -> None:
        self._close()
        if not command.failures:
            self._shared.sleep(self._shared.poll_seconds, nudges)
            return
        pause = min(self._shared.backoff.seconds_after(command.failures), PAUSE_SECONDS_MAX)
        logger.warning("%s; tried again in %.1f s (failures in a row: %d)", self._why, pause, command.failures)
        self._shared.sleep(pause, None)

    def _perform(self, command: d.Take | d.Publish | d.SettleRows) -> d.Event:
        try:
            match command:
                case d.Take():
                    return self._take(command)
                case d.Publish():
                    return self._publish(command)
                case d.SettleRows():
                    return self._mark(command)
        except psycopg.Error as error:
            self._why = f"the relay lost the database, what it held is free again: {one_line(error)}"
            self._close()
            return d.DatabaseLost()

    # ---- taking ------------------------------------------------------------------------------------------------------

    def _take(self, command: d.Take) -> d.Event:
        conn = self._open()
        self._shared.look_at_numbering(conn)
        conn.execute("BEGIN")
        rows = self._lock(conn, command)
        if rows:
            conn.execute("SAVEPOINT taken")  # behind the locks: a row that cannot be read costs only itself
        else:
            conn.execute("ROLLBACK")
            self._close()
        self._rows = {row["position"]: row for row in rows}
        self._taken_at = time.monotonic()
        self._emit("relay.taken", rows)
        return d.Taken(
            tuple(d.OutboxRow(row["position"], row["aggregateid"], row["attempts"], row["payload_bytes"]) for row in rows)
        )

    def _lock(self, conn: Connection[Any], command: d.Take) -> list[dict[str, Any]]:
        limit = self._shared.limit
        heads = {"limit": limit, "beside": list(command.beside), "delay_seconds_max": self._shared.delay_seconds_max}
        with conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(self._statements["outbox_take_heads"], heads).fetchall()
            keys = [row["aggregateid"] for row in rows if row["aggregateid"] is not None]
            room = limit - len(rows)
            if keys and room:
                followers = {"keys": keys, "positions": [row["position"] for row in rows], "limit": room}
                rows += cursor.execute(self._statements["outbox_take_followers"], followers).fetchall()
        return rows

    # ---- publishing --------------------------------------------------------------------------------------------------

    def _publish(self, command: d.Publish) -> d.Event:
        """Nothing is decided here: what is confirmed now and not deleted later is sent twice, under one id."""
        conn = self._open()
        rows = [self._rows[row.position] for row in command.rows]
        what = f"{len(rows)} outbox rows, from {_named(rows[0])} on"
        payload_bytes = sum(row.payload_bytes for row in command.rows)
        with kept_alive(conn, self._shared.pulse_seconds, what), self._shared.budget.share(payload_bytes):
            if self._shared.stopped.is_set():
                return d.Stopped()
            whole = read(conn, self._statements, rows)
            began = time.monotonic()
            try:
                errors = publish_rows(self._shared.sink, whole)
            except Exception as error:  # noqa: BLE001 - the sink as a whole: `dispatch` finds out whose fault it is
                self._why = f"the sink gave no answer for {what}, they stay in the outbox: {one_line(error)}"
                logger.info("%s", self._why)
                return d.SinkLost(f"{type(error).__name__}: {error}")
        self._emit("relay.published", rows)
        now = time.monotonic()
        return d.Published(tuple(errors), now - began, late=now - self._taken_at > self._shared.batch_seconds)

    # ---- marking -----------------------------------------------------------------------------------------------------

    def _mark(self, command: d.SettleRows) -> d.Event:
        """What is confirmed is gone, what failed waits, and the rest is free.

        Crash before COMMIT: everything is there as before, and is sent again under the same ids.
        """
        conn = self._open()
        if command.confirmed:
            conn.execute(self._statements["outbox_delete"], {"positions": list(command.confirmed)})
        for row, error in command.failed:
            self._postpone(conn, row, error)
        conn.execute("COMMIT")
        self._emit("relay.deleted", [self._rows[position] for position in command.confirmed])
        self._emit("relay.postponed", [self._rows[row.position] for row, _ in command.failed])
        return d.RowsSettled()

    def _postpone(self, conn: Connection[Any], row: d.OutboxRow, error: str) -> None:
        tries = row.attempts + 1
        delay_seconds = self._shared.delay_seconds(tries)
        params = {"position": row.position, "error": storable(error), "delay_seconds": delay_seconds}
        conn.execute(self._statements["outbox_postpone"], params)
        logger.log(
            logging.ERROR if tries >= ATTEMPTS_LOUD else logging.WARNING,
            "outbox row %s could not be sent (try %d), next try in %.1f s%s: %s",
            _named(self._rows[row.position]), tries, delay_seconds,
            "" if row.key is None else "; the later rows of its subject wait", one_line(error),
        )  # fmt: skip

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _open(self) -> Connection[Any]:
        if self._conn is None:
            self._conn = self._held.enter_context(self._shared.database.connection())
        return self._conn

    def _close(self) -> None:
        """Roll back what is open, and give the connection back. Whatever fails here, the server rolls back by itself."""
        conn, self._conn = self._conn, None
        try:
            if conn is not None and not conn.closed and conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                conn.execute("ROLLBACK")
        except psycopg.Error as error:
            logger.info("the relay's connection was lost while rolling back: %s", error)
        try:
            self._held.close()
        except Exception as error:  # noqa: BLE001 - given back, it was of no use any more; the next one is a fresh one
            logger.info("the relay's connection was lost while it was given back: %s", error)

    def _emit(self, point: str, rows: Sequence[dict[str, Any]]) -> None:
        if self._shared.listeners:
            for row in rows:
                self._shared.listeners.emit(point, "", row["id"], position=row["position"])


@contextmanager
def kept_alive(conn: Connection[Any], pulse_seconds: float, what: str) -> Iterator[None]:
    """Inside, the session is not ended as idle, however slow the sink is, up to `PUBLISH_SECONDS_MAX`.

    A session without any limit would hold its keys for as long as its process is frozen. A pulse stops with the process,
    and after `PUBLISH_SECONDS_MAX`; then the server ends the session, and other relays take the rows.
    """
    over = threading.Event()
    pulse = threading.Thread(target=_beat, args=(conn, pulse_seconds, what, over), name="onceward-relay-pulse", daemon=True)
    pulse.start()
    try:
        yield
    finally:
        over.set()
        pulse.join()


def _beat(conn: Connection[Any], pulse_seconds: float, what: str, over: threading.Event) -> None:
    began = time.monotonic()
    try:
        while not over.wait(pulse_seconds):
            seconds = time.monotonic() - began
            if seconds > PUBLISH_SECONDS_MAX:
                logger.error("%s: not published after %.0f s, their locks are given up: is the sink hung?", what, seconds)
                return
            logger.warning("%s: not yet published after %.0f s", what, seconds)
            with our_work():  # the connection is lent to the lane
                conn.execute("")  # the empty statement: enough for the server's clock of idleness
    except psycopg.Error as error:
        logger.info("the relay's session was lost while it published: %s", error)  # the next statement will find out


def _named(row: dict[str, Any]) -> str:
    subject = "" if row["aggregateid"] is None else f", subject {row['aggregateid']!r}"
    return f"{row['position']} ({row['type']!r}, id {row['id']!r}{subject})"
