"""`onceward.delivery.step`, explored exhaustively in small: two workers, one message, and two things that go wrong.

What may go wrong, anywhere: a crash, a lapsed lease, a redelivery, a lost settlement, a database that is gone before or
after its commit, an ambiguous COMMIT, a handler that raises, defers or swallows, a provider that hangs, refuses, or fails
before or after its effect. Beside that time passes (leases without a holder, the provider's key, the id's own window), and
a person redrives once. ONCEWARD_EXPLORED_FAULTS=3 is 1.7 million worlds, and half a minute.
"""

from __future__ import annotations

import os
import sys

import pytest
from tests.support.explorer import explore
from tests.support.toy_world import GONE, NEVER_REDRIVEN, Rules, World

from onceward import protocol as p
from onceward.delivery import step
from onceward.state import Shape, State, Step
from onceward.transport import ACK

FAULTS = int(os.environ.get("ONCEWARD_EXPLORED_FAULTS", "2"))


def broken(world: World) -> str:
    """Which promise this world breaks; '' when it keeps them all."""
    row = world.row
    settled = row is not None and row.state != "pending"
    promises = {  # "lost": no queue has it, and it is neither done nor parked
        "charged more than once": world.charges > 1,
        "written more than once": world.writes > 1,
        "lost": is_over(world) and not settled and not world.parked,
        "done and parked": row is not None and row.state == "done" and world.parked not in NEVER_REDRIVEN,
        "parked without a reason": row is not None and row.state == "parked" and not world.parked,
        "done without its writes": row is not None and row.state == "done" and world.writes == 0,
        "done, though its effect has no answer": _unanswered(world),
        "a worker that lost its lease changed the row": world.trespassed,
        "an answer that was recorded is gone": world.told and (world.intent is None or world.intent.state != "done"),
    }
    return ", ".join(promise for promise, is_broken in promises.items() if is_broken)


def _unanswered(world: World) -> bool:
    done = world.row is not None and world.row.state == "done"
    return done and world.intent is not None and world.intent.state != "done"


def is_over(world: World) -> bool:
    return all(where == GONE for where, _ in world.queue)


def is_quiet(world: World) -> bool:
    return is_over(world) and not any(world.workers)


def is_done(world: World) -> bool:
    return is_quiet(world) and world.row is not None and world.row.state == "done"


@pytest.mark.parametrize(
    "rules", [Rules(), Rules(lookup=False), Rules(shape="transactional")], ids=["look-up", "no look-up", "transactional"]
)
def test_no_way_through_the_protocol_breaks_a_promise(rules: Rules) -> None:
    explored = explore(World(faults=FAULTS), rules, broken, goal=is_quiet)
    sys.stdout.write(f"\n{rules.shape}{'' if rules.lookup else ' without look-up'}: {explored}\n")
    assert not explored.broken, str(explored)


@pytest.mark.parametrize("shape", ["effectful", "transactional"])
def test_from_every_world_with_a_redrive_left_the_message_can_still_be_done(shape: Shape) -> None:
    """Whatever happened to it: with a look-up and one redrive, no message is beyond help."""

    def helped(world: World) -> bool:
        beyond = world.parked in ("foreign commit", "two answers", "outside window")  # these wait for a person, for good
        return is_done(world) or beyond or world.redrives == 0 or _really_unknown(world)

    explored = explore(World(faults=1), Rules(shape=shape), broken, goal=helped)
    assert not explored.broken, str(explored)


def _really_unknown(world: World) -> bool:
    """The effect did not happen, and nobody can know that it never will: held, until a person says so."""
    return world.parked == "unknown" and world.charges == 0


# ---- planted bugs: each must be found --------------------------------------------------------------------------------


def ambiguous_is_acked(state: State, event: p.Event) -> Step:
    return step(state, p.Committed() if isinstance(event, p.Ambiguous) and state.at == "committing" else event)


def unknown_is_called_again(state: State, event: p.Event) -> Step:
    after, command = step(state, event)
    return (after._replace(at="calling"), p.Call(after.n)) if isinstance(command, p.LookUp) else (after, command)


def in_flight_is_acked(state: State, event: p.Event) -> Step:
    after, command = step(state, event)
    return after, p.Settle(ACK) if isinstance(event, p.InFlight) else command


def an_aborted_commit_is_acked(state: State, event: p.Event) -> Step:
    return step(state, p.Committed() if isinstance(event, p.Aborted) else event)


PLANTED = {
    "acknowledged before the commit": (Rules(ack_before_commit=True), "lost"),
    "neither state nor token is checked": (Rules(fence="nothing"), "written more than once"),
    "the token is not checked": (Rules(fence="state"), "a worker that lost its lease changed the row"),
    "a fresh key for each attempt": (Rules(key_stable=False), "charged more than once"),
    "0 rows inserted, so skip": (Rules(zero_rows_skip=True), "lost"),
    "a failed attempt leaves its row": (Rules(shape="transactional", failed_row_stays=True), "done without its writes"),
    "recording is fenced": (Rules(record_fenced=True), "an answer that was recorded is gone"),
    "an ambiguous commit is acknowledged": (Rules(step=ambiguous_is_acked), "lost"),
    "past the window it is called again": (Rules(step=unknown_is_called_again), "charged more than once"),
    "in flight is acknowledged": (Rules(step=in_flight_is_acked), "lost"),
    "an aborted commit is acknowledged": (Rules(step=an_aborted_commit_is_acked), "lost"),
}


@pytest.mark.parametrize(("rules", "promise"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_is_found(rules: Rules, promise: str) -> None:
    explored = explore(World(faults=FAULTS), rules, lambda world: promise * (promise in broken(world)), goal=is_quiet)
    sys.stdout.write(f"\n{explored}\n")
    assert explored.broken == promise, str(explored)
    assert explored.way


def test_an_event_that_cannot_follow_is_refused() -> None:
    def unexpected(state: State, _event: p.Event) -> Step:
        return step(state, p.Committed())

    with pytest.raises(AssertionError, match="cannot follow"):
        explore(World(), Rules(step=unexpected), broken, goal=is_quiet)
