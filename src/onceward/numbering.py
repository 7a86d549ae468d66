"""Whether the outbox still numbers its rows upwards: their order is the order of their positions."""

from __future__ import annotations

from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row

from onceward.errors import UsageError
from onceward.statements import SCHEMA_DEFAULT, statements

_BEHIND: Final = """\
{table} has a row at position {newest}, and its sequence is at {last} (a logical failover, or a restore of data only?):
what is written now would overtake what waits. Nothing is sent until the rows are numbered anew, in the order in which they
were written:
{renumbering}"""
_RENUMBERING: Final = """\
BEGIN;
LOCK TABLE {table} IN EXCLUSIVE MODE;
SELECT setval(pg_get_serial_sequence('{table}', 'position'), max(position)) FROM {table};
WITH moved AS (DELETE FROM {table} RETURNING *)
INSERT INTO {table} ({columns})
SELECT {columns} FROM moved ORDER BY created_at, position;
COMMIT;"""
_COLUMNS: Final = (
    "id, aggregatetype, aggregateid, type, source, time, traceparent, payload, created_at, attempts, error, retry_at"
)


def check_numbering(conn: Connection[Any], schema: str = SCHEMA_DEFAULT) -> None:
    """Raises `UsageError`, with the statements that mend it, when new rows would get positions below those that wait.

    Not mended here: it locks the table and moves every row, and whoever failed over may want to look first.
    """
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statements(schema)["outbox_numbering"]).fetchone()
    if row is not None:
        table = f"{schema}.outbox"
        renumbering = _RENUMBERING.format(table=table, columns=_COLUMNS)
        raise UsageError(_BEHIND.format(table=table, newest=row["newest"], last=row["last"] or 0, renumbering=renumbering))
