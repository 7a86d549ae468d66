"""The production `step` functions, explored exhaustively in small; `onceward explore` does the same at a larger bound.

The explorer must find nothing in the protocol as it is, and every bug that is planted in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onceward.errors import UsageError
from onceward.protocol import words as p
from onceward.protocol.delivery import Place, State, Step, step
from onceward.protocol.reasons import ParkReason
from onceward.transport import LEAVE
from onceward_proof.explorer import report, story
from onceward_proof.explorer.facts import Worked
from onceward_proof.explorer.message_state import InboxRow, IntentRow, MessageState, Rows, Where, Worker
from onceward_proof.explorer.passages import (
    LOOK_UP,
    NO_LOOK_UP,
    RETIRED,
    RETIRED_TRANSACTIONAL,
    TRANSACTIONAL,
    Bound,
    Passage,
    passage,
)
from onceward_proof.explorer.planted_bugs import PLANTED, failed_call_goes_on
from onceward_proof.explorer.promises import Promise
from onceward_proof.explorer.rules import Rules
from onceward_proof.explorer.search import search
from onceward_proof.explorer.space import BUDGET_AT, StateSpace, message_moves, split
from onceward_proof.explorer.story import tell

Goal = Callable[[StateSpace, int], bool]

SMALL = (
    passage("effectful, with a look-up", LOOK_UP, LOOK_UP, faults=1),
    passage("effectful, without a look-up", NO_LOOK_UP, NO_LOOK_UP, faults=1),
    passage("transactional", TRANSACTIONAL, TRANSACTIONAL, faults=1),
    passage("effectful and relay", LOOK_UP, faults=1, lanes=1),
    passage("transactional and relay", TRANSACTIONAL, TRANSACTIONAL, faults=0, lanes=2, redrives=0),
    passage("retired, effectful", RETIRED, faults=1),
    passage("retired, transactional", RETIRED_TRANSACTIONAL, faults=2),
)
STORY_STEPS_MAX = 20
# Only a person can decide about these.
BEYOND_HELP = (ParkReason.FOREIGN_COMMIT, ParkReason.TWO_ANSWERS, ParkReason.OUTSIDE_WINDOW)
SHAPES = {
    "look-up": Rules(),
    "no look-up": Rules(lookup=False),
    "transactional": Rules(shape="transactional"),
}


def one_message(rules: Rules, *, faults: int = 1, lanes: int = 0) -> Passage:
    return passage("one message", rules, faults=faults, lanes=lanes)


def violation(where: Passage) -> list[str]:
    """The promise that is broken, and the path to it; empty when none is."""
    result = report.explore_passage(where)
    assert result.search.exhausted or result.search.broken
    return [result.search.broken, *result.story] if result.search.broken else []


def dead_end(where: Passage, goal: Goal) -> list[str] | None:
    """The path to a world from which no world that meets the goal can be reached; None: there is no such world."""
    space = StateSpace(where)
    first = space.first()
    paths: dict[int, tuple[int, ...]] = {first: (first,)}
    before: dict[int, list[int]] = {}
    unread = [first]
    for world in unread:
        for after in space.successors(world):
            before.setdefault(after, []).append(world)
            if after not in paths:
                paths[after] = (*paths[world], after)
                unread.append(after)
    helped = [world for world in paths if goal(space, world)]
    hopeless = dict.fromkeys(set(paths) - set(helped))
    for world in helped:
        for earlier in before.get(world, ()):
            if earlier in hopeless:
                del hopeless[earlier]
                helped.append(earlier)
    return tell(space, next(paths[world] for world in paths if world in hopeless)) if hopeless else None


def at_rest(space: StateSpace, world: int) -> bool:
    """Nobody works, and nothing is left in the queue and the outbox."""
    *numbers, outbox_number = split(world)
    messages = [space.messages.states[number] for number in numbers]
    outbox = space.outboxes.states[outbox_number]
    idle = not outbox.rows and all(lane.command is None for lane in outbox.lanes)
    gone = all(copy.where == Where.GONE for state in messages for copy in state.copies)
    return idle and gone and not any(state.workers for state in messages)


@pytest.mark.parametrize("where", SMALL, ids=[where.name for where in SMALL])
def test_no_way_through_the_protocol_breaks_a_promise(where: Passage) -> None:
    assert violation(where) == []


@pytest.mark.parametrize("lanes", [0, 1])
@pytest.mark.parametrize("rules", SHAPES.values(), ids=SHAPES.keys())
def test_from_every_world_all_can_come_to_rest(rules: Rules, lanes: int) -> None:
    assert dead_end(one_message(rules, lanes=lanes), at_rest) is None


@pytest.mark.parametrize("shape", ["look-up", "transactional"])
def test_from_every_world_with_a_redrive_left_the_message_can_still_be_done(shape: str) -> None:
    """Whatever happened to it: with a look-up and one redrive, no message is beyond help."""

    def helped(space: StateSpace, world: int) -> bool:
        state = space.messages.states[split(world)[0]]
        parked = state.rows.parked[0]
        if state.writes[0] > 0 or parked in BEYOND_HELP or not world >> BUDGET_AT & 3:  # no redrive is left
            return True
        return parked is ParkReason.UNKNOWN and not state.charges

    assert dead_end(one_message(SHAPES[shape]), helped) is None


def test_a_protocol_that_can_never_end_is_seen() -> None:
    def never_acked(state: State, event: p.Event) -> Step:
        after, command = step(state, event)
        return after, p.Settle(LEAVE) if isinstance(command, p.Settle) else command

    assert dead_end(one_message(Rules(step=never_acked), faults=0), at_rest) is not None


def test_the_finish_refuses_an_effect_without_an_answer_whatever_let_it_come_so_far() -> None:
    """Two lines keep it from being done: a handler whose call failed is unwound, and the finish counts. Here is one."""
    assert violation(one_message(Rules(step=failed_call_goes_on), faults=2)) == []


def test_an_event_that_cannot_follow_is_refused() -> None:
    def unexpected(state: State, _event: p.Event) -> Step:
        return step(state, p.Committed())

    with pytest.raises(AssertionError, match="cannot follow"):
        violation(one_message(Rules(step=unexpected)))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    result = report.find(name, PLANTED[name])
    assert result.search.broken == PLANTED[name].promise
    assert 0 < len(result.story) <= STORY_STEPS_MAX
    assert len(result.story) == len(result.search.path) - 1


def test_every_promise_can_be_seen_to_break() -> None:
    """Each promise has a planted bug."""
    assert {bug.promise for bug in PLANTED.values()} == set(Promise)


# A worker has the answer of an effect whose message was discarded meanwhile. A search comes to it only after many steps.
ANSWERED_LATE = MessageState(
    Rules(decisions=True),
    workers=(Worker(0, 0, State("effectful", at=Place.RECORDING, token=1, n=1), p.Record(1, "c1", False), "asked"),),
    rows=Rows(inbox=InboxRow("discarded", token=2), intent=IntentRow("discarded")),
)


def test_the_story_has_words_for_what_a_worker_can_meet_and_for_nothing_else() -> None:
    """A pair of command and event that has no words would end a story in a KeyError; one that never occurs is dead."""
    met: set[tuple[type[p.Command], type[p.Event]]] = set()
    one_fault = [one_message(rules) for rules in (*SHAPES.values(), Rules(other_payload=True))]
    two_failures = one_message(SHAPES["transactional"], faults=2)
    two_answers = one_message(PLANTED["fresh-key"].rules, faults=2)
    decided = one_message(Rules(decisions=True), faults=2)
    for where in (*one_fault, two_failures, two_answers, decided):
        space = StateSpace(where)
        search(space, only=Promise.OVERTAKEN, states_max=8_000)  # that it charges twice does not end this search
        states = [*space.messages.states, ANSWERED_LATE]
        facts = [move.fact for state in states for move in message_moves(state)]
        met |= {(type(fact.command), type(fact.event)) for fact in facts if isinstance(fact, Worked)}
    tried = {pair for pair in met if pair[1] in (p.FencedOff, p.DatabaseLost)}
    assert met - tried == set(story.DOES)
    assert {command for command, _ in tried} == set(story.TRIES)


def test_the_evidence_says_how_much_was_tried_and_within_which_bound(tmp_path: Path) -> None:
    lines: list[str] = []
    file = tmp_path / "explored.json"
    assert report.explore(lines.append, file=file, passages=SMALL[3:5]) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["states"] > 1000
    assert document["exhausted"] is True
    assert document["violations"] == []
    bounds = [passage["bound"] for passage in document["passages"]]
    assert bounds == [passage.bound._asdict() for passage in SMALL[3:5]]
    assert document["bound"] == {name: min(bound[name] for bound in bounds) for name in Bound._fields}
    assert "exhaustive within these bounds; no violation" in lines[-2]


def test_a_search_that_was_stopped_early_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    file = tmp_path / "explored.json"
    assert report.explore(lines.append, states_max=500, file=file, passages=SMALL) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["exhausted"] is False
    assert "not exhaustive" in lines[-2]


def test_a_violation_is_told_as_a_story_and_exits_1(tmp_path: Path) -> None:
    lines: list[str] = []
    file = tmp_path / "explored.json"
    broken = PLANTED["skip-on-zero-rows"].passage("0 rows, so skip")
    assert report.explore(lines.append, file=file, passages=[broken]) == 1
    [broken_promise] = json.loads(file.read_text(encoding="utf-8"))["violations"]
    assert broken_promise["invariant"] == Promise.LOST
    assert broken_promise["story"][0] == "worker 1 receives A"
    assert broken_promise["story"][-1] == "worker 2 acknowledges A"
    assert "    1. worker 1 receives A" in lines


def test_an_unknown_planted_bug_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="fresh-key"):
        report.explore_planted("no-such-bug", print)


def test_all_planted_bugs_can_be_listed() -> None:
    lines: list[str] = []
    assert report.explore_planted("list", lines.append) == 0
    assert [line.split()[0] for line in lines] == list(PLANTED)
