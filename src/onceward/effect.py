"""The steps of one effect: intend, call, look up, record. Part of the delivery protocol. No I/O."""

from __future__ import annotations

from onceward.protocol import (
    Answered,
    Call,
    Cancelled,
    Changed,
    DatabaseLost,
    Event,
    Expired,
    Failed,
    Intended,
    Interrupt,
    Later,
    LookUp,
    Lost,
    Mismatch,
    NotFound,
    Park,
    Record,
    Recorded,
    Replayed,
    Resume,
    TwoAnswers,
    Unreadable,
)
from onceward.state import State, Step, end, fail, give_back, impossible, park
from onceward.transport import LEAVE


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
        case Lost():
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
