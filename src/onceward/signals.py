"""SIGTERM and SIGINT as a request to stop.

They are heard without a lock, on which a signal handler could deadlock.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

LOOK_SECONDS: Final = 0.1  # how soon a signal is seen


@contextmanager
def stop_on_signals(stop: Callable[[], None], event: threading.Event | None) -> Iterator[None]:
    """Inside, SIGTERM, SIGINT and `event` call `stop`.

    It is called from threads of our own, perhaps more than once.

    Python hears signals on its main thread only: on any other thread, `event` alone is heard.
    """
    if event is not None:
        threading.Thread(target=_when_set, args=(event, stop), name="onceward-stop", daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signalled = Signalled()
    ended = threading.Event()
    watcher = threading.Thread(target=_when_signalled, args=(signalled, ended, stop), name="onceward-signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, signalled) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ended.set()
        watcher.join()


class Signalled:
    """A signal handler that only sets an attribute."""

    # No Event: a handler runs on the main thread, between any two of its instructions, and Event.set() takes a lock. If the
    # main thread holds it just then, in an Event.wait(), the handler would wait for ever for the code that it interrupted.

    def __init__(self) -> None:
        self.yes = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.yes = True


def _when_signalled(signalled: Signalled, ended: threading.Event, then: Callable[[], None]) -> None:
    while not signalled.yes:
        if ended.wait(LOOK_SECONDS):
            return
    then()


def _when_set(event: threading.Event, then: Callable[[], None]) -> None:
    event.wait()
    then()
