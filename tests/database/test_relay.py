"""The relay: what is in the outbox is sent, in order per key, and only what was confirmed is deleted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.checks import check_a_key_is_not_overtaken
from tests.support.deliveries import delivery, order
from tests.support.points import Gate, Recorder
from tests.support.queues import ListSink, drain, relaying
from tests.support.shop import transactional
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.errors import UsageError
from onceward.message import Message
from onceward.outbox import publish
from onceward.relay_loop import relay
from onceward.retry import Backoff

Db = psycopg.Connection[Any]
Connect = Callable[..., Db]


def put(db: Db, *messages: Message) -> None:
    with db.transaction():
        for message in messages:
            publish(db, message)


def of_key(sink: ListSink, key: str | None) -> list[str]:
    return [message.id for message in sink.messages if message.subject == key]


def empty(db: Db) -> Callable[[], bool]:
    return lambda: not rows.outbox(db)


def ids(messages: Sequence[Message]) -> list[str]:
    return [message.id for message in messages]


def test_what_is_in_the_outbox_is_sent_whole_and_deleted(dsn: str, db: Db) -> None:
    sent, sink = [order(subject="a", traceparent="00-1-2-01"), order(), order(source="shop")], ListSink()
    put(db, *sent)
    drain(dsn, sink)
    assert sink.messages == sent
    assert rows.outbox(db) == []


@pytest.mark.parametrize("lanes", [1, 3])
def test_keys_with_more_rows_than_a_batch_are_sent_in_their_order(lanes: int, dsn: str, db: Db) -> None:
    """No batch can hold a whole key: what goes next is always its oldest row."""
    sent, sink = [order(subject=f"key-{n % 2}") for n in range(70)], ListSink(publish_max=10)
    put(db, *sent)
    drain(dsn, sink, lanes=lanes)
    assert [of_key(sink, f"key-{n}") for n in range(2)] == [ids(sent[n::2]) for n in range(2)]
    assert rows.outbox(db) == []


def test_a_rolled_back_row_is_never_sent(dsn: str, db: Db, connect: Connect) -> None:
    conn, sink = connect(autocommit=False), ListSink()
    publish(conn, order())
    conn.rollback()
    drain(dsn, sink)
    assert sink.messages == []


def test_only_confirmed_rows_are_deleted(dsn: str, db: Db) -> None:
    good, bad, sink = order(), order(), ListSink()
    sink.refuse.add(bad.id)
    put(db, bad, good)
    drain(dsn, sink, backoff=Backoff(first_seconds=60))
    assert sink.ids == [good.id]
    [row] = rows.outbox(db)
    assert (row.id, row.attempts, row.error) == (bad.id, 1, "TransportError: refused")
    assert row.retry_at is not None


def test_a_keyed_row_that_cannot_be_sent_holds_its_key_and_the_rest_flow(dsn: str, db: Db, background: Background) -> None:
    """And once it can be sent, its key goes on, in order."""
    held = [order(subject="held") for _ in range(3)]
    free = [order(subject="free") for _ in range(3)]
    unkeyed, refused = [order(), order()], order()
    sink = ListSink()
    sink.refuse |= {held[0].id, refused.id}
    put(db, held[0], free[0], refused, held[1], unkeyed[0], free[1], held[2], free[2], unkeyed[1])
    with relaying(background, dsn, sink):
        until(lambda: len(sink.messages) == 5)
        assert of_key(sink, "held") == []
        assert of_key(sink, "free") == ids(free)
        assert of_key(sink, None) == ids(unkeyed)
        sink.refuse.clear()
        until(empty(db))
    assert of_key(sink, "held") == ids(held)
    assert refused.id in sink.ids


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_is_not_a_message_holds_only_what_is_behind_it(
    place: int, dsn: str, db: Db, background: Background
) -> None:
    """Somebody wrote it by SQL. Rows of its key that are before it must go, those behind it must not."""
    messages, sink = [order(subject="k") for _ in range(3)], ListSink()
    put(db, *messages)
    db.execute("UPDATE onceward.outbox SET type = '' WHERE id = %s", (messages[place].id,))
    other = order(subject="other")
    put(db, other)
    with relaying(background, dsn, sink):
        until(lambda: len(rows.outbox(db)) == 3 - place)
        until(lambda: rows.outbox(db)[0].attempts >= 2)
    assert of_key(sink, "k") == ids(messages[:place])
    assert of_key(sink, "other") == [other.id]


def test_with_the_sink_wholly_down_nothing_is_postponed_and_all_is_sent_later(
    dsn: str, db: Db, background: Background
) -> None:
    messages, sink = [order(subject=str(n % 3)) for n in range(9)], ListSink()
    sink.down = True
    put(db, *messages)
    with relaying(background, dsn, sink):
        until(lambda: sink.calls >= 3)
        assert {(row.attempts, row.retry_at) for row in rows.outbox(db)} == {(0, None)}
        sink.down = False
        until(empty(db))
    assert [of_key(sink, str(n)) for n in range(3)] == [ids(messages[n::3]) for n in range(3)]


def test_with_the_sink_wholly_down_the_relay_backs_off(dsn: str, db: Db, background: Background) -> None:
    """Four tries with waits of at least 0.1, 0.2 and 0.4 s between them."""
    sink = ListSink()
    sink.down = True
    put(db, order())
    began = time.monotonic()
    with relaying(background, dsn, sink, lanes=1, backoff=Backoff(first_seconds=0.2, seconds_max=2)):
        until(lambda: sink.calls >= 4)
    assert time.monotonic() - began >= 0.7


def test_two_writers_that_commit_out_of_position_order_lose_nothing(
    dsn: str, db: Db, connect: Connect, background: Background
) -> None:
    """The row with the lower position becomes visible after the higher one was sent: it is sent then."""
    slow, sink = connect(autocommit=False), ListSink()
    first, second = order(), order()
    publish(slow, first)
    put(db, second)
    with relaying(background, dsn, sink):
        until(lambda: sink.ids == [second.id])
        slow.commit()
        until(lambda: sink.ids == [second.id, first.id])
        until(empty(db))


def test_writers_of_one_key_that_take_turns_are_sent_in_the_order_of_their_commits(
    dsn: str, db: Db, connect: Connect, background: Background
) -> None:
    writers, sink = [connect(autocommit=False) for _ in range(4)], ListSink()
    sent: list[Message] = []
    with relaying(background, dsn, sink), relaying(background, dsn, sink):
        for turn in range(80):
            conn = writers[turn % 4]
            sent.append(order(subject=f"key-{turn % 3}"))
            conn.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (sent[-1].subject,))
            publish(conn, sent[-1])
            conn.commit()
        until(empty(db))
    for key in ("key-0", "key-1", "key-2"):
        wanted = [message.id for message in sent if message.subject == key]
        assert without_repeats(of_key(sink, key)) == wanted


def without_repeats(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def test_a_second_relay_does_not_overtake_the_key_that_the_first_holds(dsn: str, db: Db, background: Background) -> None:
    check_a_key_is_not_overtaken(dsn, db, background)


def test_a_relay_that_dies_after_publishing_sends_again_under_the_same_id(dsn: str, db: Db, background: Background) -> None:
    message, sink = order(subject="k"), ListSink()
    put(db, message)

    def kill() -> None:
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'onceward relay'"
        db.execute(statement)

    with Gate("relay.published") as gate, relaying(background, dsn, sink, gate):
        gate.wait()
        kill()
        gate.release()
        until(empty(db))
    assert set(sink.ids) == {message.id}
    assert len(sink.ids) >= 2


def test_a_late_row_with_a_lower_position_of_a_key_in_hand_is_sent_and_none_is_lost(
    dsn: str, db: Db, connect: Connect, background: Background
) -> None:
    """Its writers were not serialised, so their order is open; but both must go, whoever holds what."""
    slow, first, second = connect(autocommit=False), ListSink(), ListSink()
    low, high = order(subject="k"), order(subject="k")
    publish(slow, low)
    put(db, high)
    with Gate("relay.taken") as gate, relaying(background, dsn, first, gate, lanes=1):
        gate.wait()
        slow.commit()
        with relaying(background, dsn, second, lanes=1):
            until(lambda: low.id in second.ids)
            gate.release()
            until(empty(db))
    assert {*first.ids, *second.ids} == {low.id, high.id}


def test_a_batch_is_never_larger_than_the_sink_takes(dsn: str, db: Db) -> None:
    class Measuring(ListSink):
        def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
            sizes.append(len(messages))
            return super().publish(messages)

    sizes: list[int] = []
    sink = Measuring(publish_max=7)
    put(db, *[order(subject=f"{n % 5}") for n in range(40)])
    drain(dsn, sink, lanes=1)
    assert (max(sizes), sum(sizes)) == (7, 40)


def test_a_key_that_is_busy_does_not_starve_the_others(dsn: str, db: Db) -> None:
    sink = ListSink()
    put(db, *[order(subject="busy") for _ in range(500)], order(subject="quiet"))
    drain(dsn, sink, lanes=1, batch=50)
    assert [message.subject for message in sink.messages].index("quiet") < 51


def test_a_nudge_wakes_a_relay_whose_poll_is_long(
    dsn: str, db: Db, opened: Callable[..., OpenConsumer], background: Background
) -> None:
    def pay(message: Message, tx: Db) -> None:
        publish(tx, order(subject=message.subject))

    sink, seen = ListSink(), Recorder()
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onceward relay' AND query LIKE 'LISTEN%%'"
    with relaying(background, dsn, sink, seen, poll_seconds=3600.0):
        until(lambda: rows.scalar(db, listening) == 1)
        opened(transactional(pay)).deliver(delivery(order()))
        until(lambda: len(sink.messages) == 1, "the nudge", seconds=10)
        until(empty(db))


def test_a_nudge_is_never_sent_inside_the_handlers_transaction(
    dsn: str, db: Db, connect: Connect, opened: Callable[..., OpenConsumer]
) -> None:
    listening = connect()
    listening.execute("LISTEN onceward_outbox")

    def pay(_: Message, tx: Db) -> None:
        publish(tx, order())
        if fails.pop():
            raise RuntimeError("after publishing")

    fails = [False, True]
    consumer, message = opened(transactional(pay)), order()
    consumer.deliver(delivery(message))
    assert list(listening.notifies(timeout=0.1, stop_after=1)) == []
    consumer.deliver(delivery(message))
    assert len(list(listening.notifies(timeout=10, stop_after=1))) == 1


def test_the_events_of_the_relay_name_each_message(dsn: str, db: Db) -> None:
    good, bad, sink, seen = order(), order(), ListSink(), Recorder()
    sink.refuse.add(bad.id)
    put(db, good, bad)
    drain(dsn, sink, seen, lanes=1, backoff=Backoff(first_seconds=60))
    assert [(event.point, event.message_id) for event in seen.events] == [
        ("relay.taken", good.id),
        ("relay.taken", bad.id),
        ("relay.published", good.id),
        ("relay.published", bad.id),
        ("relay.deleted", good.id),
        ("relay.postponed", bad.id),
    ]


class ClosingSink(ListSink):
    """Says how often it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("by_factory", [True, False])
def test_a_sink_is_closed_by_whoever_made_it(by_factory: bool, dsn: str, db: Db) -> None:
    sink, message = ClosingSink(), order()
    put(db, message)
    relay(sink=(lambda: sink) if by_factory else sink, database=dsn, until_empty=True)
    assert (sink.ids, sink.closed) == ([message.id], by_factory)


@pytest.mark.parametrize(
    ("sink", "text"),
    [
        ("orders", "sink: pass a Sink or a function that makes one, not a str (it has no traits, publish, close)"),
        (lambda: None, "sink: the function gave None, which is not a Sink: it has no traits, publish, close"),
        (object, "sink: the function gave a object, which is not a Sink"),
    ],
)
def test_what_is_not_a_sink_is_refused(sink: Any, text: str, dsn: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        relay(sink=sink, database=dsn)
