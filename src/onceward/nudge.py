"""Wakes the relays after a commit. Never inside a handler's or caller's transaction: NOTIFY there serialises all commits.

A nudge that is lost costs nothing but latency: relays poll behind it.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from onceward.database import Database

logger = logging.getLogger("onceward")
COALESCE_SECONDS: Final = 0.01


def channel(schema: str) -> str:
    """The channel that relays of this schema listen on."""
    return f"{schema}_outbox"


class Nudge:
    """Call it after a commit that published: at most one NOTIFY every `COALESCE_SECONDS`, from a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __call__(self) -> None:
        if self._thread is None:
            self._start()
        self._wanted.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="onceward-nudge", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if self._stop.is_set():
                return
            try:
                with self._database.connection() as conn:
                    conn.execute("SELECT pg_notify(%s, '')", (channel(self._database.schema),))
            except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; relays poll behind it
                logger.info("a nudge was lost, the relay finds the rows when it polls: %s", error)
            self._stop.wait(COALESCE_SECONDS)

    def stop(self) -> None:
        self._stop.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
