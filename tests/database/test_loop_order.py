"""Deliveries of one order key are handled one at a time, in their order; what goes back takes those behind it along."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from tests.support.deliveries import delivery, order
from tests.support.queues import ListSource, consuming
from tests.support.shop import of_shape
from tests.support.waiting import Background, until

from onceward.consumer_loop import run
from onceward.message import Message
from onceward.retry import Backoff
from onceward.transport import Delivery
from onceward.waiting import Waiting


def deliveries(*names: str) -> list[Delivery]:
    """Named "a1", "a2", "b1": of the keys "a" and "b"."""
    return [replace(delivery(order(subject=name[0]), id=name), order_key=name[0]) for name in names]


def consume(background: Background, dsn: str, source: ListSource, handle: Callable[[Message], None], many: int) -> None:
    consumer = of_shape("transactional", handle)
    consumer.backoff = Backoff(first_seconds=5.0, seconds_max=5.0)
    options = {"source": lambda: source, "database": dsn, "threads": 4, "prefetch": 8}
    with consuming(background, run, consumer=consumer, **options):
        source.wait_for_settled(many)


def test_one_key_is_handled_in_order_beside_the_others(dsn: str, background: Background) -> None:
    source, lock = ListSource(ordered=True), threading.Lock()
    in_hand: list[str] = []
    seen: list[str] = []
    two_at_once = threading.Event()

    def handle(message: Message) -> None:
        with lock:
            assert message.subject is not None
            assert message.subject not in in_hand
            in_hand.append(message.subject)
            seen.append(message.id)
            if len(in_hand) > 1:
                two_at_once.set()
        assert two_at_once.wait(10)
        with lock:
            in_hand.remove(message.subject)

    came = deliveries("a1", "a2", "b1", "a3", "b2")
    source.waiting.extend(came)
    consume(background, dsn, source, handle, 5)
    ids = {each.id: each.headers["id"] for each in came}
    assert [message_id for message_id in seen if message_id in {ids["a1"], ids["a2"], ids["a3"]}] == [
        ids["a1"], ids["a2"], ids["a3"],
    ]  # fmt: skip
    assert [name for name, settlement in source.settled if settlement.action == "ack" and name[0] == "b"] == ["b1", "b2"]


def test_what_goes_back_takes_those_behind_it_along(dsn: str, background: Background) -> None:
    source = ListSource(ordered=True)
    came = deliveries("a1", "a2", "a3", "b1")
    fails = came[0].headers["id"]
    runs: list[str] = []

    def handle(message: Message) -> None:
        runs.append(message.id)
        if message.id == fails:
            until(lambda: not source.waiting)
            raise ValueError("not this time")

    source.waiting.extend(came)
    consume(background, dsn, source, handle, 4)
    back = [(name, settlement) for name, settlement in source.settled if settlement.action == "release"]
    assert [name for name, _ in back] == ["a1", "a2", "a3"]
    assert back[0][1].delay_seconds > 0
    assert {settlement.delay_seconds for _, settlement in back[1:]} == {0}
    assert sorted(runs) == sorted([fails, came[3].headers["id"]]), "of its key, nothing overtook it"


def test_a_queue_without_a_lease_is_never_left_alone_with_a_delivery(dsn: str, background: Background) -> None:
    """It takes nothing back by itself: what the loop would leave, it releases."""
    source = ListSource(lease_seconds=None)
    source.waiting.append(delivery(order(), id="left"))

    def handle(_message: Message) -> None:
        raise SystemExit("ends this thread's work without an outcome")

    consume(background, dsn, source, handle, 1)
    assert source.actions("left") == ["release"]
    assert source.extended == []


def test_what_is_taken_away_while_it_waits_is_not_handled(dsn: str, background: Background) -> None:
    source, go_on = ListSource(), threading.Event()
    first, second = delivery(order(), id="first"), delivery(order(), id="second")
    runs: list[str] = []

    def handle(message: Message) -> None:
        runs.append(message.id)
        assert go_on.wait(10)

    consumer = of_shape("transactional", handle)
    options = {"source": lambda: source, "database": dsn, "threads": 1, "prefetch": 4}
    source.waiting.extend([first, second])
    with consuming(background, run, consumer=consumer, **options):
        until(lambda: bool(runs))
        source.lost.append(second)
        until(lambda: not source.lost)
        receives = source.receives
        until(lambda: source.receives > receives)
        go_on.set()
        source.wait_for_settled(1)
        third = delivery(order(), id="third")
        source.waiting.append(third)
        until(lambda: "ack" in source.actions("third"))
    assert runs == [first.headers["id"], third.headers["id"]]


def test_what_goes_back_unstarted_counts_as_no_crash(dsn: str, db: psycopg.Connection[Any], background: Background) -> None:
    """Its queue counts each delivery, and too many that ended in nothing are poison."""
    source = ListSource(ordered=True)
    came = [replace(each, count=7) for each in deliveries("a1", "a2")]

    def handle(_message: Message) -> None:
        until(lambda: not source.waiting)
        raise ValueError("not this time")

    source.waiting.extend(came)
    consume(background, dsn, source, handle, 2)
    row = db.execute("SELECT n, excused FROM onceward.attempts WHERE message_id = %s", (came[1].headers["id"],)).fetchone()
    assert row == (0, 1)


@pytest.mark.parametrize("order_of_calls", [("go_on", "take_behind"), ("take_behind", "go_on")])
def test_a_line_is_closed_when_nobody_waits_in_it(order_of_calls: Sequence[str]) -> None:
    waiting = Waiting()
    for call in order_of_calls:
        a1, a2 = deliveries("a1", "a2")
        waiting.put([a1])
        assert waiting.get() is a1
        getattr(waiting, call)("a")
        waiting.begin_receive()
        assert waiting.put([a2]) == []
        assert waiting.get() is a2
        waiting.go_on("a")


def test_what_a_queue_gave_before_it_was_told_does_not_overtake_what_goes_back() -> None:
    waiting = Waiting()
    a1, a4, b1 = deliveries("a1", "a4", "b1")
    waiting.begin_receive()
    waiting.put([a1])
    assert waiting.get() is a1
    waiting.begin_receive()
    # The receive has a4 in its hands already; now a1 goes back, and nobody waits behind it.
    assert waiting.take_behind("a") == []
    assert waiting.put([a4, b1]) == [a4]
    assert waiting.get() is b1
    waiting.begin_receive()
    assert waiting.put([a1, a4]) == []
    assert waiting.get() is a1
