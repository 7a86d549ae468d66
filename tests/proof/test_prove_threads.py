"""Several threads in one worker: each gets its own answer, together they hold what the setting allows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.waiting import until

from onceward.transport import Delivery, Received, Traits
from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.prove.held import Hands
from onceward_proof.workers.line import Line
from onceward_proof.workers.pool import Prefetched
from onceward_proof.workers.reports import Note, Reply, Report


class Ends:
    """Both ends of a worker's line."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.line = Line(theirs, lambda report: isinstance(report.word, Boundary))
        self.theirs = theirs
        self._lines = self.ours.makefile("rb")

    def hear(self) -> Report:
        return Report.decode(self._lines.readline())

    def reply(self, reply: Reply) -> None:
        self.ours.sendall(reply.encode())


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    both.ours.close()
    both.theirs.close()


def test_each_thread_gets_the_answer_to_its_own_question_whatever_the_order(ends: Ends) -> None:
    with ThreadPoolExecutor(3) as threads:
        asked = {}
        for order in ("O-1", "O-2", "O-3"):
            answer = threads.submit(ends.line.report, Report(Boundary.ACK_BEFORE, order=order))
            asked[order] = (ends.hear(), answer)
        for order, said in (("O-3", Answer.LOSE), ("O-1", Answer.DROP), ("O-2", Answer.GO)):
            ends.reply(Reply(asked[order][0].ask, said))
        answers = {order: answer.result(timeout=20) for order, (_, answer) in asked.items()}
    assert answers == {"O-1": Answer.DROP, "O-2": Answer.GO, "O-3": Answer.LOSE}


def test_a_reply_without_a_number_answers_the_oldest_question(ends: Ends) -> None:
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ends.line.report, Report(Boundary.ACK_BEFORE))
        ends.hear()
        second = threads.submit(ends.line.report, Report(Boundary.ACK_AFTER))
        number = ends.hear().ask
        ends.reply(Reply(answer=Answer.LOSE))
        ends.reply(Reply(number, Answer.CUT))
        assert (first.result(timeout=20), second.result(timeout=20)) == (Answer.LOSE, Answer.CUT)


def test_every_thread_that_waits_hears_that_the_controller_has_ended(ends: Ends) -> None:
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ends.line.report, Report(Boundary.ACK_BEFORE)) for _ in range(2)]
        ends.hear()
        ends.hear()
        ends.ours.shutdown(socket.SHUT_RDWR)
        until(lambda: all(each.done() for each in waiting))
    assert [type(each.exception()) for each in waiting] == [SystemExit, SystemExit]


class Shelf:
    """A source with so many deliveries; it remembers how many it was asked for."""

    def __init__(self, count: int) -> None:
        self.name = "shelf"
        self.traits = Traits(lease_seconds=2.0, settle_fenced=False, counts_deliveries=True)
        self.asked: list[int] = []
        self.given_up: list[str] = []
        self._left = [Delivery(str(n), "shelf", {}, b"") for n in range(count)]

    def receive(self, limit: int, _wait_seconds: float) -> Received:
        self.asked.append(limit)
        given, self._left = self._left[:limit], self._left[limit:]
        return Received(given)

    def handled(self, delivery: Delivery) -> None:
        self.given_up.append(delivery.id)


def test_threads_take_one_each_and_the_rest_waits_for_them() -> None:
    shelf = Shelf(11)
    prefetched = Prefetched(shelf, 8, visibility_seconds=3600)  # type: ignore[arg-type]
    taken = [delivery.id for _ in range(11) for delivery in prefetched.take(1, 0)]
    assert taken == [str(n) for n in range(11)]
    assert shelf.asked == [9, 9], "one for the thread that asks, and the prefetch"
    assert list(prefetched.take(1, 0)) == []


def test_what_is_not_hidden_any_more_is_not_begun() -> None:
    shelf = Shelf(5)
    prefetched = Prefetched(shelf, 2, visibility_seconds=-1)  # type: ignore[arg-type]
    taken = [delivery.id for _ in range(2) for delivery in prefetched.take(1, 0)]
    assert (taken, shelf.given_up) == (["0", "3"], ["1", "2"])


def received(delivery: str, message_id: str) -> Report:
    return Report(Note.RECEIVED, message_id=message_id, order=f"O-{message_id}", delivery=delivery, count=1)


def test_hands_are_empty_once_each_delivery_was_handled() -> None:
    hands = Hands()
    hands.receive(received("1", "a"))
    hands.receive(received("2", "b"))
    hands.handled(Report(Note.HANDLED, delivery="1", count=1))
    assert hands.orders == ["O-b"]
    hands.handled(Report(Note.HANDLED, message_id="b"))
    assert not hands


def test_a_kill_strikes_a_holder_only_while_one_delivery_is_not_being_settled() -> None:
    hands = Hands()
    hands.receive(received("1", "a"))
    hands.receive(received("2", "b"))
    hands.settling(Report(Boundary.ACK_BEFORE, delivery="1", count=1))
    assert hands.holds_unsettled
    hands.settling(Report(Note.RELEASED, delivery="2", count=1))
    assert hands
    assert not hands.holds_unsettled
