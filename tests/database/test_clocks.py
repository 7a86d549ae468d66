"""Whose clock: the database's decides on leases and windows; that of this process only makes a message's id and time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_a_crashed_claim_is_taken_over
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import Gate
from tests.support.shop import SHAPES, charging, effectful, of_shape
from tests.support.waiting import Background

import onceward
from onceward.consumer import OpenConsumer
from onceward.inbox import Inbox, TakeResult
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on this process's clock is so many minutes off, whichever way it is read."""

    def set_to(minutes: int) -> None:
        class Off(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + timedelta(minutes=minutes)

        wall, wall_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: wall() + 60 * minutes)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + 60 * minutes * 1_000_000_000)
        monkeypatch.setattr("onceward.message.datetime", Off)
        made = datetime.fromtimestamp((UUID(order().id).int >> 80) / 1000, UTC)
        assert [round((at - datetime.now(UTC)).total_seconds() / 60) for at in (order().time, made)] == [minutes] * 2

    return set_to


half_an_hour_off = pytest.mark.parametrize("minutes", [-30, 30])


@half_an_hour_off
def test_the_clock_of_a_worker_plays_no_part_in_its_leases(
    minutes: int, opened: Opened, db: Db, set_clock: Callable[[int], None], background: Background
) -> None:
    """Ids that it makes are off by half an hour; its claims last as long as anybody's, by the database's clock."""
    set_clock(minutes)
    message = order()
    with Gate("consumer.claimed") as gate:
        running = background(opened(effectful(lease_seconds=20), gate).deliver, delivery(message))
        gate.wait()
        assert 15 < rows.inbox_row(db, message).lease_left.total_seconds() <= 20
        assert Inbox(rows.CONSUMER).claim(db, message).result is TakeResult.IN_FLIGHT
    assert running.result() == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


@pytest.mark.parametrize("shape", SHAPES)
@half_an_hour_off
def test_a_worker_whose_clock_is_off_leaves_a_living_lease_alone(
    minutes: int, shape: str, opened: Opened, db: Db, set_clock: Callable[[int], None]
) -> None:
    message = order()
    Inbox(rows.CONSUMER, lease_seconds=40, worker="another").claim(db, message)
    set_clock(minutes)
    settlement = opened(of_shape(shape)).deliver(delivery(message))
    assert settlement.action == "release"
    assert 30 < settlement.delay_seconds <= 40
    assert rows.books(db, message) == rows.Books("pending", 1, 0, [], 0)


@pytest.mark.parametrize("shape", SHAPES)
@half_an_hour_off
def test_a_worker_whose_clock_is_off_takes_a_lapsed_lease_over(
    minutes: int, shape: str, opened: Opened, db: Db, set_clock: Callable[[int], None]
) -> None:
    set_clock(minutes)
    check_a_crashed_claim_is_taken_over(opened, db, shape)


@pytest.mark.parametrize(
    ("minutes", "age", "called", "state"),
    [
        (30, timedelta(hours=22, minutes=45), 2, "done"),
        (-30, timedelta(hours=23, minutes=15), 1, "parked"),
    ],
    ids=["it seems closed", "it seems open"],
)
def test_the_clock_of_a_worker_neither_opens_nor_closes_a_providers_window(
    minutes: int, age: timedelta, called: int, state: str, opened: Opened, db: Db, set_clock: Callable[[int], None]
) -> None:
    """A key may be sent again for 23 hours: the intent's age is told by the clock that wrote it."""
    message, provider = order(), Provider()
    provider.after.append(ConnectionError("cut after it charged"))
    consumer = opened(charging(provider))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, age)
    set_clock(minutes)
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert (provider.calls, len(provider.charges), rows.state(db, message)) == (called, 1, state)


WALL_CLOCK = re.compile(
    r"time\.time(_ns)?\b|\bfrom time import (\([^)]*|[^(\n]*)\btime(_ns)?\b"
    r"|\b(clock_gettime|localtime|gmtime|ctime|utcnow)\(|\bdate(time)?\.(now|today)\b"
)
NOT_THE_CORE = ("testing", "commands")


def core_files() -> dict[str, str]:
    """The text of every module that takes part in a decision, or brings messages to it, by its place."""
    package = Path(onceward.__file__).parent
    places = {path.relative_to(package): path for path in package.rglob("*.py")}
    return {
        place.as_posix(): path.read_text(encoding="utf-8")
        for place, path in places.items()
        if place.parts[0] not in NOT_THE_CORE
    }


@pytest.mark.parametrize("hours", [2, 24 * 30])
def test_a_lease_of_a_database_clock_that_was_ahead_is_taken_over(hours: int, opened: Opened, db: Db) -> None:
    """Else its message would wait until the calendar gets there."""
    message = order()
    Inbox(rows.CONSUMER).claim(db, message)
    db.execute("UPDATE onceward.inbox SET lease_until = clock_timestamp() + make_interval(hours => %s)", (hours,))
    assert opened(effectful()).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books("done", 2, 0, [], 1)


def test_a_lease_that_is_merely_longer_than_ours_is_believed(opened: Opened, db: Db) -> None:
    """Another process of the consumer may have a longer one: a deploy that changes it."""
    message = order()
    Inbox(rows.CONSUMER, lease_seconds=1800).claim(db, message)
    assert opened(effectful(lease_seconds=30)).deliver(delivery(message)).action == "release"


def test_only_a_message_reads_the_wall_clock() -> None:
    """Its id and its time are the producer's; nothing else in the core may ask this machine what time it is.

    Upkeep does, but only to refuse: it retires nothing while the database's clock is an hour or more from this one. And
    Kafka's retry topics carry the time at which a delay is over, for another process to wait for: never longer than the
    delay itself, whatever the two clocks say.
    """
    files = core_files()
    assert {"lease.py", "inbox.py", "transports/pgmq.py"} <= files.keys()
    assert {place for place, text in files.items() if WALL_CLOCK.search(text)} == {
        "message.py", "day_partitions.py", "transports/kafka/wire.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "now = time.time()",
        "now = _time.time_ns() // 1_000_000",
        "field(default_factory=time.time)",
        "from time import time",
        "from time import monotonic, time_ns as now",
        "from time import (\n    monotonic,\n    time,\n)",
        "datetime.now(UTC)",
        "datetime.datetime.today()",
        "date.today()",
        "datetime.utcnow()",
        "time.localtime()",
        "time.gmtime()",
        "time.clock_gettime(time.CLOCK_REALTIME)",
    ],
)
def test_the_search_for_the_wall_clock_can_fail(line: str) -> None:
    assert WALL_CLOCK.search(line)


@pytest.mark.parametrize(
    "line", ["import time", "time.monotonic()", "from time import monotonic\nimport time", "datetime.fromtimestamp(0, UTC)"]
)
def test_a_clock_that_only_measures_is_not_a_wall_clock(line: str) -> None:
    assert not WALL_CLOCK.search(line)
