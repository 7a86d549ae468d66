"""The relay: takes outbox rows, publishes them, deletes what the sink confirmed. Any number may run at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from psycopg import Connection

from onceward.database import Database, DatabaseSource
from onceward.errors import UsageError
from onceward.events import Listener, Listeners
from onceward.lane import IDLE_SECONDS_MAX, Lane, Shared
from onceward.outbox import channel
from onceward.retry import Backoff
from onceward.schema import check_schema
from onceward.signals import stop_on_signals
from onceward.statements import SCHEMA_DEFAULT
from onceward.transport import Sink

logger = logging.getLogger("onceward")
LAST_SECONDS: Final = 30.0  # what the other lanes get to end, when one has died


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

    An outage of the database or of the sink is waited out, however long. Raises `UsageError` for what waiting cannot mend
    (also later: a sequence of positions that was reset), and whatever else ended a lane.

    Payloads in this process: at most 64 MiB at once, over all lanes, or one larger payload. What the sink makes of them
    comes on top: pgmq's, about six times the chunk that it is sending (at most 8 MiB, or one payload).

    Crash anywhere: rows that were not deleted are sent again, under the same message id.
    """
    if batch < 1 or lanes < 1 or poll_seconds <= 0:
        raise UsageError("batch and lanes must be at least 1, poll_seconds more than 0")
    with ExitStack() as held:
        opened_sink = sink()
        held.callback(opened_sink.close)
        opened = Database(
            database,
            size=lanes + 1,
            schema=schema,
            handler_seconds_max=IDLE_SECONDS_MAX,
            application_name="onceward relay",
        )
        held.callback(opened.close)
        limit = min(batch, opened_sink.traits.publish_max)
        shared = Shared(opened, opened_sink, limit, poll_seconds, backoff, Listeners(listeners), until_empty)
        with opened.connection() as conn:
            check_schema(conn, schema)
            shared.look_at_numbering(conn)
        loop = _Relay(shared)
        with stop_on_signals(loop.stop, stop):
            loop.run(lanes)


class _Relay:
    """The lanes of one process, and the ear that wakes them."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._died: list[BaseException] = []

    def stop(self) -> None:
        self._shared.stopped.set()

    def run(self, lanes: int) -> None:
        """Until all lanes have ended. Raises what one of them died of: a relay with fewer lanes than it was given, or
        with none, would look healthy from outside."""
        threads = [threading.Thread(target=self._carry, name=f"onceward-relay-{n}", daemon=True) for n in range(lanes)]
        for thread in threads:
            thread.start()
        if not self._shared.until_empty:
            threading.Thread(target=self._listen, name="onceward-relay-ear", daemon=True).start()
        while (alive := [thread for thread in threads if thread.is_alive()]) and not self._died:
            alive[0].join(timeout=0.1)
        if self._died:
            self._end(threads)

    def _carry(self) -> None:
        try:
            Lane(self._shared).run()
        except BaseException as error:  # noqa: BLE001 - whatever it is: raised again where relay() was called
            self._died.append(error)
            self.stop()

    def _end(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + LAST_SECONDS
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        error = self._died[0]
        if isinstance(error, Exception):
            raise error
        # An exit that was asked for in a lane (by a sink, say) must not become this process's own, successful, exit.
        raise RuntimeError(f"a lane of the relay was ended by {type(error).__name__}: {error}") from error

    def _listen(self) -> None:
        """Turn NOTIFY into wake-ups; when it fails, polling covers, and it is tried again."""
        while not self._shared.stopped.is_set():
            try:
                with self._shared.database.connection() as conn:
                    conn.execute(f"LISTEN {channel(self._shared.database.schema)}")
                    self._hear(conn)
                    conn.execute("UNLISTEN *")
            except Exception as error:  # noqa: BLE001 - of whatever class a `database` callable raises
                logger.info("nudges are not heard for now, polling goes on: %s", error)
                self._shared.stopped.wait(self._shared.poll_seconds)

    def _hear(self, conn: Connection[Any]) -> None:
        while not self._shared.stopped.is_set():
            for _ in conn.notifies(timeout=0.5, stop_after=1):
                self._shared.wake()
