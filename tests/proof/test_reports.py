"""The words on the line between a worker and its controller: each arrives as it was sent; each point is the library's."""

from __future__ import annotations

import pytest

from onceward.events import POINTS
from onceward_proof.prove.faults import AIMED, Answer, Boundary, Place
from onceward_proof.prove.provider_hook import VERDICTS
from onceward_proof.workers.reports import WORDS, Note, Point, Reply, Report, Word


@pytest.mark.parametrize("word", WORDS.values(), ids=str)
def test_a_report_arrives_as_it_was_sent(word: Word) -> None:
    sent = Report(word, ask=3, role="charge", slot=1, pid=7, order="O-1", count=2, replayed=True, status=200, charge="ch_1")
    received = Report.decode(sent.encode())
    assert received == sent
    assert received.word is word


def test_what_says_nothing_is_left_out_on_the_line() -> None:
    assert Report(Note.HANDLED, at=1.5).encode() == b'{"word": "handled", "at": 1.5}\n'


@pytest.mark.parametrize("answer", Answer)
def test_a_reply_arrives_as_it_was_sent(answer: Answer) -> None:
    reply = Reply(5, answer, ({"id": "O-1", "amount": 500},))
    assert Reply.decode(reply.encode()) == reply


def test_no_two_words_are_written_alike() -> None:
    assert len(WORDS) == len(Boundary) + len(Note) + len(Point)


def test_every_point_is_one_of_the_librarys() -> None:
    assert {str(point) for point in Point} <= set(POINTS)


def test_only_a_boundary_is_a_place() -> None:
    place = Report(Boundary.ACK_BEFORE, message_type="order.paid", order="O-1").place
    assert place == Place(Boundary.ACK_BEFORE, "order.paid", "O-1")
    assert Report(Note.RECEIVED, message_type="order.paid", order="O-1").place is None


def test_the_provider_can_do_what_any_fault_at_its_boundaries_answers() -> None:
    at_provider = [fault for fault in AIMED.values() if fault.boundary in (Boundary.REQUEST, Boundary.RESPONSE)]
    answers = {fault.action for fault in at_provider if isinstance(fault.action, Answer)}
    assert answers | {Answer.GO, Answer.DROP, Answer.CUT} <= set(VERDICTS), "a kill drops the request, or cuts the answer"
