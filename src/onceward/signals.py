"""SIGTERM and SIGINT as a wish to stop, in a way that no signal can deadlock."""

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
    """SIGTERM and SIGINT ask for the drain, where this is the main thread; `event` does so anywhere.

    `stop` is called from threads of our own, perhaps more than once.
    """
    if event is not None:
        threading.Thread(target=_when_set, args=(event, stop), name="onceward-stop", daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = Asked()
    ended = threading.Event()
    watcher = threading.Thread(target=_when_asked, args=(asked, ended, stop), name="onceward-signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ended.set()
        watcher.join()


class Asked:
    """A signal handler that only marks: it takes no lock.

    A handler runs on the main thread, between any two of its instructions. Event.set() in it would wait for a lock that the
    very Event.wait() which it interrupted may hold, for ever.
    """

    def __init__(self) -> None:
        self.yes = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.yes = True


def _when_asked(asked: Asked, ended: threading.Event, then: Callable[[], None]) -> None:
    while not asked.yes:
        if ended.wait(LOOK_SECONDS):
            return
    then()


def _when_set(event: threading.Event, then: Callable[[], None]) -> None:
    if event.wait():
        then()
