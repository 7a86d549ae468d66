"""SIGTERM is heard whatever the main thread does, and as often as it comes; afterwards the handlers are as they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from tests.support.waiting import until

from onceward.signals import stop_on_signals

# The main thread does nothing but wait on the very event that a stop sets: now and then a signal meets its lock.
HAMMERED = """
    import os, signal, sys, threading, time
    from onceward.signals import stop_on_signals

    def hammer():
        for _ in range(500):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.0003)

    stopping = threading.Event()
    hammering = threading.Thread(target=hammer, daemon=True)
    with stop_on_signals(stopping.set, None):
        hammering.start()
        while hammering.is_alive() or not stopping.is_set():
            stopping.wait(0)
    sys.exit(7)
"""


def test_a_process_that_is_hammered_with_sigterm_while_it_waits_ends() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(HAMMERED)], timeout=60, check=False)
    assert done.returncode == 7


# What `signals` is there to avoid: a signal handler that takes a lock.
DEADLOCKED = HAMMERED.replace(
    "with stop_on_signals(stopping.set, None):", "signal.signal(signal.SIGTERM, lambda *_: stopping.set())\n    if True:"
)


def test_the_hammering_can_fail() -> None:
    """A handler that sets the event itself waits for the lock of the wait that it interrupted."""
    for _ in range(20):
        try:
            subprocess.run([sys.executable, "-c", textwrap.dedent(DEADLOCKED)], timeout=5, check=False)
        except subprocess.TimeoutExpired:
            return
    pytest.fail("no process hung, although its handler takes a lock")


def test_a_second_signal_changes_nothing_and_the_handlers_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stopped = threading.Event()
    with stop_on_signals(stopped.set, None):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_event_stops_too_and_no_thread_stays_behind() -> None:
    event, stopped = threading.Event(), threading.Event()
    with stop_on_signals(stopped.set, event):
        event.set()
        assert stopped.wait(20)
    names = ("onceward-stop", "onceward-signals")
    until(lambda: not [thread for thread in threading.enumerate() if thread.name in names])
