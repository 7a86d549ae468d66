"""Where one delivery is, and the few ways in which it goes on: shared by all steps of its protocol. No I/O."""

from __future__ import annotations

from typing import Literal, NamedTuple

from onceward.protocol import (
    Command,
    Event,
    Fail,
    Interrupt,
    Park,
    Settle,
    Yield,
)
from onceward.transport import Settlement, release

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
    return state._replace(at="yielding", delay_seconds=delay_seconds, error=error), Yield()


def impossible(state: State, event: Event) -> ProtocolError:
    return ProtocolError(f"{event!r} cannot follow in {state!r}")
