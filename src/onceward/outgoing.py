"""What is in the outbox rows of a batch, read in bounded pieces, and sent as messages. One bad row costs only itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from onceward.database import is_broken
from onceward.errors import TransportError
from onceward.message import MalformedMessage, Message
from onceward.outbox import row_message
from onceward.transport import Sink

PIECE_BYTES: Final = 1024 * 1024  # of a payload in one answer: a connection keeps a buffer as large as its largest row
LINE_CHARS_MAX: Final = 500

Row = dict[str, Any]
Statements = Mapping[str, LiteralString]


def read(conn: Connection[Any], statements: Statements, rows: Sequence[Row]) -> list[Row]:
    """The taken rows with their payloads. When they cannot be read together, each alone: one that still cannot says why.

    Needs the savepoint `taken`, made behind the locks: going back to it keeps them.
    """
    try:
        return _whole(conn, statements, rows)
    except (psycopg.Error, UnicodeError) as error:
        if is_broken(conn, error):
            raise
        conn.execute("ROLLBACK TO SAVEPOINT taken")
        if len(rows) == 1:
            return [rows[0] | {"unreadable": f"it cannot be read: {one_line(error)}"}]
    return [found for row in rows for found in read(conn, statements, [row])]


def _whole(conn: Connection[Any], statements: Statements, rows: Sequence[Row]) -> list[Row]:
    found = _pieces(conn, statements, rows, start=1)
    gone = {"unreadable": "somebody else has deleted it"}
    return [_completed(conn, statements, row | found.get(row["position"], gone)) for row in rows]


def _completed(conn: Connection[Any], statements: Statements, row: Row) -> Row:
    """The row with all of its payload, of which it has the first piece."""
    pieces = [row.get("payload", b"")]
    length = len(pieces[0])
    while pieces[-1] and length < row["payload_bytes"]:
        following = _pieces(conn, statements, [row], start=length + 1)
        pieces.append(following[row["position"]]["payload"] if following else b"")
        length += len(pieces[-1])
    return row | {"payload": pieces[0] if len(pieces) == 1 else b"".join(pieces)}


def _pieces(conn: Connection[Any], statements: Statements, rows: Sequence[Row], start: int) -> dict[int, Row]:
    params = {"positions": [row["position"] for row in rows], "start": start, "piece_bytes": PIECE_BYTES}
    with conn.cursor(row_factory=dict_row, binary=True) as cursor:
        return {piece["position"]: piece for piece in cursor.execute(statements["outbox_read"], params)}


def publish_rows(sink: Sink, rows: Sequence[Row]) -> list[str | None]:
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


def one_line(error: object) -> str:
    """The error's text for a log: one line, and not a long one."""
    return " ".join(str(error).split())[:LINE_CHARS_MAX]
