"""The relay's protocol: what is deleted is what the sink confirmed, and no later row of a key overtakes a failed one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceward.dispatch import (
    DatabaseLost,
    Event,
    Mark,
    Marked,
    Publish,
    Published,
    Row,
    SinkLost,
    Sleep,
    State,
    Take,
    Taken,
    Woken,
    step,
)

ROWS = (Row(1, "a"), Row(2, None), Row(3, "a"))


def _publishing() -> State:
    return State(at="publishing", rows=ROWS)


@pytest.mark.parametrize(
    ("state", "event", "after", "command"),
    [
        (State(), Woken(), "taking", Take()),
        (State(at="taking"), Taken(()), "idle", Sleep(0)),
        (State(at="taking"), Taken(ROWS), "publishing", Publish(ROWS)),
        (_publishing(), Published((None, None, None)), "marking", Mark((1, 2, 3), ())),
        (_publishing(), Published(("no", None, None)), "marking", Mark((2,), ((ROWS[0], "no"),))),
        (_publishing(), Published((None, "no", None)), "marking", Mark((1, 3), ((ROWS[1], "no"),))),
        (State(at="marking", rows=ROWS), Marked(), "taking", Take()),
    ],
)
def test_the_table(state: State, event: Event, after: str, command: object) -> None:
    next_state, given_command = step(state, event)
    assert (next_state.at, given_command) == (after, command)


@pytest.mark.parametrize("event", [SinkLost(), DatabaseLost()])
@pytest.mark.parametrize("at", ["taking", "publishing", "marking"])
def test_a_loss_marks_nothing_and_waits_longer_each_time(event: Event, at: str) -> None:
    state, command = step(State(at=at, rows=ROWS, failures=2), event)
    assert (state, command) == (State(failures=3), Sleep(3))
    assert step(state, Woken())[0].failures == 3


def test_a_batch_that_went_out_ends_the_row_of_failures() -> None:
    state, _ = step(State(at="marking", rows=ROWS, failures=2), Marked())
    assert state.failures == 0


def test_what_cannot_follow_is_refused() -> None:
    with pytest.raises(AssertionError, match="cannot follow"):
        step(State(), Marked())


rows = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.booleans()), min_size=1, max_size=8)


@given(rows)
def test_no_row_is_deleted_behind_a_failed_one_of_its_key(batch: list[tuple[str | None, bool]]) -> None:
    taken = tuple(Row(position, key) for position, (key, _) in enumerate(batch))
    errors = tuple(None if sent else "no" for _, sent in batch)
    _, command = step(State(at="publishing", rows=taken), Published(errors))
    assert isinstance(command, Mark)
    failed = {row.position for row, _ in command.failed}
    for row in taken:
        before = [earlier.position for earlier in taken if earlier.key == row.key and earlier.position < row.position]
        held = row.key is not None and any(errors[position] for position in before)
        assert (row.position in command.confirmed) == (errors[row.position] is None and not held)
        assert (row.position in failed) == (errors[row.position] is not None and not held)
