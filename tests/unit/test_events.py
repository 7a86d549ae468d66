"""Listeners watch: what one raises is told, counted, and changes nothing."""

from __future__ import annotations

import pytest
from tests.support.points import Recorder

from onceward.events import FAILURES_BETWEEN_LINES, Event, Listeners


class Broken:
    """Fails at every event."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, _: Event) -> None:
        raise self.error


def test_a_listener_that_fails_at_every_event_is_told_in_full_once_and_then_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = Recorder()
    listeners = Listeners([Broken(ValueError("nothing works")), seen])
    for _ in range(2 * FAILURES_BETWEEN_LINES + 1):
        listeners.emit("consumer.settled", "payments", "some id")
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, False]
    assert "has failed 2000 times, the last time at consumer.settled: ValueError: nothing works" in caplog.text
    assert len(seen.events) == 2 * FAILURES_BETWEEN_LINES + 1


def test_each_listener_is_counted_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    listeners = Listeners([Broken(ValueError()), Broken(SystemExit(1))])
    for _ in range(3):
        listeners.emit("consumer.settled", "payments")
    assert len(caplog.records) == 2


def test_ctrl_c_in_a_listener_on_the_main_thread_ends_the_program() -> None:
    with pytest.raises(KeyboardInterrupt):
        Listeners([Broken(KeyboardInterrupt())]).emit("consumer.settled", "payments")
