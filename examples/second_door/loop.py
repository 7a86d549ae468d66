"""The loop of one worker: receive, handle, settle."""

from __future__ import annotations

import logging
import time
from typing import Any

from psycopg import Connection

from onceward import ACK, LEAVE, Backoff, LeaseLost, MalformedMessage, Message, Settlement, release
from second_door import jobs
from second_door.card import CardProvider
from second_door.handlers import CHARGES, LEDGER, SetAside, book, charge

DELIVERIES_MAX = 10
REGISTER_EVERY_SECONDS = 3600.0
BACKOFF = Backoff(first_seconds=0.5, seconds_max=60.0)
logger = logging.getLogger("second_door")


def run(conn: Connection[Any], card: CardProvider, *, until_empty: bool = False) -> int:
    """Work until the process is stopped (`until_empty`: until no job is visible). How many jobs were handled."""
    registered_at, handled = float("-inf"), 0
    while True:
        if time.monotonic() - registered_at > REGISTER_EVERY_SECONDS:
            # Upkeep learns these windows, and the next days have partitions.
            for inbox in (CHARGES, LEDGER):
                inbox.register(conn)
            registered_at = time.monotonic()
        if work_once(conn, card):
            handled += 1
        elif until_empty:
            return handled
        else:
            time.sleep(0.5)


def work_once(conn: Connection[Any], card: CardProvider) -> bool:
    """One job is handled; False: there is none. The connection must be in autocommit mode."""
    job = jobs.receive(conn)
    if job is None:
        return False
    try:
        settlement = handle(conn, job, card)
    except (SetAside, MalformedMessage) as error:
        jobs.set_aside(conn, job, str(error))
    except LeaseLost:
        # Another worker has the message, and its own delivery of it: nothing of this one may count.
        jobs.settle(conn, job, LEAVE)
    except Exception as error:
        if conn.broken:
            raise
        logger.exception("job %s failed for the %d. time", job.id, job.deliveries)
        if job.deliveries >= DELIVERIES_MAX:
            jobs.set_aside(conn, job, f"failed {job.deliveries} times: {error}")
        else:
            jobs.settle(conn, job, release(BACKOFF.seconds_after(job.deliveries)))
    else:
        jobs.settle(conn, job, settlement)
    return True


def handle(conn: Connection[Any], job: jobs.Job, card: CardProvider) -> Settlement:
    """The message of the job goes to its handler; one of a type that has none here is of no concern to this worker."""
    message = Message.from_wire(job.headers, job.body)
    match message.type:
        case "order.placed":
            return charge(conn, message, card)
        case "order.paid":
            return book(conn, message)
        case _:
            return ACK
