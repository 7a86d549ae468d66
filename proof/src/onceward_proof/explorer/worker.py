"""What a worker's command can come to: the database, the provider, the queue; and how its handler answers.

The outcome as it should be comes first; each of the others names its fault, or its handler's slip, and costs one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple, assert_never

from onceward.protocol import words as p
from onceward.transport import Settlement
from onceward_proof.explorer import statements
from onceward_proof.explorer.facts import Emitted, Fault, Happening, Slip, Worked
from onceward_proof.explorer.message_state import (
    HandlerPlace,
    InboxRow,
    KeyAge,
    KeyRecord,
    MessageMove,
    MessageState,
    Where,
    Worker,
)
from onceward_proof.explorer.rules import Bug, Rules
from onceward_proof.explorer.statements import Clock, Writer


class Outcome(NamedTuple):
    """What a command came to."""

    fault: Fault | None
    after: MessageState
    event: p.Event
    open: InboxRow | None = None  # the row as this worker's transaction has it afterwards
    emitted: tuple[Emitted, ...] = ()


def work(state: MessageState, index: int) -> Iterator[MessageMove]:
    """Every step that one worker can make."""
    worker = state.workers[index]
    if isinstance(worker.command, p.Settle):
        yield from _settle(state, index, worker, worker.command.settlement)
        return
    for outcome in [_flushed(state, outcome) for outcome in perform(state, index, worker)]:
        for slip, advanced in advance(worker, outcome.event, state.rules):
            fact = Worked(worker.command, outcome.event, outcome.fault, slip)
            faults = (outcome.fault is not None) + (slip is not None)
            if isinstance(outcome.event, p.Intended) and outcome.after.rows.intent is not None:
                advanced = advanced._replace(generation=outcome.after.rows.intent.generation)  # noqa: PLW2901
            after = outcome.after.with_worker(index, advanced._replace(open=outcome.open))
            yield MessageMove(fact, after, faults, 0, outcome.emitted, index)


def _flushed(state: MessageState, outcome: Outcome) -> Outcome:
    """What is committed is durable; where a session may lie, the server remembers what it had flushed before."""
    after = outcome.after
    if state.rules.bug is not Bug.SESSION_LIES or (after.rows, after.writes) == (state.rows, state.writes):
        return outcome
    return outcome._replace(after=after._replace(flushed=state.flushed or (state.rows, state.writes)))


def _settle(state: MessageState, index: int, worker: Worker, settlement: Settlement) -> Iterator[MessageMove]:
    """The worker's last step. Settling is by message, not fenced (as pgmq's is), so it may hit another's delivery."""
    after = state.with_worker(index)
    if settlement.action == "leave" or state.copies[worker.copy].where == Where.GONE:
        yield MessageMove(Happening.LEAVE, after, actor=index)
        return
    acked = settlement.action == "ack"
    moved = after.with_copy(worker.copy, Where.GONE if acked else Where.VISIBLE)
    yield MessageMove(Happening.ACK if acked else Happening.RELEASE, moved, actor=index)
    yield MessageMove(Happening.ACK_LOST if acked else Happening.RELEASE_LOST, after, 1, actor=index)


# Cached: the same turn of the same worker is met in thousands of states of its message.
@cache
def advance(worker: Worker, event: p.Event, rules: Rules) -> tuple[tuple[Slip | None, Worker], ...]:
    """The worker after `event`, once it is no longer the handler's turn; with the handler's slip, if it made one."""
    state, command = rules.step(worker.state, event)
    after = worker._replace(state=state, command=command)
    if not isinstance(command, p.Run | p.Resume | p.Interrupt):
        return ((None, after),)
    found: list[tuple[Slip | None, Worker]] = []
    for slip, answer, place in _handler(worker.place, command, rules.shape):
        further = advance(after._replace(place=place), answer, rules)
        # One slip in a turn is enough: two are two turns, and are met there.
        found += [(slip or later, advanced) for later, advanced in further if not (slip and later)]
    return tuple(found)


Turn = tuple[Slip | None, p.Event, HandlerPlace]
FAILED: Final = p.Raised(p.RaisedKind.FAILED, "x")
REFUSED: Final = p.Raised(p.RaisedKind.REFUSED, "x")
SESSION_LOST: Final = p.Raised(p.RaisedKind.SESSION_LOST, "x")
ESCAPES: Final[list[Turn]] = [
    (Slip.RAISES, FAILED, "left"),
    (Slip.DEFERS, p.Raised(p.RaisedKind.DEFERRED, "x", 1.0), "left"),
]
STARTS: Final[dict[p.Shape, list[Turn]]] = {
    "effectful": [(None, p.EffectAsked(), "asked"), *ESCAPES],
    "transactional": [(None, p.Returned(), "left"), *ESCAPES, (Slip.LOSES_SESSION, SESSION_LOST, "left")],
}
# What the handler may do: first as it should, then as it should not. One that has left is never handed anything.
TURNS: Final[dict[HandlerPlace, list[Turn]]] = {
    "asked": [(None, p.FinishAsked(), "finishing"), (Slip.RAISES, FAILED, "left")],
    "finishing": [(None, p.BlockEnded(), "ended"), (Slip.RAISES_IN_TRANSACTION, p.BlockRaised(), "broke")],
    "broke": [
        (None, FAILED, "left"),
        (Slip.SWALLOWS, p.Returned(), "left"),
        (Slip.LOST_SESSION, SESSION_LOST, "left"),
    ],
    "ended": [(None, p.Returned(), "left"), (Slip.RAISES_LATE, FAILED, "left")],
}


def _handler(place: HandlerPlace, command: p.Command, shape: p.Shape) -> list[Turn]:
    if isinstance(command, p.Interrupt):
        raised = REFUSED if command.kind is p.Interruption.REFUSED else FAILED
        swallowed = (p.FinishAsked(), "finishing") if place == "asked" else (p.Returned(), "left")
        return [(None, raised, "left"), (Slip.SWALLOWS, *swallowed)]
    return STARTS[shape] if place == "start" else TURNS[place]


def perform(state: MessageState, index: int, worker: Worker) -> list[Outcome]:
    """What the worker's command can come to; while it waits for a lock, only that the wait runs out."""
    command = worker.command
    match command:
        case p.Take():
            return _take(state, worker)
        case p.Call():
            return _call(state, worker)
        case p.LookUp():
            return _look_up(state)
        case p.Record(_, answer, refused):
            return _record(state, worker, answer, refused=refused)
        case p.Finish():
            return _finish(state, worker)
        case p.Commit():
            return _commit(state, worker)
        case p.Intend() | p.Fail() | p.Park() | p.GiveBack():
            return _write(state, index, worker, command)
        case p.Run() | p.Resume() | p.Interrupt() | p.Settle():
            raise AssertionError(f"{command!r} is not for the database, the provider or a look-up")
    assert_never(command)


def _writer(state: MessageState, worker: Worker) -> Writer:
    return Writer(state.rules, worker.state.token, worker.state.fresh, worker.payload)


def _clock(state: MessageState) -> Clock:
    return Clock(state.id_is_old, state.dropped, state.key_age, state.locked)


def _committed(state: MessageState, after: MessageState, event: p.Event) -> list[Outcome]:
    """One transaction: it is committed; or the database is lost first; or it is committed and the reply is lost."""
    outcomes = [Outcome(None, after, event), Outcome(Fault.DATABASE_LOST, state, p.DatabaseLost())]
    if after != state:
        outcomes.append(Outcome(Fault.REPLY_LOST, after, p.DatabaseLost()))
    return outcomes


def _blocked(state: MessageState) -> list[Outcome]:
    return [Outcome(Fault.LOCK_WAIT, state, p.DatabaseLost())]


def _take(state: MessageState, worker: Worker) -> list[Outcome]:
    row, event = statements.take(state.rows, _writer(state, worker), _clock(state))
    # An effectful take commits at once, so its reply can be lost; a transactional one stays open until the finish.
    if row is not None and row.state == "pending":
        return _committed(state, state._replace(rows=state.rows._replace(inbox=row)), event)
    lost = Outcome(Fault.DATABASE_LOST, state, p.DatabaseLost())
    return [Outcome(None, state, event, row), lost]


def _finish(state: MessageState, worker: Worker) -> list[Outcome]:
    result = statements.finish(state.rows, _writer(state, worker), _clock(state))
    if result is None:
        return _blocked(state)
    row, event = result
    after = state if row is None else _audited(state, worker)
    emitted = (Emitted.EVENT,) if row is not None and state.rules.bug is Bug.PUBLISH_OUTSIDE else ()
    return [Outcome(None, after, event, row, emitted), Outcome(Fault.DATABASE_LOST, state, p.DatabaseLost())]


def _commit(state: MessageState, worker: Worker) -> list[Outcome]:
    row = worker.open
    if row is None:
        raise AssertionError(f"nothing is open: {worker}")
    back = state.with_copy(worker.copy, Where.GONE) if state.rules.bug is Bug.ACK_BEFORE_COMMIT else state
    first, second = back.writes
    writes = (first + 1, second) if worker.payload == 0 else (first, second + 1)
    rows = back.rows._replace(inbox=row)
    if state.rules.bug is Bug.ANSWER_ONLY_IN_FINISH and rows.intent is not None:
        rows = rows._replace(intent=rows.intent._replace(state="done"))
    done = back._replace(rows=rows, writes=writes)
    emitted = () if state.rules.bug is Bug.PUBLISH_OUTSIDE else (Emitted.EVENT,)
    return [
        Outcome(None, done, p.Committed(), None, emitted),
        Outcome(Fault.REPLY_LOST, done, p.Ambiguous(), None, emitted),
        Outcome(Fault.UNDONE_REPLY_LOST, back, p.Ambiguous()),
        Outcome(Fault.DATABASE_LOST, back, p.DatabaseLost()),
        Outcome(Fault.ERROR_SWALLOWED, back, p.Aborted()),
        Outcome(Fault.HANDLER_COMMITTED, done, p.ForeignCommit(), None, emitted),
        Outcome(Fault.HANDLER_ROLLED_BACK, back, p.ForeignCommit()),
    ]


def _write(
    state: MessageState, index: int, worker: Worker, command: p.Intend | p.Fail | p.Park | p.GiveBack
) -> list[Outcome]:
    """One transaction of ours, after whatever this worker had open is rolled back."""
    if worker.open is not None:
        state = state.with_worker(index, worker._replace(open=None))
    writer, clock = _writer(state, worker), _clock(state)
    match command:
        case p.Intend():
            result = statements.intend(state.rows, writer, clock, checked=command.checked)
        case p.Fail():
            result = statements.fail(state.rows, writer, clock, session_lost=command.session_lost)
        case p.Park():
            result = statements.park(state.rows, writer, clock, command)
        case p.GiveBack():
            result = statements.give_back(state.rows, writer, clock)
        case _:
            assert_never(command)
    if result is None:
        return _blocked(state)
    rows, event = result
    # What is rolled back was never this worker's, and a foreign commit is parked without a fence: neither can trespass.
    changed = rows.inbox != state.rows.inbox and not writer.rolled_back and not _is_unfenced(worker.command)
    after = (_audited(state, worker) if changed else state)._replace(rows=rows)
    # The bug: the worker hears that its intent is committed, and nothing is.
    if state.rules.bug is Bug.CALL_BEFORE_INTENT and isinstance(event, p.Intended):
        after = after._replace(rows=state.rows)
    # The provider's window is counted from the intent, not from the first call.
    if after.rows.intent is not None and state.rows.intent is None:
        after = after._replace(key_age=KeyAge.CALLABLE)
    return _committed(state, after, event)


def _is_unfenced(command: p.Command) -> bool:
    return isinstance(command, p.Park) and command.fence is p.Fence.FOREIGN_COMMIT


def _record(state: MessageState, worker: Worker, answer: str, *, refused: bool) -> list[Outcome]:
    bug = state.rules.bug
    fenced_off = bug is Bug.FENCED_RECORDING and statements.held_row(state.rows, _writer(state, worker)) is None
    if bug is Bug.ANSWER_ONLY_IN_FINISH or fenced_off:
        return [Outcome(None, state._replace(answer_given=True), p.Recorded(answer, refused))]
    rows, event = statements.record(state.rows, state.rules, answer, refused, generation=worker.generation)
    after = state._replace(rows=rows)
    # Where the reply is lost, no handler was given the answer: only the first outcome makes the promise.
    heard = after._replace(answer_given=state.answer_given or isinstance(event, p.Recorded))
    return [Outcome(None, heard, event), *_committed(state, after, event)[1:]]


def _audited(state: MessageState, worker: Worker) -> MessageState:
    """Called where a worker changes the row as its holder: another's token on the row breaks a promise."""
    row = state.rows.inbox
    trespassing = row is not None and row.token != _writer(state, worker).held
    return state._replace(trespassed=True) if trespassing else state


def _look_up(state: MessageState) -> list[Outcome]:
    failed = Outcome(Fault.LOOK_UP_FAILED, state, p.Failed("look-up"))
    if not state.rules.lookup or not state.charges:
        return [Outcome(None, state, p.NotFound()), failed]
    found = Outcome(None, state, p.Answered("c1"))
    return [found, failed, Outcome(Fault.FINDING_NOT_JSON, state, p.Unreadable("x"))]


def _call(state: MessageState, worker: Worker) -> list[Outcome]:
    key = f"key {worker.state.token}" if state.rules.bug is Bug.FRESH_KEY else f"key of {worker.generation}"
    record = dict(state.keys).get(key)
    if record == KeyRecord.IN_PROGRESS:
        return [Outcome(Fault.KEY_IN_USE, state, p.Later(1.0))]
    if record == KeyRecord.SAVED_500:
        return [Outcome(None, state, p.Replayed())]
    if record is not None:
        return [Outcome(None, state, p.Answered(record, refused=record == KeyRecord.REFUSED))]
    charged = state.charged(key)
    return [
        Outcome(None, charged, p.Answered(f"c{charged.charges}")),
        Outcome(Fault.CHARGED_ANSWER_LOST, charged, p.Failed("timeout")),
        Outcome(Fault.NOT_CONNECTED, state, p.Failed("connection")),
        Outcome(Fault.CHARGED_NOT_JSON, charged, p.Unreadable("x")),
        Outcome(Fault.CANCELLED, state, p.Cancelled("x")),
        Outcome(Fault.CARD_REFUSED, state.with_key(key, KeyRecord.REFUSED), p.Answered(KeyRecord.REFUSED, refused=True)),
        Outcome(Fault.SAVED_500, state.with_key(key, KeyRecord.SAVED_500), p.Failed("500")),
        Outcome(Fault.CHARGED_SAVED_500, charged.with_key(key, KeyRecord.SAVED_500), p.Failed("500")),
        Outcome(Fault.HANGS, state.with_key(key, KeyRecord.IN_PROGRESS), p.Failed("timeout")),
    ]
