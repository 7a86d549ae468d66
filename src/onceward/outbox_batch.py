"""One batch of outbox rows, from its locks to its commit.

It is locked by one transaction, read in pieces, and deleted, postponed or set aside with its commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from onceward.database import dicts, is_broken
from onceward.session import our_work

logger = logging.getLogger("onceward")
PIECE_BYTES: Final = 1024 * 1024  # of a payload in one answer: a connection keeps a buffer as large as its largest row
IDLE_SECONDS_MAX: Final = 60.0  # a process that is frozen for longer gives its rows to other relays
PUBLISH_SECONDS_MAX: Final = 900.0  # longer than any client's own timeout: a sink that is silent for so long is hung
LINE_CHARS_MAX: Final = 500

Row = dict[str, Any]
Statements = Mapping[str, LiteralString]


class OutboxBatch:
    """The rows that one transaction has locked on `conn`.

    It is over with `commit`, or with the session.

    Crash anywhere before `commit`: every row is there as before, and free again.
    """

    def __init__(self, conn: Connection[Any], statements: Statements) -> None:
        self._conn = conn
        self._statements = statements
        self.rows: dict[int, Row] = {}
        self.locked_at = time.monotonic()

    def lock(self, *, rows_max: int, except_for: Sequence[int], delay_seconds_max: float) -> list[Row]:
        """A transaction is open and holds these rows, without their payloads.

        With no row there is no transaction.
        """
        self._conn.execute("BEGIN")
        heads = {"limit": rows_max, "except_for": list(except_for), "delay_seconds_max": delay_seconds_max}
        rows = dicts(self._conn, self._statements["outbox_lock_heads"], heads)
        keys = [row["aggregateid"] for row in rows if row["aggregateid"] is not None]
        if keys and len(rows) < rows_max:
            # In a statement of their own, once their heads are locked: they get no lock, because a relay that wants them
            # needs the head's lock first.
            followers = {"keys": keys, "positions": [row["position"] for row in rows], "limit": rows_max - len(rows)}
            rows += dicts(self._conn, self._statements["outbox_followers"], followers)
        # The savepoint stands behind the locks: going back to it after a row that cannot be read keeps them.
        self._conn.execute("SAVEPOINT locked" if rows else "ROLLBACK")
        self.rows = {row["position"]: row for row in rows}
        self.locked_at = time.monotonic()
        return rows

    def read(self, rows: Sequence[Row]) -> list[Row]:
        """These rows with their payloads. Where they cannot be read together, each is read alone.

        One that cannot be read even so has its reason as `unreadable`, and costs only itself.
        """
        try:
            return self._read_whole(rows)
        except (psycopg.Error, UnicodeError) as error:
            # With the session the locks are gone: there is nothing to read any more.
            if is_broken(self._conn, error):
                raise
            self._conn.execute("ROLLBACK TO SAVEPOINT locked")
            if len(rows) == 1:
                return [rows[0] | {"unreadable": f"it cannot be read: {one_line(error)}"}]
        return [whole for row in rows for whole in self.read([row])]

    def delete(self, positions: Sequence[int]) -> None:
        """These rows are sent: the commit deletes them."""
        if positions:
            self._conn.execute(self._statements["outbox_delete"], {"positions": list(positions)})

    def postpone(self, position: int, *, error: str, delay_seconds: float) -> None:
        """This row could not be sent: with the commit it waits, with its error, for its next try."""
        params = {"position": position, "error": error, "delay_seconds": delay_seconds}
        self._conn.execute(self._statements["outbox_postpone"], params)

    def set_aside(self, position: int, *, error: str) -> None:
        """This row could not be sent, and is not tried again: with the commit it waits for a person."""
        self._conn.execute(self._statements["outbox_set_aside"], {"position": position, "error": error})

    def commit(self) -> None:
        """What was deleted, postponed and set aside is so, durably; all other rows are free, as they were."""
        self._conn.execute("COMMIT")

    def _read_whole(self, rows: Sequence[Row]) -> list[Row]:
        first_pieces = self._pieces(rows, start=1)
        deleted = {"unreadable": "it was deleted by somebody else"}
        return [self._completed(row | first_pieces.get(row["position"], deleted)) for row in rows]

    def _completed(self, row: Row) -> Row:
        """The row with all of its payload, of which it has the first piece."""
        # Until the length is reached or nothing comes: a row that was deleted meanwhile ends the loop, too.
        pieces = [row.get("payload", b"")]
        length = len(pieces[0])
        while pieces[-1] and length < row["payload_bytes"]:
            following = self._pieces([row], start=length + 1)
            pieces.append(following[row["position"]]["payload"] if following else b"")
            length += len(pieces[-1])
        return row | {"payload": pieces[0] if len(pieces) == 1 else b"".join(pieces)}

    def _pieces(self, rows: Sequence[Row], start: int) -> dict[int, Row]:
        params = {"positions": [row["position"] for row in rows], "start": start, "piece_bytes": PIECE_BYTES}
        with self._conn.cursor(row_factory=dict_row, binary=True) as cursor:
            return {piece["position"]: piece for piece in cursor.execute(self._statements["outbox_payloads"], params)}


@contextmanager
def kept_alive(conn: Connection[Any], beat_seconds: float, what: str) -> Iterator[None]:
    """The session of a slow sink is not ended as idle, up to `PUBLISH_SECONDS_MAX`.

    A session without any limit would hold its keys for as long as its process is frozen. The beat stops with the process,
    and after `PUBLISH_SECONDS_MAX`; then the server ends the session, and other relays lock the rows.
    """
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(conn, beat_seconds, what, over), name="onceward-relay-beat", daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()


def _beat(conn: Connection[Any], beat_seconds: float, what: str, over: threading.Event) -> None:
    started_at = time.monotonic()
    try:
        while not over.wait(beat_seconds):
            seconds = time.monotonic() - started_at
            if seconds > PUBLISH_SECONDS_MAX:
                logger.error("publishing %s hangs after %.0f s; giving up their locks: is the sink hung?", what, seconds)
                return
            logger.warning("publishing %s has taken %.0f s so far; waiting for the sink", what, seconds)
            with our_work():  # the connection is lent to the lane's thread, which waits in the sink
                conn.execute("")  # the empty statement: enough for the server's clock of idleness
    except psycopg.Error as error:
        logger.info("the relay's session was lost while it published: %s", error)  # the next statement will find out


def described(row: Row) -> str:
    """The row, as a log names it."""
    subject = "" if row["aggregateid"] is None else f", subject {row['aggregateid']!r}"
    return f"{row['position']} ({row['type']!r}, id {row['id']!r}{subject})"


def one_line(error: object) -> str:
    """The error's text for a log: one line, and not a long one."""
    return " ".join(str(error).split())[:LINE_CHARS_MAX]
