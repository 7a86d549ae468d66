"""Waiting for a condition that the database or another thread will make true: it is polled, no time is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")
SECONDS_MAX = 20.0
Background = Callable[..., "Future[Any]"]
POLL_SECONDS = 0.005


def until(condition: Callable[[], T], what: str = "the condition", seconds: float = SECONDS_MAX) -> T:
    """The first true value of `condition`. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds:g} s"
        time.sleep(POLL_SECONDS)
    return value


def until_blocked(observer: psycopg.Connection[Any], waiting: psycopg.Connection[Any]) -> None:
    """The session of `waiting` stands behind another one's lock."""
    pid = waiting.info.backend_pid
    until(lambda: is_blocked(observer, pid), f"session {pid} being blocked")


def is_blocked(observer: psycopg.Connection[Any], pid: int) -> bool:
    row = observer.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone()
    return bool(row and row[0])


def until_any_blocked(observer: psycopg.Connection[Any], many: int = 1) -> None:
    """At least `many` sessions of this database stand behind a lock."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def blocked() -> bool:
        row = observer.execute(statement).fetchone()
        return bool(row and row[0] >= many)

    until(blocked, f"{many} sessions being blocked")
