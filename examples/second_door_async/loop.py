"""Several workers in one event loop, each with a connection of its own: receive, handle, settle."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from onceward import ACK, LEAVE, LeaseLost, MalformedMessage, Message, Settlement, release
from second_door.handlers import SetAside
from second_door.jobs import VISIBILITY_SECONDS, Job
from second_door.loop import BACKOFF, DELIVERIES_MAX, REGISTER_EVERY_SECONDS
from second_door_async.handlers import CHARGES, LEDGER, AsyncCards, book, charge

logger = logging.getLogger("second_door_async")


async def run(dsn: str, card: AsyncCards, *, workers: int = 4, until_empty: bool = False) -> int:
    """Work until the task is cancelled (`until_empty`: until no job is visible). How many jobs were handled."""
    registering = asyncio.create_task(keep_registered(dsn))
    try:
        handled = await asyncio.gather(*(work(dsn, card, until_empty=until_empty) for _ in range(workers)))
    finally:
        registering.cancel()
    return sum(handled)


async def keep_registered(dsn: str) -> None:
    """Upkeep learns these windows, and the next days have partitions: now, and then every hour."""
    while True:
        async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
            for inbox in (CHARGES, LEDGER):
                await inbox.register(conn)
        await asyncio.sleep(REGISTER_EVERY_SECONDS)


async def work(dsn: str, card: AsyncCards, *, until_empty: bool) -> int:
    """One worker. A connection serves one task: two at once would speak in each other's transactions."""
    handled = 0
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        while True:
            if await work_once(conn, card):
                handled += 1
            elif until_empty:
                return handled
            else:
                await asyncio.sleep(0.5)


async def work_once(conn: AsyncConnection[Any], card: AsyncCards) -> bool:
    """One job is handled; False: there is none. The connection must be in autocommit mode."""
    job = await receive(conn)
    if job is None:
        return False
    try:
        settlement = await handle(conn, job, card)
    except (SetAside, MalformedMessage) as error:
        await set_aside(conn, job, str(error))
    except LeaseLost:
        # Another worker has the message, and its own delivery of it: nothing of this one may count.
        await settle(conn, job, LEAVE)
    except Exception as error:
        if conn.broken:
            raise
        logger.exception("job %s failed for the %d. time", job.id, job.deliveries)
        if job.deliveries >= DELIVERIES_MAX:
            await set_aside(conn, job, f"failed {job.deliveries} times: {error}")
        else:
            await settle(conn, job, release(BACKOFF.seconds_after(job.deliveries)))
    else:
        await settle(conn, job, settlement)
    return True


async def handle(conn: AsyncConnection[Any], job: Job, card: AsyncCards) -> Settlement:
    """The message of the job goes to its handler; one of a type that has none here is of no concern to this worker."""
    message = Message.from_wire(job.headers, job.body)
    match message.type:
        case "order.placed":
            return await charge(conn, message, card)
        case "order.paid":
            return await book(conn, message)
        case _:
            return ACK


async def receive(conn: AsyncConnection[Any]) -> Job | None:
    """The oldest job that is visible, hidden from now on for `VISIBILITY_SECONDS`; None when there is none."""
    found = await conn.execute(
        """
        UPDATE jobs SET deliveries = deliveries + 1, visible_at = clock_timestamp() + make_interval(secs => %s)
         WHERE id = (SELECT id FROM jobs WHERE visible_at <= clock_timestamp() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id, headers, body, deliveries
        """,
        (VISIBILITY_SECONDS,),
    )
    row = await found.fetchone()
    return Job(*row) if row is not None else None


async def settle(conn: AsyncConnection[Any], job: Job, settlement: Settlement) -> None:
    """The job is gone, or comes again after the settlement's delay; `leave`: when it becomes visible by itself."""
    match settlement.action:
        case "ack":
            await conn.execute("DELETE FROM jobs WHERE id = %s", (job.id,))
        case "release":
            await conn.execute(
                "UPDATE jobs SET visible_at = clock_timestamp() + make_interval(secs => %s) WHERE id = %s",
                (settlement.delay_seconds, job.id),
            )
        case "leave":
            pass


async def set_aside(conn: AsyncConnection[Any], job: Job, reason: str) -> None:
    """The job is a dead letter, with its reason, and no longer in the queue."""
    async with conn.transaction():
        await conn.execute(
            "INSERT INTO dead_letters (job_id, headers, body, reason) VALUES (%s, %s, %s, %s)",
            (job.id, Jsonb(job.headers), job.body, reason),
        )
        await conn.execute("DELETE FROM jobs WHERE id = %s", (job.id,))
