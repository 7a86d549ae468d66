"""The relay always makes progress, or says why: slow sinks, large rows, bad rows, outages, a reset sequence, dead lanes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import order
from tests.support.queues import ListSink, drain, relaying, relaying_weakened
from tests.support.waiting import Background, until

from onceward.errors import TransportError, UsageError
from onceward.message import Message
from onceward.outbox import publish
from onceward.outbox_batch import PIECE_BYTES
from onceward.relay_loop import relay
from onceward.relay_runtime import PayloadBudget
from onceward.retry import Backoff
from onceward.statements import statements

Db = psycopg.Connection[Any]


def put(db: Db, *messages: Message) -> None:
    with db.transaction():
        for message in messages:
            publish(db, message)


def large(body: bytes) -> Message:
    return Message(type="order.placed", body=body)


class SlowSink(ListSink):
    """Takes so many seconds for each message."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        for _ in messages:
            time.sleep(self._seconds)
        return super().publish(messages)


class CutSink(ListSink):
    """A message among these ends the connection of the whole batch."""

    def __init__(self, *poison: str) -> None:
        super().__init__()
        self.poison = set(poison)

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        if self.poison & {message.id for message in messages}:
            self.calls += 1
            raise TransportError("the connection was cut")
        return super().publish(messages)


def test_what_is_confirmed_is_marked_before_the_whole_batch_is_through(dsn: str, db: Db, background: Background) -> None:
    class Stuck(ListSink):
        def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
            if len(self.messages) >= 3:
                until(goes_on.is_set)
            return super().publish(messages)

    sink, goes_on = Stuck(), threading.Event()
    put(db, *[order() for _ in range(20)])
    with relaying_weakened(background, dsn, sink, {}, batch_seconds=0.0):
        until(lambda: len(rows.outbox(db)) == 17)
        goes_on.set()
        until(lambda: not rows.outbox(db))
    assert len(sink.ids) == 20


def test_a_message_that_takes_longer_than_a_session_may_be_idle_is_sent_once(
    dsn: str, db: Db, background: Background
) -> None:
    sink = SlowSink(1.5)
    put(db, order())
    with relaying_weakened(background, dsn, sink, {}, idle_seconds_max=0.5, beat_seconds=0.1):
        until(lambda: not rows.outbox(db))
    assert len(sink.messages) == 1


def test_without_the_beat_it_is_sent_again_and_again(dsn: str, db: Db, background: Background) -> None:
    sink = SlowSink(1.5)
    put(db, order())
    with relaying_weakened(background, dsn, sink, {}, idle_seconds_max=0.5, beat_seconds=3600.0):
        until(lambda: len(sink.messages) >= 2)
        assert len(rows.outbox(db)) == 1


def test_a_relay_that_is_stopped_marks_what_was_confirmed_and_publishes_nothing_more(
    dsn: str, db: Db, background: Background
) -> None:
    class Stopping(ListSink):
        def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
            stop.set()
            time.sleep(0.5)
            return super().publish(messages)

    stop, sink = threading.Event(), Stopping()
    put(db, *[order() for _ in range(20)])
    background(relay, sink=lambda: sink, database=dsn, lanes=1, stop=stop).result(timeout=20)
    assert (sink.calls, len(sink.messages), len(rows.outbox(db))) == (1, 1, 19)


def test_large_payloads_are_sent_whole(dsn: str, db: Db) -> None:
    sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7, 9 * PIECE_BYTES]
    messages, sink = [large(bytes([n]) * size) for n, size in enumerate(sizes)], ListSink()
    put(db, *messages)
    drain(dsn, sink, lanes=1)
    assert sink.messages == messages


def test_the_payloads_in_the_process_are_bounded_whatever_the_number_of_lanes(
    dsn: str, db: Db, background: Background
) -> None:
    class Measuring(ListSink):
        def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
            size = sum(len(message.body) for message in messages)
            with lock:
                now.append(size)
                seen.append((sum(now), len(now)))
            time.sleep(0.02)
            with lock:
                now.remove(size)
            return super().publish(messages)

    lock, sink = threading.Lock(), Measuring()
    now: list[int] = []
    seen: list[tuple[int, int]] = []
    put(db, *[large(b"x" * 1000 * (n % 5 + 1)) for n in range(60)], large(b"x" * 50_000))
    with relaying_weakened(background, dsn, sink, {}, lanes=8, rows_max=2, budget=PayloadBudget(10_000)):
        until(lambda: not rows.outbox(db))
    assert max(together for _, together in seen) > 1
    assert {together for size, together in seen if size > 10_000} == {1}, "what is larger than all there is goes alone"


@pytest.mark.parametrize("batch", [1, 100])
def test_a_row_that_ends_the_sinks_connection_is_postponed_with_its_error_and_the_rest_flow(
    batch: int, dsn: str, db: Db
) -> None:
    poison, behind = order(subject="k"), order(subject="k")
    others = [order(subject=f"{n % 3}") for n in range(40)]
    sink = CutSink(poison.id)
    put(db, *others[:20], poison, behind, *others[20:])
    drain(dsn, sink, lanes=1, batch=batch, backoff=Backoff(first_seconds=60))
    assert set(sink.ids) == {message.id for message in others}
    waiting = {row.id: row for row in rows.outbox(db)}
    assert set(waiting) == {poison.id, behind.id}
    assert (waiting[poison.id].attempts, waiting[behind.id].attempts) == (1, 0)
    assert waiting[poison.id].error == "TransportError: the connection was cut"


TIMES = {
    "west": ("0001-01-01T00:00:00Z", "America/New_York"),
    "east": ("9999-12-31T23:59:59Z", "Asia/Tokyo"),
    "before": ("4000-01-01T00:00:00Z BC", "UTC"),
    "after": ("20000-01-01T00:00:00Z", "UTC"),
    "never": ("infinity", "UTC"),
}


@pytest.mark.parametrize("datestyle", ["ISO", "German", "SQL, DMY", "Postgres"])
@pytest.mark.parametrize("name", TIMES)
def test_a_time_that_cannot_be_read_holds_only_its_subject(name: str, datestyle: str, dsn: str, db: Db) -> None:
    odd, others, sink = order(subject="odd"), [order(subject="a"), order()], ListSink()
    put(db, odd, *others)
    db.execute("UPDATE onceward.outbox SET time = %s::timestamptz WHERE id = %s", (TIMES[name][0], odd.id))
    db.execute(f"ALTER DATABASE {db.info.dbname} SET timezone TO '{TIMES[name][1]}'".encode())
    db.execute(f"ALTER DATABASE {db.info.dbname} SET datestyle TO '{datestyle}'".encode())
    drain(dsn, sink, backoff=Backoff(first_seconds=60))
    sent = {message.id: message for message in sink.messages}
    assert {message.id for message in others} <= set(sent)
    assert [sent[message.id].time for message in others] == [message.time for message in others]
    if name in ("west", "east"):
        assert sent[odd.id].time.isoformat() in ("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00")
    else:
        assert "between the years" in rows.scalar(db, "SELECT error FROM onceward.outbox")


def test_a_row_that_the_server_cannot_read_costs_only_itself(dsn: str, db: Db, background: Background) -> None:
    """As a broken page does: its statement fails, and with it the transaction, whatever it has locked."""
    messages, sink = [order(subject=f"{n}") for n in range(9)], ListSink()
    put(db, *messages)
    text = statements()["outbox_payloads"]
    broken = text.replace(
        "substr(payload", "CASE WHEN 1 / (position - 5) IS NULL THEN NULL ELSE '' END::bytea || substr(payload"
    )
    assert broken != text
    with relaying_weakened(background, dsn, sink, {"outbox_payloads": broken}):
        until(lambda: len(sink.messages) == 8)
        until(lambda: [row.error for row in rows.outbox(db)] == ["it cannot be read: division by zero"])


def test_a_retry_that_a_clock_ahead_of_time_put_off_is_due(dsn: str, db: Db) -> None:
    far, near, sink = order(), order(), ListSink()
    put(db, far, near)
    for message, ahead in ((far, timedelta(days=1)), (near, timedelta(seconds=600))):
        db.execute("UPDATE onceward.outbox SET retry_at = clock_timestamp() + %s WHERE id = %s", (ahead, message.id))
    drain(dsn, sink, backoff=Backoff(seconds_max=900))
    assert sink.ids == [far.id]


def test_a_row_that_waits_is_named_with_its_error_its_tries_and_its_next_try(
    dsn: str, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    message, sink = order(subject="o-1"), ListSink()
    sink.refuse.add(message.id)
    put(db, message)
    for attempts, level in ((2, logging.WARNING), (9, logging.ERROR)):
        caplog.clear()
        db.execute("UPDATE onceward.outbox SET attempts = %s, retry_at = NULL", (attempts,))
        drain(dsn, sink, backoff=Backoff(first_seconds=60))
        [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
        text = line.getMessage()
        assert line.levelno == level
        assert all(
            part in text
            for part in ("'order.placed'", message.id, "'o-1'", f"attempt {attempts + 1}", "refused", "retrying in")
        )


LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
LISTENING = f"SELECT count(*) {LISTENERS}"


class OrmError(Exception):
    """What another library raises for a database that is away."""


def test_a_database_callable_may_raise_anything_and_the_relay_outlives_it(dsn: str, db: Db, background: Background) -> None:
    down, sink, message = threading.Event(), ListSink(), order()
    asked: list[str] = []

    def connect() -> Db:
        if down.is_set():
            asked.append(threading.current_thread().name)
            raise OrmError("connection refused")
        return psycopg.connect(dsn)

    with relaying(background, connect, sink):
        until(lambda: rows.scalar(db, LISTENING))
        down.set()
        db.execute(f"SELECT pg_terminate_backend(pid) {LISTENERS}".encode())
        until(lambda: {"onceward-relay-0", "onceward-relay-1", "onceward-relay-listener"} <= set(asked))
        down.clear()
        put(db, message)
        until(lambda: sink.ids == [message.id])
        until(lambda: rows.scalar(db, LISTENING), "the relay listening again")


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()], ids=repr)
def test_an_exit_that_a_sink_asks_for_ends_the_relay_and_is_not_a_success(error: BaseException, dsn: str, db: Db) -> None:
    class Exiting(ListSink):
        def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:  # noqa: ARG002
            raise error

    put(db, order())
    with pytest.raises(RuntimeError, match=type(error).__name__):
        relay(sink=Exiting, database=dsn, lanes=3)
    assert len(rows.outbox(db)) == 1


def test_a_lane_that_dies_of_a_bug_ends_the_relay_with_its_error(dsn: str, db: Db) -> None:
    """With fewer lanes than it was given, or with none, it would only look alive."""

    class Broken(Backoff):
        def seconds_after(self, attempts: int) -> float:
            raise LookupError(f"no delay for {attempts}")

    message, sink = order(), ListSink()
    sink.refuse.add(message.id)
    put(db, message)
    with pytest.raises(LookupError, match="no delay for 1"):
        relay(sink=lambda: sink, database=dsn, lanes=3, backoff=Broken())
    assert len(rows.outbox(db)) == 1


def test_a_sequence_that_was_reset_is_refused_with_what_mends_it(dsn: str, db: Db, connect: Callable[..., Db]) -> None:
    messages, sink = [order(subject="k") for _ in range(8)], ListSink()
    put(db, *messages[:5])
    db.execute("DELETE FROM onceward.outbox WHERE position <= 3")
    db.execute("ALTER TABLE onceward.outbox ALTER COLUMN position RESTART WITH 1")
    put(db, *messages[5:7])
    with pytest.raises(UsageError, match="position 5, and its sequence is at 2") as refused:
        drain(dsn, sink)
    assert sink.ids == []
    renumbering = str(refused.value)[str(refused.value).index("BEGIN;") :]
    connect().execute(renumbering.encode())
    put(db, messages[7])
    drain(dsn, sink)
    assert sink.messages == messages[3:]


def test_a_sequence_that_is_reset_while_the_relay_runs_is_refused_too(dsn: str, db: Db, background: Background) -> None:
    sink, message = ListSink(), order(subject="k")
    sink.refuse.add(message.id)
    put(db, order(), message)
    with (  # noqa: PT012 - it is raised at the end of the inner block
        pytest.raises(UsageError, match="its sequence is at 0"),
        relaying_weakened(background, dsn, sink, {}, numbering_seconds=0.05) as running,
    ):
        until(lambda: rows.outbox(db)[0].attempts)
        db.execute("ALTER TABLE onceward.outbox ALTER COLUMN position RESTART WITH 1")
        until(running.done)


def test_an_empty_outbox_and_one_in_order_are_not_refused(dsn: str, db: Db) -> None:
    drain(dsn, ListSink())
    put(db, order())
    drain(dsn, ListSink())
    db.execute("ALTER TABLE onceward.outbox ALTER COLUMN position RESTART WITH 1")
    drain(dsn, ListSink())
