"""Decisions apart from how they wait: a generator that asks for rows, and the two drivers that ask Postgres.

A function that decides something on a caller's connection is written once, as steps. It yields a `Query`, is sent its rows,
and returns its result; what Postgres refuses is raised in it, where the query was yielded. `carry_out` does this on a
connection, `carry_out_async` on an asynchronous one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar, Union, cast

from psycopg import AsyncConnection, Connection
from psycopg.pq import PipelineStatus
from psycopg.rows import tuple_row

Result = TypeVar("Result")
Rows: TypeAlias = list[tuple[Any, ...]]
Steps: TypeAlias = Generator[Union["Query", "InTransaction"], Any, Result]


class Query(NamedTuple):
    """One statement. Its rows are sent back as tuples, whatever row factory the connection has; [] if it gives none."""

    statement: Any
    params: Any = None


class InTransaction(NamedTuple):
    """These steps, in a transaction of their own, or a savepoint where one is open. Their result is sent back."""

    steps: Steps[Any]


def all_rows(statement: Any, params: Any = None) -> Steps[Rows]:
    """All rows of this statement."""
    return cast("Rows", (yield Query(statement, params)))


def one_row(statement: Any, params: Any = None) -> Steps[tuple[Any, ...] | None]:
    """The first row of this statement; None when there is none."""
    found: Rows = yield Query(statement, params)
    return found[0] if found else None


def in_transaction(steps: Steps[Result]) -> Steps[Result]:
    """The result of these steps, once what they did is committed, or their savepoint released."""
    return cast("Result", (yield InTransaction(steps)))


def carry_out(conn: Connection[Any], steps: Steps[Result]) -> Result:
    """The result of the steps, each of them asked on `conn`."""
    try:
        asked = next(steps)
        while True:
            try:
                answer = _answer(conn, asked)
            except BaseException as error:  # noqa: BLE001 - the steps decide what an error means; most let it pass
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as ended:
        return cast("Result", ended.value)


def _answer(conn: Connection[Any], asked: Query | InTransaction) -> Any:
    if isinstance(asked, InTransaction):
        with conn.transaction():
            return carry_out(conn, asked.steps)
    with conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(asked.statement, asked.params)
        if cursor.rownumber is None and _is_pipelined(conn):
            with conn.pipeline() as pipeline:
                pipeline.sync()
        # Not `description`, which describes every column: this is on the way of each take.
        return cursor.fetchall() if cursor.rownumber is not None else []


def _is_pipelined(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Statements are only queued: there is no answer before the pipeline is synchronised."""
    return conn.pgconn.pipeline_status is not PipelineStatus.OFF


async def carry_out_async(conn: AsyncConnection[Any], steps: Steps[Result]) -> Result:
    """As `carry_out`, on an asynchronous connection. A task that is cancelled is an error in the steps like any other."""
    try:
        asked = next(steps)
        while True:
            try:
                answer = await _answer_async(conn, asked)
            except BaseException as error:  # noqa: BLE001 - as above
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as ended:
        return cast("Result", ended.value)


async def _answer_async(conn: AsyncConnection[Any], asked: Query | InTransaction) -> Any:
    if isinstance(asked, InTransaction):
        async with conn.transaction():
            return await carry_out_async(conn, asked.steps)
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(asked.statement, asked.params)
        if cursor.rownumber is None and _is_pipelined(conn):
            async with conn.pipeline() as pipeline:
                await pipeline.sync()
        return await cursor.fetchall() if cursor.rownumber is not None else []
