"""The relay: sends the rows of the outbox, and deletes those that the sink confirmed.

Any number may run at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from psycopg import Connection

from onceward.database import Database, DatabaseSource
from onceward.endpoints import SinkOrFactory, opened_sink
from onceward.errors import UsageError
from onceward.events import Listener, Listeners
from onceward.lane import Lane
from onceward.outbox import channel
from onceward.outbox_batch import IDLE_SECONDS_MAX
from onceward.protocol.relay import ATTEMPTS_MAX, Patience
from onceward.relay_runtime import RelayRuntime
from onceward.retry import Backoff
from onceward.schema import check_schema
from onceward.signals import stop_on_signals
from onceward.statements import SCHEMA_DEFAULT

logger = logging.getLogger("onceward")
LAST_SECONDS: Final = 30.0  # what the other lanes get to end, when one has died
LOOK_SECONDS: Final = 0.1  # how soon a lane that died is seen
HEAR_SECONDS: Final = 0.5  # how soon the thread that listens sees a stop


def relay(
    *,
    sink: SinkOrFactory,
    database: DatabaseSource,
    schema: str = SCHEMA_DEFAULT,
    batch: int = 100,
    lanes: int = 2,
    poll_seconds: float = 1.0,
    backoff: Backoff = Backoff(),  # noqa: B008 - immutable
    attempts_max: int = ATTEMPTS_MAX,
    hold_subjects: bool = False,
    listeners: Sequence[Listener] = (),
    stop: threading.Event | None = None,
    until_empty: bool = False,
) -> None:
    """Send what is in the outbox until SIGTERM or SIGINT (or `stop`).

    `sink` is a Sink, or a function that makes one; what the function made is closed at the end.
    With `until_empty`, until there is nothing to lock: a row that waits for its retry, or that another relay holds, stays.
    `lanes`: while one batch is being published, the next is locked. Per key, order is the order of commits (as far as the
    application serialises the writers of a key), also with several relays.

    A row that has failed `attempts_max` times (100 are 11 to 22 hours of the default `backoff`) is set aside: no relay
    takes it any more, and the later rows of its subject are sent without it, until somebody retries or discards it. With
    `hold_subjects`, a row with a subject is never set aside: its subject waits, however long. Give all relays of a schema
    the same. A sink that is away costs no row an attempt.

    An outage of the database or of the sink is waited out, however long. Raises `UsageError` for what waiting cannot mend
    (also later: a sequence of positions that was reset), and whatever else ended a lane.

    Payloads in this process: at most 64 MiB at once, over all lanes, or one larger payload. What the sink makes of them
    comes on top: pgmq's, about six times the chunk that it is sending (at most 8 MiB, or one payload).

    Crash anywhere: rows that were not deleted are sent again, under the same message id.
    """
    if batch < 1 or lanes < 1 or attempts_max < 1 or poll_seconds <= 0:
        raise UsageError("batch, lanes and attempts_max must be at least 1, poll_seconds more than 0")
    with ExitStack() as opening:
        made = opening.enter_context(opened_sink(sink))
        opened = Database(
            database,
            size=lanes + 1,  # one for each lane, one to listen on
            schema=schema,
            handler_seconds_max=IDLE_SECONDS_MAX,
            application_name="onceward relay",
        )
        opening.callback(opened.close)
        rows_max = min(batch, made.traits.publish_max)
        patience = Patience(attempts_max, hold_subjects)
        runtime = RelayRuntime(opened, made, rows_max, poll_seconds, backoff, Listeners(listeners), until_empty, patience)
        # Before any thread starts: what waiting cannot mend is raised where relay() was called, not from a lane.
        with opened.connection() as conn:
            check_schema(conn, schema=schema)
            runtime.check_numbering(conn)
        loop = RelayLoop(runtime)
        with stop_on_signals(loop.stop, stop):
            loop.run(lanes)


class RelayLoop:
    """The threads of one relay process: its lanes, and one that listens for nudges."""

    def __init__(self, runtime: RelayRuntime) -> None:
        self._runtime = runtime
        self._errors: list[BaseException] = []

    def stop(self) -> None:
        """Lock and publish nothing more; what was confirmed is still deleted.

        It may be called from any thread and more than once.
        """
        self._runtime.stopping.set()
        # After it: a lane that has counted this nudge already sees the stop before it sleeps.
        self._runtime.nudges.add()

    def run(self, lanes: int) -> None:
        """Return once all lanes have ended; raise what ended one of them.

        A relay that went on with fewer lanes, or with none, would look healthy from outside.
        """
        threads = [threading.Thread(target=self._run_lane, name=f"onceward-relay-{n}", daemon=True) for n in range(lanes)]
        for thread in threads:
            thread.start()
        # A relay that ends with the outbox never sleeps, so it needs no wake-up.
        if not self._runtime.until_empty:
            threading.Thread(target=self._listen, name="onceward-relay-listener", daemon=True).start()
        # In short joins: signal handlers run on this thread between them, and any lane may be the one that dies.
        while (alive := [thread for thread in threads if thread.is_alive()]) and not self._errors:
            alive[0].join(timeout=LOOK_SECONDS)
        if self._errors:
            self._raise_after(threads)

    def _run_lane(self) -> None:
        try:
            Lane(self._runtime).run()
        except BaseException as error:  # noqa: BLE001 - whatever it is: raised again where relay() was called
            self._errors.append(error)
            self.stop()

    def _raise_after(self, threads: Sequence[threading.Thread]) -> None:
        """Raise the error that ended a lane, after the other lanes.

        They first get the time to delete what was confirmed.
        """
        deadline = time.monotonic() + LAST_SECONDS
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        error = self._errors[0]
        if isinstance(error, Exception):
            raise error
        # An exit that was asked for in a lane (by a sink, say) must not become this process's own, successful, exit.
        raise RuntimeError(f"a lane of the relay was ended by {type(error).__name__}: {error}") from error

    def _listen(self) -> None:
        """Turn NOTIFY into wake-ups. Polling covers whatever is not heard."""
        while not self._runtime.stopping.is_set():
            try:
                with self._runtime.database.connection() as conn:
                    conn.execute(f"LISTEN {channel(self._runtime.database.schema)}")
                    self._pass_on_nudges(conn)
                    conn.execute("UNLISTEN *")
            except Exception as error:  # noqa: BLE001 - of whatever class a `database` callable raises
                seconds = self._runtime.poll_seconds
                logger.info("listening for nudges failed; polling goes on, retrying in %.1f s: %s", seconds, error)
                self._runtime.stopping.wait(seconds)

    def _pass_on_nudges(self, conn: Connection[Any]) -> None:
        while not self._runtime.stopping.is_set():
            for _ in conn.notifies(timeout=HEAR_SECONDS, stop_after=1):
                self._runtime.nudges.add()
