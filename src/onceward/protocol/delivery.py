"""The protocol of one delivery, as a pure function: `step`. No I/O.

`step(state, event)` is the next state and a command. A command is one transaction, one call or one settlement; the driver
carries it out and answers with one event. What the handler asks for (an effect, the transaction, to return, to raise) is an
event too. The threaded consumer, `Consumer.deliver` and an exhaustive explorer drive this same function; states are
immutable, so they can be hashed, compared and forked.

    received ─ Take ─▶ taking ─ Run ─▶ handling ─ Intend ─▶ intending ─ Call ─▶ calling ─ Record ─▶ recording ─▶ handling
                                        │                       └─ LookUp ─▶ looking ─┘     (recorded before: ─▶ handling)
        transactional:                  ├─ Commit ─▶ committing ─ Settle
        effectful:                      ├─ Finish ─▶ finishing ─▶ writing ─ Commit ─▶ committing ─▶ finished ─ Settle
                                        └─ Fail ─▶ failing, Park ─▶ parking, GiveBack ─▶ giving back ─ Settle

An effect that, as a person decided, had not happened is looked up once more before it is called: from `intending`, LookUp
leads to `checking`, and from there to `recording` if it is found, else back to `intending`.

A body of `once.transaction()` that raised leads from `writing` to `broken`; without such a body, `finishing` goes straight
on to Commit.

Whatever ends the delivery while handler code is still on the stack passes `unwinding`: the rows are written first, then the
handler is interrupted, and only when it has left is the delivery settled.

Every decision about a delivery is made here, except what is read off a row inside its transaction: by the WHERE clauses in
`sql/`, and by `InboxTable` and `Intents`, which say what they found there. `after_failure` is asked inside the transaction
that counts a failure, because counting and parking must be one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple, assert_never

from onceward.protocol import words as p
from onceward.protocol.reasons import ParkReason
from onceward.protocol.words import Fence, Interruption, RaisedKind
from onceward.transport import ACK, LEAVE, Settlement, release

# A row that is about to be free again would otherwise be asked for in a busy loop.
IN_FLIGHT_SECONDS_MIN: Final = 0.1


class Limits(NamedTuple):
    """What bounds the tries of one message; the same for every delivery of a consumer."""

    attempts_max: int = 10  # failures, then parked
    deliveries_max: int = 50  # takes that ended in nothing (crashes), or sessions lost, then parked


class Place(Enum):
    """Where a delivery is: which event is awaited."""

    RECEIVED = "received"
    TAKING = "taking"
    HANDLING = "handling"
    INTENDING = "intending"
    CALLING = "calling"
    LOOKING = "looking"
    CHECKING = "checking"
    RECORDING = "recording"
    FINISHING = "finishing"
    WRITING = "writing"
    BROKEN = "broken"
    COMMITTING = "committing"
    FINISHED = "finished"
    FAILING = "failing"
    PARKING = "parking"
    GIVING_BACK = "giving back"
    UNWINDING = "unwinding"
    END = "end"

    # States are hashed by the million in an exploration, and Enum's own hash is a call into Python.
    __hash__ = object.__hash__


class State(NamedTuple):
    """Where one delivery is.

    `token` and `fresh` name the fence; `n` counts the effects asked for so far.
    """

    shape: p.Shape
    limits: Limits = Limits()
    at: Place = Place.RECEIVED
    deliveries: int = 0
    token: int = 0
    fresh: bool = True
    n: int = 0
    inside: bool = False  # handler code is on the stack
    interrupt: p.Interrupt | None = None  # raised in the handler while unwinding
    ending: Settlement | None = None  # settled once the handler has left
    delay_seconds: float = 0.0


Step = tuple[State, p.Command]


class ProtocolError(AssertionError):
    """An event that cannot follow in this state: a defect of the driver."""


def start(shape: p.Shape, limits: Limits = Limits()) -> State:  # noqa: B008 - an immutable default
    """The state before anything happened."""
    return State(shape, limits)


def step(state: State, event: p.Event) -> Step:
    """The next state and what to do, given what happened."""
    if isinstance(event, p.Ambiguous):
        # Neither ack nor fail nor park: each would be a decision on a row that we cannot see. Redelivery decides.
        return _leave(state, Interruption.LEASE_LOST, "the database did not confirm the commit")
    return _TABLE[state.at](state, event)


def after_failure(limits: Limits, failure: p.Fail, *, attempts: int, sessions_lost: int) -> p.Park | None:
    """The park that a counted failure ends in; None: the message is tried again."""
    if attempts < limits.attempts_max and sessions_lost < limits.deliveries_max:
        return None
    reason = ParkReason.SESSIONS_LOST if failure.session_lost else ParkReason.ATTEMPTS_RAN_OUT
    return p.Park(reason, failure.error)


def _at_received(state: State, event: p.Event) -> Step:
    if not isinstance(event, p.Received):
        raise _impossible(state, event)
    return state._replace(at=Place.TAKING, deliveries=event.deliveries), p.Take()


def _at_taking(state: State, event: p.Event) -> Step:
    match event:
        case p.Taken(token, fresh):
            return _taken(state._replace(token=token, fresh=fresh), event)
        case p.Duplicate():
            return _settle(state, ACK)
        case p.InFlight(seconds):
            return _settle(state, release(max(seconds, IN_FLIGHT_SECONDS_MIN)))
        case p.Conflict(detail):
            return _park(state, p.Park(ParkReason.CONFLICT, detail, Fence.BESIDE))
        case p.OutsideWindow(detail):
            return _park(state, p.Park(ParkReason.OUTSIDE_WINDOW, detail, Fence.ABSENT))
        case p.DatabaseLost():
            return _settle(state, LEAVE)
        case _:
            raise _impossible(state, event)


def _taken(state: State, taken: p.Taken) -> Step:
    """Run the handler, unless too many takes of this message ended in nothing, or it would leave effects behind."""
    # Poison is looked for after the take, never before: a redelivered message that is done is a duplicate, not poison. An
    # effectful row counts its takes; a transactional one was rolled back with its count, so the queue's count stands in.
    ended_in_nothing = taken.takes if state.shape == "effectful" else state.deliveries - taken.excused
    if ended_in_nothing > state.limits.deliveries_max:
        detail = f"delivered {ended_in_nothing} times without an outcome: it may crash its consumer"
        return _park(state, p.Park(ParkReason.POISON, detail))
    if state.shape == "transactional" and taken.intents:
        # Its handler was effectful when these were recorded: a transactional one would be done without asking for them.
        detail = (
            f"{taken.intents} effects are recorded, and its handler is transactional now: it would ask for none of them"
        )
        return _park(state, p.Park(ParkReason.EFFECTS_CHANGED, detail))
    return state._replace(at=Place.HANDLING, inside=True), p.Run()


def _at_handling(state: State, event: p.Event) -> Step:
    match event:
        case p.EffectAsked():
            return state._replace(at=Place.INTENDING, n=state.n + 1), p.Intend(state.n + 1)
        case p.FinishAsked():
            return state._replace(at=Place.FINISHING), p.Finish()
        case p.Returned() if state.shape == "transactional":
            return state._replace(at=Place.COMMITTING, inside=False), p.Commit()
        case p.Returned():
            return state._replace(at=Place.FINISHING, inside=False), p.Finish()
        case p.Raised():
            return _raised(state._replace(inside=False), event)
        case _:
            raise _impossible(state, event)


def _raised(state: State, raised: p.Raised) -> Step:
    detail = raised.detail
    match raised.kind:
        case RaisedKind.FAILED:
            return _fail(state, detail)
        case RaisedKind.SESSION_LOST:
            return _fail(state, detail, session_lost=True)
        case RaisedKind.DEFERRED:
            return _give_back(state, raised.delay_seconds, detail)
        case RaisedKind.CANCELLED:
            # Cut off, as by a crash: the handler has not failed, so nothing is counted and nothing is written.
            return _leave(state, Interruption.LATER, detail)
        case RaisedKind.REFUSED:
            return _park(state, p.Park(ParkReason.REFUSED, detail))
        case RaisedKind.REJECTED:
            return _park(state, p.Park(ParkReason.REJECTED, detail))
        case RaisedKind.UNKNOWN_TYPE:
            return _park(state, p.Park(ParkReason.UNKNOWN_TYPE, detail))
        case RaisedKind.FOREIGN_COMMIT:
            return _park(state, p.Park(ParkReason.FOREIGN_COMMIT, detail, Fence.FOREIGN_COMMIT))
        case _:
            assert_never(raised.kind)


def _at_intending(state: State, event: p.Event) -> Step:
    match event:
        case p.Intended():
            return state._replace(at=Place.CALLING), p.Call(state.n)
        case p.Recorded(answer, refused):
            return _hand_over(state, answer, refused=refused)
        case p.Reopened():
            return state._replace(at=Place.CHECKING), p.LookUp(state.n)
        case p.Expired():
            return state._replace(at=Place.LOOKING), p.LookUp(state.n)
        case p.Changed(detail):
            return _park_misuse(state, ParkReason.EFFECTS_CHANGED, detail)
        case p.FencedOff():
            return _leave(state, Interruption.LEASE_LOST, "before the effect was started")
        case p.DatabaseLost():
            return _leave(state, Interruption.LATER, "the database did not answer; the effect was not started")
        case _:
            raise _impossible(state, event)


def _at_calling(state: State, event: p.Event) -> Step:
    match event:
        case p.Later(delay_seconds):
            return _give_back(state, delay_seconds, "the provider is still busy with this key")
        case p.Replayed():
            return state._replace(at=Place.LOOKING), p.LookUp(state.n)
        case p.Mismatch(detail):
            return _park_unknown(state, detail)
        case _:
            return _at_provider(state, event)


def _at_looking(state: State, event: p.Event) -> Step:
    if isinstance(event, p.NotFound):
        return _park_unknown(state, "the provider's answer is not known, and a look-up did not find it")
    return _at_provider(state, event)


def _at_checking(state: State, event: p.Event) -> Step:
    # The person who decided that it did not happen may be wrong, and under a new key the provider could not tell.
    match event:
        # A refusal that is found says what the person said: it did not happen.
        case p.NotFound() | p.Answered(refused=True):
            # The look-up took its time: lease and window are asked for again, right before the call.
            return state._replace(at=Place.INTENDING), p.Intend(state.n, checked=True)
        case _:
            return _at_provider(state, event)


def _at_provider(state: State, event: p.Event) -> Step:
    """What a call and a look-up have in common."""
    match event:
        case p.Answered(answer, refused):
            return state._replace(at=Place.RECORDING), p.Record(state.n, answer, refused)
        case p.Unreadable(detail):
            # Parked at once, with what was answered: a retry would get the same, and a null in its place would be believed.
            # Its intent becomes unknown, so that a redrive, once the code is corrected, looks the effect up.
            return _park_misuse(state, ParkReason.ANSWER_IS_NOT_JSON, detail, unknown_n=state.n)
        case p.Cancelled(detail):
            return _leave(state, Interruption.CALL_FAILED, detail)
        case p.Failed(detail):
            return _fail(state, detail)
        case _:
            raise _impossible(state, event)


def _at_recording(state: State, event: p.Event) -> Step:
    match event:
        case p.Recorded(answer, refused):
            return _hand_over(state, answer, refused=refused)
        case p.TwoAnswers(detail):
            park = p.Park(ParkReason.TWO_ANSWERS, detail, Fence.HOLDER_OR_BESIDE)
            return _park(state, park, p.Interrupt(Interruption.TWO_ANSWERS, detail))
        case p.FencedOff():
            return _leave(state, Interruption.LEASE_LOST, "a person has begun the effect again under another key")
        case p.AnsweredAfterDiscard(detail):
            park = p.Park(ParkReason.ANSWERED_AFTER_DISCARD, detail, Fence.HOLDER_OR_BESIDE)
            return _park(state, park, p.Interrupt(Interruption.DISCARDED, detail))
        case p.DatabaseLost():
            return _leave(state, Interruption.LATER, "the answer could not be recorded; the retry asks again")
        case _:
            raise _impossible(state, event)


def _hand_over(state: State, answer: str, *, refused: bool) -> Step:
    """The recorded answer goes to the handler: returned, or raised when it is a refusal."""
    handling = state._replace(at=Place.HANDLING)
    return handling, p.Interrupt(Interruption.REFUSED, answer) if refused else p.Resume(answer)


def _at_finishing(state: State, event: p.Event) -> Step:
    match event:
        case p.Finishing(intents, intents_open) if intents > state.n or intents_open:
            # An effect that was recorded and is not asked for any more would be in the books of the provider alone.
            detail = f"{intents} effects are recorded ({intents_open} without an answer), the handler asked for {state.n}"
            return _park_misuse(state, ParkReason.EFFECTS_CHANGED, detail)
        case p.Finishing() if state.inside:
            return state._replace(at=Place.WRITING), p.Resume()
        case p.Finishing():
            return state._replace(at=Place.COMMITTING), p.Commit()
        case p.FencedOff():
            return _leave(state, Interruption.LEASE_LOST, "before the transaction was opened")
        case p.DatabaseLost():
            return _leave(state, Interruption.LATER, "the database did not answer")
        case _:
            raise _impossible(state, event)


def _at_writing(state: State, event: p.Event) -> Step:
    match event:
        case p.BlockEnded():
            return state._replace(at=Place.COMMITTING), p.Commit()
        case p.BlockRaised():
            return state._replace(at=Place.BROKEN), p.Resume()
        case p.EffectAsked() | p.FinishAsked():
            return _refuse(state, "no effect and no second transaction inside once.transaction()")
        case _:
            raise _impossible(state, event)


def _at_broken(state: State, event: p.Event) -> Step:
    """The transaction's body raised: the delivery fails, even if the handler goes on."""
    match event:
        case p.Raised():
            return _raised(state._replace(inside=False), event)
        case p.Returned():
            detail = "the body of once.transaction() raised, and the handler went on"
            return _fail(state._replace(inside=False), detail)
        case p.EffectAsked() | p.FinishAsked():
            return _refuse(state, "the body of once.transaction() raised: nothing more may be done")
        case _:
            raise _impossible(state, event)


def _at_committing(state: State, event: p.Event) -> Step:
    match event:
        case p.Committed() if state.inside:
            return state._replace(at=Place.FINISHED), p.Resume()
        case p.Committed():
            return _settle(state, ACK)
        case p.Aborted():
            return _fail(state, "the transaction had failed inside, though the handler went on: it was rolled back")
        case p.ForeignCommit():
            detail = "the handler ended the transaction that was opened for it; what it wrote may stand"
            return _park_misuse(state, ParkReason.FOREIGN_COMMIT, detail, fence=Fence.FOREIGN_COMMIT)
        case p.DatabaseLost():
            return _fail(state, "the handler's database session was lost before its commit was sent", session_lost=True)
        case _:
            raise _impossible(state, event)


def _at_finished(state: State, event: p.Event) -> Step:
    match event:
        case p.Returned() | p.Raised():
            return _settle(state, ACK)
        case p.EffectAsked() | p.FinishAsked():
            return _refuse(state, "this message is finished: no effect and no second transaction after that")
        case _:
            raise _impossible(state, event)


def _at_outcome(state: State, event: p.Event) -> Step:
    """What the queue is told of a failure, a park or a give-back: whether it is written."""
    match state.at, event:
        case (Place.FAILING, p.Counted(delay_seconds)):
            settlement = release(delay_seconds)
        case (Place.FAILING | Place.PARKING, p.Parked()):
            settlement = ACK
        case (Place.GIVING_BACK, p.GivenBack()):
            settlement = release(state.delay_seconds)
        case (_, p.FencedOff() | p.DatabaseLost()):
            # Nothing is written, so nothing may be acknowledged: another worker, or the redelivery, decides.
            settlement = LEAVE
        case _:
            raise _impossible(state, event)
    if state.interrupt is None:
        raise _impossible(state, event)
    return _end(state, settlement, state.interrupt)


def _at_unwinding(state: State, event: p.Event) -> Step:
    """The delivery is over, but its handler has not left yet: whatever it asks for is refused."""
    if state.ending is None or state.interrupt is None:
        raise _impossible(state, event)
    match event:
        case p.EffectAsked() | p.FinishAsked() | p.BlockRaised() | p.BlockEnded():
            return state, state.interrupt
        case p.Returned() | p.Raised():
            return _settle(state, state.ending)
        case _:
            raise _impossible(state, event)


def _at_end(state: State, event: p.Event) -> Step:
    raise _impossible(state, event)


def _settle(state: State, settlement: Settlement) -> Step:
    return state._replace(at=Place.END, inside=False), p.Settle(settlement)


def _end(state: State, settlement: Settlement, interrupt: p.Interrupt) -> Step:
    """Settle, but while handler code is on the stack, interrupt it and wait for it to leave."""
    if not state.inside:
        return _settle(state, settlement)
    return state._replace(at=Place.UNWINDING, interrupt=interrupt, ending=settlement), interrupt


def _leave(state: State, kind: Interruption, detail: str) -> Step:
    """The queue is told nothing, and nothing more is written: the redelivery decides."""
    return _end(state, LEAVE, p.Interrupt(kind, detail))


def _fail(state: State, detail: str, *, session_lost: bool = False) -> Step:
    interrupt = p.Interrupt(Interruption.CALL_FAILED, detail)
    return state._replace(at=Place.FAILING, interrupt=interrupt), p.Fail(detail, session_lost)


def _park(state: State, park: p.Park, interrupt: p.Interrupt | None = None) -> Step:
    interrupt = interrupt or p.Interrupt(Interruption.UNKNOWN, park.reason.value)
    return state._replace(at=Place.PARKING, interrupt=interrupt), park


def _park_unknown(state: State, detail: str) -> Step:
    """Held until a person or a later look-up knows the outcome; never a blind retry."""
    return _park(state, p.Park(ParkReason.UNKNOWN, detail, unknown_n=state.n))


def _park_misuse(state: State, reason: ParkReason, detail: str, *, fence: Fence = Fence.HOLDER, unknown_n: int = 0) -> Step:
    """The handler's code is wrong: it hears so, and no retry could change it."""
    return _park(state, p.Park(reason, detail, fence, unknown_n), p.Interrupt(Interruption.USAGE, detail))


def _give_back(state: State, delay_seconds: float, detail: str) -> Step:
    """Give the message back without counting an attempt."""
    if state.shape == "transactional":
        # Its take was part of the transaction that is rolled back: there is no claim to give back.
        return _settle(state, release(delay_seconds))
    interrupt = p.Interrupt(Interruption.LATER, detail)
    return state._replace(at=Place.GIVING_BACK, delay_seconds=delay_seconds, interrupt=interrupt), p.GiveBack()


def _refuse(state: State, detail: str) -> Step:
    """The handler may not ask for that now; the delivery goes on as it was."""
    return state, p.Interrupt(Interruption.USAGE, detail)


def _impossible(state: State, event: p.Event) -> ProtocolError:
    return ProtocolError(f"{event!r} cannot follow in {state!r}")


_TABLE: Final[Mapping[Place, Callable[[State, p.Event], Step]]] = {
    Place.RECEIVED: _at_received,
    Place.TAKING: _at_taking,
    Place.HANDLING: _at_handling,
    Place.INTENDING: _at_intending,
    Place.CALLING: _at_calling,
    Place.LOOKING: _at_looking,
    Place.CHECKING: _at_checking,
    Place.RECORDING: _at_recording,
    Place.FINISHING: _at_finishing,
    Place.WRITING: _at_writing,
    Place.BROKEN: _at_broken,
    Place.COMMITTING: _at_committing,
    Place.FINISHED: _at_finished,
    Place.FAILING: _at_outcome,
    Place.PARKING: _at_outcome,
    Place.GIVING_BACK: _at_outcome,
    Place.UNWINDING: _at_unwinding,
    Place.END: _at_end,
}
