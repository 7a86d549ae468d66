"""The protocol of one delivery, as a pure function: `step(state, event) -> (state, command)`. No I/O.

A command is one transaction, one call or one settlement; whoever drives the protocol carries it out and answers with one
event. What the handler asks for (an effect, the transaction, to return, to raise) is an event too. The threaded consumer,
`Consumer.deliver`, and an exhaustive explorer drive this same function; states are tuples, so they can be hashed, compared
and forked.

    received ─ Take ─▶ taking ─ Run ─▶ handling ─ Intend ─▶ intending ─ Call ─▶ calling ─ Record ─▶ recording ─▶ handling
                                        │                       └─ LookUp ─▶ looking ─┘
                                        ├─ Finish ─▶ finishing ─▶ writing ─ Commit ─▶ committing ─▶ finished ─ Settle
                                        └─ Fail ─▶ failing, Park ─▶ parking, GiveBack ─▶ giving back ─ Settle

Whatever ends the delivery while handler code is still on the stack passes `unwinding`: the rows are written first, then the
handler is interrupted, and only when it has left is the delivery settled.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from onceward.protocol.words import (
    Aborted,
    Ambiguous,
    Answered,
    BlockEnded,
    BlockRaised,
    Call,
    Cancelled,
    Changed,
    Command,
    Commit,
    Committed,
    Conflict,
    Counted,
    DatabaseLost,
    Duplicate,
    EffectAsked,
    Event,
    Expired,
    Fail,
    Failed,
    FencedOff,
    Finish,
    FinishAsked,
    Finishing,
    ForeignCommit,
    GiveBack,
    GivenBack,
    InFlight,
    Intend,
    Intended,
    Interrupt,
    Later,
    LookUp,
    Mismatch,
    NotFound,
    OutsideWindow,
    Park,
    Parked,
    Raised,
    Received,
    Record,
    Recorded,
    Replayed,
    Resume,
    Returned,
    Run,
    Settle,
    Take,
    Taken,
    TwoAnswers,
    Unreadable,
)
from onceward.transport import ACK, LEAVE, Settlement, release

Shape = Literal["transactional", "effectful"]


class Limits(NamedTuple):
    """What bounds the tries of one message; the same for every delivery of a consumer."""

    attempts_max: int = 10  # failures, then parked
    deliveries_max: int = 50  # takes that ended in nothing (crashes), or sessions lost, then parked


class State(NamedTuple):
    """Where one delivery is. `token` and `fresh` name the fence; `n` counts the effects asked for so far."""

    shape: Shape
    limits: Limits = Limits()
    at: str = "received"
    deliveries: int = 0
    token: int = 0
    fresh: bool = True
    n: int = 0
    inside: bool = False  # handler code is on the stack
    error: Interrupt | None = None  # what the handler is interrupted with while unwinding
    ending: Settlement | None = None  # what is settled once the handler has left
    delay_seconds: float = 0.0


Step = tuple[State, Command]


class ProtocolError(AssertionError):
    """An event that cannot follow in this state: a defect of the driver."""


def settle(state: State, settlement: Settlement) -> Step:
    return state._replace(at="end", inside=False), Settle(settlement)


def end(state: State, settlement: Settlement, error: Interrupt) -> Step:
    """Settle; when handler code is on the stack, interrupt it first and wait until it has left."""
    if not state.inside:
        return settle(state, settlement)
    return state._replace(at="unwinding", error=error, ending=settlement), error


def park(state: State, park: Park, error: Interrupt | None = None) -> Step:
    return state._replace(at="parking", error=error or Interrupt("unknown", park.reason)), park


def fail(state: State, detail: str, *, session_lost: bool = False) -> Step:
    return state._replace(at="failing", error=Interrupt("call failed", detail)), Fail(detail, session_lost)


def give_back(state: State, delay_seconds: float, detail: str) -> Step:
    """Give the message back without counting an attempt."""
    if state.shape == "transactional":
        return end(state, release(delay_seconds), Interrupt("lease lost", detail))
    error = Interrupt("later", detail)
    return state._replace(at="giving back", delay_seconds=delay_seconds, error=error), GiveBack()


def impossible(state: State, event: Event) -> ProtocolError:
    return ProtocolError(f"{event!r} cannot follow in {state!r}")


# ---- the delivery

IN_FLIGHT_SECONDS_MIN: Final = 0.1


def start(shape: Shape, limits: Limits = Limits()) -> State:  # noqa: B008 - an immutable default
    """The state before anything happened."""
    return State(shape, limits)


def step(state: State, event: Event) -> Step:
    """The next state and what to do, given what happened."""
    if isinstance(event, Ambiguous):
        # Neither ack nor fail nor park: each would be a decision on a row that we cannot see. Redelivery decides.
        return end(state, LEAVE, Interrupt("lease lost", "the database did not confirm the commit"))
    return _TABLE[state.at](state, event)


# ---- taking ----------------------------------------------------------------------------------------------------------


def _at_received(state: State, event: Event) -> Step:
    if not isinstance(event, Received):
        raise impossible(state, event)
    return state._replace(at="taking", deliveries=event.deliveries), Take()


def _at_taking(state: State, event: Event) -> Step:
    match event:
        case Taken(token, fresh, takes, excused):
            return _taken(state._replace(token=token, fresh=fresh), takes, excused)
        case Duplicate():
            return settle(state, ACK)
        case InFlight(seconds):
            return settle(state, release(max(seconds, IN_FLIGHT_SECONDS_MIN)))
        case Conflict(detail):
            return park(state, Park("conflict", detail, "beside"))
        case OutsideWindow(detail):
            return park(state, Park("outside window", detail, "absent"))
        case DatabaseLost():
            return settle(state, LEAVE)
    raise impossible(state, event)


def _taken(state: State, takes: int, excused: int) -> Step:
    """Poison is looked for after the take, never before: a duplicate of a finished message is no poison."""
    seen = takes if state.shape == "effectful" else state.deliveries - excused
    if seen > state.limits.deliveries_max:
        return park(state, Park("poison", f"delivered {seen} times without an outcome: it may crash its consumer"))
    return state._replace(at="handling", inside=True), Run()


# ---- the handler -----------------------------------------------------------------------------------------------------


def _at_handling(state: State, event: Event) -> Step:
    match event:
        case EffectAsked():
            return state._replace(at="intending", n=state.n + 1), Intend(state.n + 1)
        case FinishAsked():
            return state._replace(at="finishing"), Finish(state.n)
        case Returned() if state.shape == "transactional":
            return state._replace(at="committing", inside=False), Commit()
        case Returned():
            return state._replace(at="finishing", inside=False), Finish(state.n)
        case Raised():
            return _raised(state._replace(inside=False), event)
    raise impossible(state, event)


def _raised(state: State, event: Raised) -> Step:
    match event.kind:
        case "refused":
            return park(state, Park("refused", event.detail))
        case "rejected":
            return park(state, Park("rejected", event.detail))
        case "deferred":
            return give_back(state, event.delay_seconds, event.detail)
        case "session lost":
            return fail(state, event.detail, session_lost=True)
        case "unknown type":
            return park(state, Park("unknown type", event.detail))
        case "cancelled":  # cut off, as by a crash: it has not failed, and nothing is said of it
            return end(state, LEAVE, Interrupt("later", event.detail))
        case "foreign commit":
            return park(state, Park("foreign commit", event.detail, "foreign commit"))
        case _:
            return fail(state, event.detail)


# ---- one effect: intend, call, look up, record
def at_intending(state: State, event: Event) -> Step:
    match event:
        case Intended():
            return state._replace(at="calling"), Call(state.n)
        case Recorded(answer, refused):
            return _answer(state, answer, refused)
        case Expired():
            return state._replace(at="looking"), LookUp(state.n)
        case Changed(detail):
            return park(state, Park("effects changed", detail), Interrupt("usage", detail))
        case FencedOff():
            return end(state, LEAVE, Interrupt("lease lost", "before the effect was started"))
        case DatabaseLost():
            return end(state, LEAVE, Interrupt("later", "the database did not answer; the effect was not started"))
    raise impossible(state, event)


def at_calling(state: State, event: Event) -> Step:
    match event:
        case Later(delay_seconds):
            return give_back(state, delay_seconds, "the provider is still busy with this key")
        case Replayed():
            return state._replace(at="looking"), LookUp(state.n)
        case Mismatch(detail):
            return park(state, _unknown(state, detail))
    return _at_provider(state, event)


def at_looking(state: State, event: Event) -> Step:
    if isinstance(event, NotFound):
        return park(state, _unknown(state, "the provider's answer is not known, and a look-up did not find it"))
    return _at_provider(state, event)


def _at_provider(state: State, event: Event) -> Step:
    """What a call and a look-up have in common.

    An answer that cannot be kept is parked at once, with what was answered: a retry would get the same, and a null in its
    place would be believed. Its intent becomes unknown, so that a redrive, once the code is mended, looks the effect up.
    """
    match event:
        case Answered(answer, refused):
            return state._replace(at="recording"), Record(state.n, answer, refused)
        case Unreadable(detail):
            return park(state, Park("answer is not JSON", detail, unknown_n=state.n), Interrupt("usage", detail))
        case Cancelled(detail):
            return end(state, LEAVE, Interrupt("call failed", detail))
        case Failed(detail):
            return fail(state, detail)
    raise impossible(state, event)


def _unknown(state: State, detail: str) -> Park:
    """Held for a person, or for a look-up later; never a blind retry."""
    return Park("unknown", detail, unknown_n=state.n)


def at_recording(state: State, event: Event) -> Step:
    match event:
        case Recorded(answer, refused):
            return _answer(state, answer, refused)
        case TwoAnswers(detail):
            return park(state, Park("two answers", detail, "holder or beside"), Interrupt("two answers", detail))
        case DatabaseLost():
            return end(state, LEAVE, Interrupt("later", "the answer could not be recorded; the retry asks again"))
    raise impossible(state, event)


def _answer(state: State, answer: str, refused: bool) -> Step:
    if refused:
        return state._replace(at="handling"), Interrupt("refused", answer)
    return state._replace(at="handling"), Resume(answer)


# ---- the finish ------------------------------------------------------------------------------------------------------


def _at_finishing(state: State, event: Event) -> Step:
    match event:
        case Finishing(intents, intents_open) if intents > state.n or intents_open:
            detail = f"{intents} effects are recorded ({intents_open} without an answer), the handler asked for {state.n}"
            return park(state, Park("effects changed", detail), Interrupt("usage", detail))
        case Finishing() if state.inside:
            return state._replace(at="writing"), Resume()
        case Finishing():
            return state._replace(at="committing"), Commit()
        case FencedOff():
            return end(state, LEAVE, Interrupt("lease lost", "before the transaction was opened"))
        case DatabaseLost():
            return end(state, LEAVE, Interrupt("later", "the database did not answer"))
    raise impossible(state, event)


def _at_writing(state: State, event: Event) -> Step:
    match event:
        case BlockEnded():
            return state._replace(at="committing"), Commit()
        case BlockRaised():
            return state._replace(at="broken"), Resume()
        case EffectAsked() | FinishAsked():
            return state, Interrupt("usage", "no effect and no second transaction inside once.transaction()")
    raise impossible(state, event)


def _at_broken(state: State, event: Event) -> Step:
    """The transaction's body raised, and was rolled back: the delivery has failed, even if the handler goes on."""
    match event:
        case Raised():
            return _raised(state._replace(inside=False), event)
        case Returned():
            detail = "the body of once.transaction() raised, and the handler went on"
            return fail(state._replace(inside=False), detail)
        case EffectAsked() | FinishAsked():
            return state, Interrupt("usage", "the body of once.transaction() raised: nothing more may be done")
    raise impossible(state, event)


def _at_committing(state: State, event: Event) -> Step:
    match event:
        case Committed() if state.inside:
            return state._replace(at="finished"), Resume()
        case Committed():
            return settle(state, ACK)
        case Aborted():
            return fail(state, "the transaction had failed inside, though the handler went on: it was rolled back")
        case ForeignCommit():
            detail = "the handler ended the transaction that was opened for it; what it wrote may stand"
            return park(state, Park("foreign commit", detail, "foreign commit"), Interrupt("usage", detail))
        case DatabaseLost():
            return fail(state, "the handler's database session was lost before its commit was sent", session_lost=True)
    raise impossible(state, event)


def _at_finished(state: State, event: Event) -> Step:
    match event:
        case Returned() | Raised():
            return settle(state, ACK)
        case EffectAsked() | FinishAsked():
            return state, Interrupt("usage", "this message is finished: no effect and no second transaction after that")
    raise impossible(state, event)


# ---- ends ------------------------------------------------------------------------------------------------------------


def _at_failing(state: State, event: Event) -> Step:
    error = state.error or Interrupt("call failed")
    match event:
        case Counted(delay_seconds):
            return end(state, release(delay_seconds), error)
        case Parked():
            return end(state, ACK, error)
        case FencedOff() | DatabaseLost():
            return end(state, LEAVE, error)
    raise impossible(state, event)


def _at_parking(state: State, event: Event) -> Step:
    error = state.error or Interrupt("unknown")
    match event:
        case Parked():
            return end(state, ACK, error)
        case FencedOff() | DatabaseLost():
            return end(state, LEAVE, error)
    raise impossible(state, event)


def _at_giving_back(state: State, event: Event) -> Step:
    error = state.error or Interrupt("later")
    match event:
        case GivenBack():
            return end(state, release(state.delay_seconds), error)
        case FencedOff() | DatabaseLost():
            return end(state, LEAVE, error)
    raise impossible(state, event)


def _at_unwinding(state: State, event: Event) -> Step:
    if state.ending is None or state.error is None:
        raise impossible(state, event)
    match event:
        case EffectAsked() | FinishAsked():
            return state, state.error
        case BlockRaised() | BlockEnded():
            return state, state.error
        case Returned() | Raised():
            return settle(state, state.ending)
    raise impossible(state, event)


_TABLE: Final = {
    "received": _at_received,
    "taking": _at_taking,
    "handling": _at_handling,
    "intending": at_intending,
    "calling": at_calling,
    "looking": at_looking,
    "recording": at_recording,
    "finishing": _at_finishing,
    "writing": _at_writing,
    "broken": _at_broken,
    "committing": _at_committing,
    "finished": _at_finished,
    "failing": _at_failing,
    "parking": _at_parking,
    "giving back": _at_giving_back,
    "unwinding": _at_unwinding,
}
