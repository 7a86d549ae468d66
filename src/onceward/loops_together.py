"""Several consumers in one process: a loop for each, one signal and one end for all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from onceward.consumer import CONNECTIONS_BESIDE_THREADS, Consumer
from onceward.consumer_loop import Loop, checked_limits, opened_loop
from onceward.database import DatabaseSource, as_pool, check_pool_size
from onceward.endpoints import SourceOrFactory
from onceward.errors import UsageError
from onceward.events import Listener
from onceward.health import Health
from onceward.signals import stop_on_signals

LOOK_SECONDS: Final = 0.1  # how soon the main thread sees that a loop has ended


def run_all(
    consumers: Sequence[tuple[Consumer, SourceOrFactory]],
    *,
    database: DatabaseSource,
    threads: int = 8,
    prefetch: int | None = None,
    drain_seconds: float = 20.0,
    upkeep: bool = True,
    allow_short_window: bool = False,
    listeners: Sequence[Listener] = (),
    stop: threading.Event | None = None,
    health: Health | None = None,
) -> None:
    """Consume with several consumers at once, each from the source beside it, until one signal (or `stop`); then drain.

    As `run`, whose arguments hold for each of them: each has so many threads and connections of its own, and all drain at
    the same time. `health` is live and ready when all of them are.

    Raises at once, before any of them has received anything, what cannot work. If a `UsageError` ends one of them later,
    the others drain, too, and then it is raised.

    Crash anywhere: as in `run`.
    """
    limits = checked_limits(threads, prefetch, drain_seconds, stop)
    pairs = _pairs(consumers)
    if pool := as_pool(database):
        # Each consumer would find it large enough for itself alone.
        check_pool_size(pool, len(pairs) * (limits.threads + CONNECTIONS_BESIDE_THREADS))
    with ExitStack() as opening:
        loops = []
        for number, (consumer, source) in enumerate(pairs, 1):
            part = None if health is None else health.part(f"{number} {consumer.name}")
            opened = opened_loop(
                consumer, source, database, limits, listeners, part, upkeep=upkeep, allow_short_window=allow_short_window
            )
            loops.append(opening.enter_context(opened))
        together = LoopsTogether(loops)
        with stop_on_signals(together.stop, stop):
            together.run()


def _pairs(consumers: Any) -> Sequence[tuple[Consumer, SourceOrFactory]]:
    pairs = [*consumers] if isinstance(consumers, Sequence) else []
    if not pairs or any(not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs):
        raise UsageError("run_all: pass a list of (consumer, source), at least one")
    for consumer, _ in pairs:
        if not isinstance(consumer, Consumer):
            raise UsageError(f"run_all: pass a list of (consumer, source); a {type(consumer).__name__} is not a Consumer")
    return pairs


class LoopsTogether:
    """Several loops, each on a thread of its own, that end together."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._loops = loops
        self._errors: list[BaseException] = []

    def stop(self) -> None:
        """As `Loop.stop`, for all of them."""
        for loop in self._loops:
            loop.stop()

    def run(self) -> None:
        """Return once all have drained; raise what ended the first of them.

        With one consumer fewer, the process would look healthy from outside.
        """
        threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"onceward-loop-{n}", daemon=True)
            for n, loop in enumerate(self._loops)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # In short joins: signal handlers run on this thread between them.
            while thread.is_alive():
                thread.join(timeout=LOOK_SECONDS)
        if not self._errors:
            return
        error = self._errors[0]
        if isinstance(error, Exception):
            raise error
        # An exit that was asked for in one of them (by a source, say) must not become this process's own, successful, exit.
        raise RuntimeError(f"a consumer's loop was ended by {type(error).__name__}: {error}") from error

    def _run(self, loop: Loop) -> None:
        try:
            loop.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is: raised again where run_all() was called
            self._errors.append(error)
            self.stop()
