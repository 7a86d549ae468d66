"""The two decisions about an outbox row: one of two people has it, a relay is left alone, a crash halves nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Literal

import psycopg
import pytest
from psycopg.rows import namedtuple_row
from tests.support import crash, rows
from tests.support.deliveries import delivery, order
from tests.support.points import Gate
from tests.support.queues import ListSink, drain, relaying
from tests.support.shop import transactional
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.decisions import redrive
from onceward.errors import Reject, UsageError
from onceward.message import Message
from onceward.outbox import channel, publish
from onceward.outbox_rows import (
    OutboxDecision,
    OutboxState,
    discard_outbox,
    find_outbox,
    list_outbox,
    retry_outbox,
    show_outbox,
)
from onceward.retry import Backoff
from onceward.statements import statements

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
Connect = Callable[..., Db]
Decision = Literal["retry", "discard"]
BOTH: tuple[Decision, ...] = ("retry", "discard")
SUBJECT = "order-1"


def put(db: Db, *messages: Message) -> list[int]:
    """Their positions in the outbox."""
    with db.transaction():
        for message in messages:
            publish(db, message)
    return [row.position for row in rows.outbox(db)][-len(messages) :]


def fail(db: Db, position: int, *, set_aside: bool = False) -> None:
    """As if a relay had tried the row in vain."""
    params = {"position": position, "error": "TransportError: no such queue\nand more", "delay_seconds": 600}
    db.execute(statements()["outbox_set_aside" if set_aside else "outbox_postpone"], params)


def decide(conn: Db, decision: Decision, position: int, by: str = "ann", reason: str = "sent by hand") -> OutboxDecision:
    act = retry_outbox if decision == "retry" else discard_outbox
    return act(conn, position, decided_by=by, reason=reason)


def decisions(db: Db) -> list[Any]:
    with db.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute("SELECT * FROM onceward.decisions ORDER BY id").fetchall()


# ---- list, show, find ------------------------------------------------------------------------------------------------


def test_the_list_is_in_the_order_of_sending_with_what_waits_behind_each_row(db: Db) -> None:
    positions = put(db, *[order(subject=SUBJECT) for _ in range(4)], order())
    fail(db, positions[0], set_aside=True)
    fail(db, positions[1])
    listed = list_outbox(db)
    assert [row.position for row in listed] == positions
    assert [row.behind for row in listed] == [0, 2, 1, 0, 0]
    assert [row.state.value for row in listed] == ["set aside", "failing", "waiting", "waiting", "waiting"]
    assert [row.error for row in listed][:3] == ["TransportError: no such queue"] * 2 + [None]
    assert [row.position for row in list_outbox(db, states=[OutboxState.SET_ASIDE])] == positions[:1]
    assert [row.position for row in list_outbox(db, states=[OutboxState.FAILING])] == positions[1:2]
    assert [row.position for row in list_outbox(db, limit=2)] == positions[:2]


def test_a_row_is_shown_whole(db: Db) -> None:
    message = order({"amount": 7}, subject=SUBJECT)
    [position] = put(db, message)
    fail(db, position)
    shown = show_outbox(db, position)
    assert shown is not None
    assert (shown.message_id, shown.body, shown.whole_error) == (
        message.id, message.body, "TransportError: no such queue\nand more",
    )  # fmt: skip
    assert show_outbox(db, position + 1) is None


def test_a_row_whose_time_python_does_not_know_is_listed_and_shown(db: Db) -> None:
    [position] = put(db, order())
    db.execute("UPDATE onceward.outbox SET time = 'infinity'")
    assert len(list_outbox(db)) == 1
    shown = show_outbox(db, position)
    assert shown is not None
    assert shown.time == "infinity"


def test_a_row_is_found_by_its_position_or_its_whole_id_and_a_half_typed_id_finds_none(db: Db) -> None:
    first, second = order(), order()
    positions = put(db, first, second, first)
    assert find_outbox(db, str(positions[1])).positions == [positions[1]]
    assert find_outbox(db, second.id.upper()).positions == [positions[1]]
    assert find_outbox(db, first.id).positions == [positions[0], positions[2]]
    assert find_outbox(db, second.id[:-1]) == ([], [second.id], "")
    assert find_outbox(db, "9" * 30) == ([], [], "")
    assert find_outbox(db, "") == ([], [], "")
    assert find_outbox(db, "%") == ([], [], "")


# ---- the decisions ---------------------------------------------------------------------------------------------------


def test_a_discarded_row_is_kept_whole_in_its_decision(db: Db) -> None:
    message = order(subject=SUBJECT)
    [position] = put(db, message)
    fail(db, position, set_aside=True)
    [was] = rows.outbox(db)
    outcome = decide(db, "discard", position)
    assert (outcome.decided, outcome.message_id) == (True, message.id)
    assert "may have been sent" in outcome.expect
    assert rows.outbox(db) == []
    for place in (str(position), message.id):
        assert find_outbox(db, place) == ([], [], "ann discarded it (sent by hand)")
    [kept] = decisions(db)
    assert (kept.about, kept.decision, kept.position, kept.message_id) == ("outbox", "discard", position, message.id)
    assert (kept.reason, kept.decided_by, kept.database_role) == ("sent by hand", "ann", db.info.user)
    assert bytes(kept.body) == message.body
    assert kept.was.keys() == {*was._fields} - {"payload"}
    assert (kept.was["attempts"], kept.was["error"], kept.was["aggregateid"]) == (1, was.error, SUBJECT)


@pytest.mark.parametrize("set_aside", [False, True])
def test_a_retried_row_is_sent_as_if_it_had_never_failed(set_aside: bool, dsn: str, db: Db) -> None:
    message, later, sink = order(subject=SUBJECT), order(subject=SUBJECT), ListSink()
    position, _ = put(db, message, later)
    fail(db, position, set_aside=set_aside)
    outcome = decide(db, "retry", position, reason="")
    assert outcome.decided
    assert ("it comes late" in outcome.expect) == set_aside
    row = rows.outbox(db)[0]
    assert (row.attempts, row.retry_at, row.set_aside_at) == (0, None, None)
    [kept] = decisions(db)
    assert (kept.decision, kept.was["attempts"], kept.body) == ("retry", 1, None)
    drain(dsn, sink)
    assert sink.ids == [message.id, later.id]


def test_a_discarded_head_lets_its_subject_go(dsn: str, db: Db) -> None:
    head, later, sink = order(subject=SUBJECT), order(subject=SUBJECT), ListSink()
    position, _ = put(db, head, later)
    fail(db, position)
    drain(dsn, sink, backoff=Backoff())
    assert sink.ids == []
    assert decide(db, "discard", position).decided
    drain(dsn, sink)
    assert sink.ids == [later.id]


def test_what_has_not_failed_is_not_retried(db: Db) -> None:
    [position] = put(db, order())
    assert decide(db, "retry", position).why_not == "it has not failed; a relay takes it in its turn"
    assert "not in the outbox" in decide(db, "retry", position + 1).why_not
    assert decisions(db) == []


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_a_discard_without_a_reason_and_a_decision_of_nobody_are_refused(empty: str, db: Db) -> None:
    [position] = put(db, order())
    with pytest.raises(UsageError, match="reason"):
        decide(db, "discard", position, reason=empty)
    for decision in BOTH:
        with pytest.raises(UsageError, match="who decides"):
            decide(db, decision, position, by=empty)
    assert (len(rows.outbox(db)), decisions(db)) == (1, [])


# ---- at the same time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_a_relay_may_be_sending_is_not_discarded(place: int, dsn: str, db: Db, background: Background) -> None:
    """Also one behind the head: the relay holds no lock of its own on that."""
    messages, sink = [order(subject=SUBJECT) for _ in range(3)], ListSink()
    positions = put(db, *messages)
    with Gate("relay.taken") as gate, relaying(background, dsn, sink, gate, lanes=1):
        gate.wait()
        assert "a relay is sending it right now" in decide(db, "discard", positions[place]).why_not
        assert decisions(db) == []
        gate.release()
        until(lambda: not rows.outbox(db))
    assert sink.ids == [message.id for message in messages]


def test_without_the_look_at_the_rows_ahead_one_is_discarded_while_it_is_sent(
    dsn: str, db: Db, background: Background
) -> None:
    part, text = " AND (SELECT count(*) FROM free) = (SELECT count(*) FROM ahead)", statements()["outbox_discard"]
    assert part in text
    messages, sink = [order(subject=SUBJECT) for _ in range(2)], ListSink()
    positions = put(db, *messages)
    with Gate("relay.published", message_id=messages[0].id) as gate, relaying(background, dsn, sink, gate, lanes=1):
        gate.wait()
        params = {"position": positions[1], "reason": "r", "decided_by": "ann"}
        assert db.execute(text.replace(part, "").encode(), params).rowcount == 1
        gate.release()
    assert len(decisions(db)) == 1


def test_a_row_that_a_relay_is_trying_is_not_retried(dsn: str, db: Db, background: Background) -> None:
    [position] = put(db, order())
    fail(db, position)
    db.execute("UPDATE onceward.outbox SET retry_at = NULL")
    with Gate("relay.taken") as gate, relaying(background, dsn, ListSink(), gate, lanes=1):
        gate.wait()
        assert "a relay is sending it right now" in decide(db, "retry", position).why_not
        gate.release()
    assert decisions(db) == []


def test_a_row_set_aside_is_discarded_while_its_subject_is_being_sent(dsn: str, db: Db, background: Background) -> None:
    """Nothing guards it, and nobody may be sending it."""
    positions = put(db, order(subject=SUBJECT), order(subject=SUBJECT))
    fail(db, positions[1], set_aside=True)
    with Gate("relay.taken") as gate, relaying(background, dsn, ListSink(), gate, lanes=1):
        gate.wait()
        assert decide(db, "discard", positions[1]).decided
        gate.release()


@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("first", BOTH)
def test_of_two_people_one_decides_and_the_other_is_told(
    first: Decision, second: Decision, db: Db, connect: Connect
) -> None:
    [position] = put(db, order())
    fail(db, position, set_aside=True)
    ann = connect()
    with ann.transaction():
        assert decide(ann, first, position, "ann").decided
        assert "somebody else decides about it" in decide(db, second, position, "bob").why_not
    outcome = decide(db, second, position, "bob")
    if (first, second) == ("retry", "discard"):
        # The row is there again: it may be discarded by whoever wants that even now.
        assert outcome.decided
    else:
        assert f"ann decided: {first} (sent by hand)" in outcome.why_not
        assert [kept.decided_by for kept in decisions(db)] == ["ann"]


@pytest.mark.parametrize("decision", BOTH)
def test_of_many_at_once_one_decides(decision: Decision, db: Db, connect: Connect, background: Background) -> None:
    for _ in range(5):
        [position] = put(db, order())
        fail(db, position, set_aside=True)
        running = [background(decide, connect(), decision, position, f"person {n}") for n in range(6)]
        outcomes = [one.result(timeout=20) for one in running]
        assert sum(outcome.decided for outcome in outcomes) == 1
        assert [kept.decision for kept in decisions(db) if kept.position == position] == [decision]


# ---- a crash ---------------------------------------------------------------------------------------------------------


class Dying(psycopg.Connection[Any]):
    """Ends this process by SIGKILL before the n-th time that it speaks to the server, COMMIT included."""

    left = 0

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().wait(*args, **kwargs)


def decide_until_killed(dsn: str, decision: Decision, position: int, before: int) -> None:
    """In the child: one decision, in a transaction of its caller's, on a connection that dies."""
    with Dying.connect(dsn, autocommit=True) as conn:
        assert isinstance(conn, Dying)
        conn.left = before
        with conn.transaction():
            assert decide(conn, decision, position).decided


def decide_alone_until_killed(dsn: str, decision: Decision, position: int, before: int) -> None:
    """In the child: the same without a transaction of its caller's."""
    with Dying.connect(dsn, autocommit=True) as conn:
        assert isinstance(conn, Dying)
        conn.left = before
        assert decide(conn, decision, position).decided


@pytest.mark.parametrize("decision", BOTH)
def test_a_kill_at_each_statement_leaves_nothing_half_written(decision: Decision, dsn: str, db: Db) -> None:
    [position] = put(db, order())
    fail(db, position, set_aside=True)
    for before in (1, 2, 3):  # BEGIN, the decision, COMMIT
        assert crash.died_by_sigkill(crash.start(decide_until_killed, dsn, decision, position, before))
        [row] = rows.outbox(db)
        assert (row.attempts, row.set_aside_at is not None, decisions(db)) == (1, True, [])
    child = crash.start(decide_until_killed, dsn, decision, position, 0)
    assert not crash.died_by_sigkill(child)
    assert child.exitcode == 0
    assert [kept.decision for kept in decisions(db)] == [decision]
    assert [row.set_aside_at for row in rows.outbox(db)] == ([None] if decision == "retry" else [])


@pytest.mark.parametrize("decision", BOTH)
def test_a_kill_right_after_the_commit_leaves_the_decision_whole(decision: Decision, dsn: str, db: Db) -> None:
    """Outside a transaction, the decision commits by itself; the nudge that follows it is lost."""
    [position] = put(db, order())
    fail(db, position, set_aside=True)
    assert crash.died_by_sigkill(crash.start(decide_alone_until_killed, dsn, decision, position, 2))
    assert [kept.decision for kept in decisions(db)] == [decision]
    assert [row.set_aside_at for row in rows.outbox(db)] == ([None] if decision == "retry" else [])


# ---- the nudge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", BOTH)
def test_relays_are_nudged_after_a_decision_and_never_inside_the_callers_transaction(
    decision: Decision, db: Db, connect: Connect
) -> None:
    listening = connect()
    listening.execute(f"LISTEN {channel('onceward')}".encode())
    positions = put(db, order(), order())
    for position in positions:
        fail(db, position, set_aside=True)
    with db.transaction():
        assert decide(db, decision, positions[0]).decided
    assert list(listening.notifies(timeout=0.1, stop_after=1)) == []
    assert decide(db, decision, positions[1]).decided
    assert len(list(listening.notifies(timeout=10, stop_after=1))) == 1


def test_the_only_way_of_a_parked_message_that_was_sent_again_is_not_discarded(opened: Opened, dsn: str, db: Db) -> None:
    """Without it, the message would be pending for ever: neither parked nor in any queue."""

    def reject(_message: Message, _tx: Db) -> None:
        raise Reject("not today")

    message = order()
    opened(transactional(reject)).deliver(delivery(message))
    redrive(db, message.id, consumer=rows.CONSUMER)
    [row] = rows.outbox(db)
    assert "is its only way" in decide(db, "discard", row.position).why_not
    opened(transactional()).deliver(delivery(message))
    assert decide(db, "discard", row.position).decided
