"""The production `step` functions, explored exhaustively in small; `onceward explore` does the same at a larger bound.

The explorer must find nothing in the protocol as it is, and every bug that is planted in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onceward.errors import UsageError
from onceward.protocol import words as p
from onceward.protocol.delivery import State, Step, step
from onceward.protocol.reasons import ParkReason
from onceward.transport import LEAVE
from onceward_proof.explorer import promises, report
from onceward_proof.explorer.cell import Cell
from onceward_proof.explorer.outbox import Lane, Post
from onceward_proof.explorer.passages import SMALL
from onceward_proof.explorer.planted import PLANTED, failed_call_goes_on
from onceward_proof.explorer.rules import Rules
from onceward_proof.explorer.search import MASK, STUCK, Bound, Goal, Passage, Space, search
from onceward_proof.explorer.story import tell

STORY_STEPS_MAX = 20
# These wait for a person, whatever is redriven.
BEYOND_HELP = (ParkReason.FOREIGN_COMMIT, ParkReason.TWO_ANSWERS, ParkReason.OUTSIDE_WINDOW)
SHAPES = {
    "look-up": Rules(),
    "no look-up": Rules(lookup=False),
    "transactional": Rules(shape="transactional"),
}


def passage(rules: Rules, *, faults: int = 1, lanes: int = 0) -> Passage:
    bound = Bound(messages=1, faults=faults, lanes=lanes)
    return Passage("one message", (Cell(rules=rules),), Post(lanes=(Lane(),) * lanes), bound)


def searched(where: Passage, goal: Goal | None = None) -> str:
    """What is wrong, with the way to it; '' when nothing is."""
    space = Space(where)
    found = search(space, goal=goal)
    assert found.exhausted or found.broken
    return "\n".join([found.broken, *tell(space, found.way)]) if found.broken else ""


@pytest.mark.parametrize("where", SMALL, ids=[where.name for where in SMALL])
def test_no_way_through_the_protocol_breaks_a_promise(where: Passage) -> None:
    assert searched(where) == ""


@pytest.mark.parametrize("lanes", [0, 1])
@pytest.mark.parametrize("rules", SHAPES.values(), ids=SHAPES.keys())
def test_from_every_world_all_can_come_to_rest(rules: Rules, lanes: int) -> None:
    assert searched(passage(rules, lanes=lanes), goal=Space.is_quiet) == ""


@pytest.mark.parametrize("shape", ["look-up", "transactional"])
def test_from_every_world_with_a_redrive_left_the_message_can_still_be_done(shape: str) -> None:
    """Whatever happened to it: with a look-up and one redrive, no message is beyond help."""

    def helped(space: Space, world: int) -> bool:
        cell = space.cells[world & MASK]
        redrives = space.redrives(world)
        parked = cell.books.parked[0]
        unknown = parked is ParkReason.UNKNOWN and not cell.charges
        return cell.writes[0] > 0 or parked in BEYOND_HELP or not redrives or unknown

    assert searched(passage(SHAPES[shape]), goal=helped) == ""


def test_a_protocol_that_can_never_end_is_stuck() -> None:
    def never_acked(state: State, event: p.Event) -> Step:
        after, command = step(state, event)
        return after, p.Settle(LEAVE) if isinstance(command, p.Settle) else command

    assert searched(passage(Rules(step=never_acked), faults=0), goal=Space.is_quiet).startswith(STUCK)


def test_the_finish_refuses_an_effect_without_an_answer_whatever_let_it_come_so_far() -> None:
    """Two lines keep it from being done: a handler whose call failed is unwound, and the finish counts. Here is one."""
    assert searched(passage(Rules(step=failed_call_goes_on), faults=2)) == ""


def test_an_event_that_cannot_follow_is_refused() -> None:
    def unexpected(state: State, _event: p.Event) -> Step:
        return step(state, p.Committed())

    with pytest.raises(AssertionError, match="cannot follow"):
        searched(passage(Rules(step=unexpected)))


# ---- planted bugs: each must be found --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    explored = report.find(name, PLANTED[name])
    assert explored.found.broken == PLANTED[name].promise
    assert 0 < len(explored.story) <= STORY_STEPS_MAX
    assert len(explored.story) == len(explored.found.way) - 1


def test_every_promise_can_be_seen_to_break() -> None:
    """Each promise has a planted bug."""
    assert {bug.promise for bug in PLANTED.values()} == set(promises.PROMISES)


# ---- what is said of it ----------------------------------------------------------------------------------------------


def test_the_evidence_says_how_much_was_tried_and_within_which_bound(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "explored.json"
    assert report.explore(said.append, file=file, passages=SMALL[3:5]) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["states"] > 1000
    assert document["exhausted"] is True
    assert document["violations"] == []
    assert document["bound"] == {"workers": 2, "messages": 2, "faults": 1, "redrives": 1, "lanes": 2}
    assert "exhaustive within these bounds; no violation" in said[-2]


def test_a_search_that_was_stopped_early_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "explored.json"
    assert report.explore(said.append, states_max=500, file=file, passages=SMALL) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["exhausted"] is False
    assert "not exhaustive" in said[-2]


def test_a_violation_is_told_as_a_story_and_exits_1(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "explored.json"
    broken = PLANTED["skip-on-zero-rows"].passage("0 rows, so skip")
    assert report.explore(said.append, file=file, passages=[broken]) == 1
    violation = json.loads(file.read_text(encoding="utf-8"))["violations"][0]
    assert violation["invariant"] == promises.LOST
    assert violation["story"][0] == "worker 1 receives A"
    assert violation["story"][-1] == "worker 2 acknowledges A"
    assert "    1. worker 1 receives A" in said


def test_an_unknown_planted_bug_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="fresh-key"):
        report.explore_planted("no-such-bug", print)


def test_all_planted_bugs_can_be_listed() -> None:
    said: list[str] = []
    assert report.explore_planted("list", said.append) == 0
    assert [line.split()[0] for line in said] == list(PLANTED)
