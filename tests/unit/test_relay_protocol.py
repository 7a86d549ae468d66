"""The relay's protocol: only confirmed rows are deleted, keys keep their order, and one bad row holds up no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceward.protocol import relay as d
from onceward.protocol.relay import (
    CHUNK_BYTES_MAX,
    CHUNK_SECONDS,
    BatchCommitted,
    BatchLocked,
    CommitBatch,
    DatabaseLost,
    Event,
    LockBatch,
    OutboxRow,
    Patience,
    Place,
    Publish,
    Published,
    SinkLost,
    Sleep,
    State,
    Stopped,
    Woken,
    step,
)

ROWS = (OutboxRow(1, "a"), OutboxRow(2, None), OutboxRow(3, "a"))
POISON = 5


def _publishing(**changes: object) -> State:
    return State(at=Place.PUBLISHING, rows=ROWS, chunk=3, reach=4)._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "event", "after", "command"),
    [
        (State(), Woken(), Place.LOCKING, LockBatch()),
        (State(at=Place.LOCKING), BatchLocked(()), Place.IDLE, Sleep(0)),
        (State(at=Place.LOCKING), BatchLocked(ROWS), Place.PUBLISHING, Publish(ROWS[:1])),
        (State(at=Place.LOCKING, reach=4), BatchLocked(ROWS), Place.PUBLISHING, Publish(ROWS)),
        (_publishing(), Published((None, None, None)), Place.COMMITTING, CommitBatch((1, 2, 3), ())),
        (_publishing(), Published(("no", None, None)), Place.COMMITTING, CommitBatch((2,), ((ROWS[0], "no"),))),
        (_publishing(), Published((None, "no", None)), Place.COMMITTING, CommitBatch((1, 3), ((ROWS[1], "no"),))),
        (_publishing(chunk=1), Published((None,)), Place.PUBLISHING, Publish(ROWS[1:])),
        (_publishing(chunk=1), Published(("no",)), Place.PUBLISHING, Publish(ROWS[1:2])),
        (_publishing(chunk=1), Published((None,), late=True), Place.COMMITTING, CommitBatch((1,), ())),
        (_publishing(chunk=1, confirmed=(9,)), Stopped(), Place.COMMITTING, CommitBatch((9,), ())),
        (_publishing(confirmed=(9,)), SinkLost("cut"), Place.COMMITTING, CommitBatch((9,), ())),
        (State(at=Place.COMMITTING, rows=ROWS), BatchCommitted(), Place.LOCKING, LockBatch()),
    ],
)
def test_the_table(state: State, event: Event, after: Place, command: d.Command) -> None:
    next_state, next_command = step(state, event)
    assert (next_state.at, next_command) == (after, command)


TRIED = OutboxRow(1, "a", attempts=2)


@pytest.mark.parametrize(
    ("patience", "row", "set_aside"),
    [
        (Patience(3), TRIED, True),
        (Patience(4), TRIED, False),
        (Patience(1), OutboxRow(1, None), True),
        (Patience(3), TRIED._replace(attempts=500), True),
        (Patience(3, hold_subjects=True), TRIED, False),
        (Patience(3, hold_subjects=True), TRIED._replace(key=None), True),
    ],
)
@pytest.mark.parametrize("lost", [True, False])
def test_a_row_that_failed_too_often_is_set_aside_unless_its_subject_must_hold(
    lost: bool, patience: Patience, row: OutboxRow, set_aside: bool
) -> None:
    """Whether the sink said no, or was lost at this row while others went through."""
    state = State(
        at=Place.PUBLISHING, patience=patience, rows=(row,), chunk=1, suspects=(1,) if lost else (), answering=lost
    )
    _, command = step(state, SinkLost("no") if lost else Published(("no",)))
    failed = ((row, "no"),)
    assert command == (CommitBatch((), (), failed) if set_aside else CommitBatch((), failed))


def test_a_sink_that_is_away_costs_no_row_an_attempt_however_impatient_the_relay_is() -> None:
    state = State(at=Place.PUBLISHING, patience=Patience(1), rows=ROWS[:1], chunk=1)
    assert step(state, SinkLost("cut"))[1] == CommitBatch((), ())


@pytest.mark.parametrize("event", [DatabaseLost(), BatchCommitted(), BatchLocked(())])
def test_a_lane_stays_as_patient_as_it_was(event: Event) -> None:
    at = Place.LOCKING if isinstance(event, BatchLocked) else Place.COMMITTING
    assert step(State(at=at, patience=Patience(7, hold_subjects=True)), event)[0].patience == Patience(
        7, hold_subjects=True
    )


@pytest.mark.parametrize("at", [Place.LOCKING, Place.PUBLISHING, Place.COMMITTING])
def test_a_lost_database_deletes_nothing_and_waits_longer_each_time(at: Place) -> None:
    state, command = step(State(at=at, rows=ROWS, failures=2), DatabaseLost())
    assert (state, command) == (State(failures=3), Sleep(3))
    assert step(state, Woken())[0].failures == 3


def test_what_was_confirmed_before_the_sink_was_lost_is_deleted() -> None:
    state, _ = step(_publishing(chunk=1), Published((None,)))
    _, command = step(state, SinkLost("cut"))
    assert command == CommitBatch((1,), ())


def test_a_sink_that_is_away_is_asked_after_longer_and_longer_pauses_and_nothing_is_postponed() -> None:
    lane = Driven(200, lost=lambda _rows: True)
    lane.go(60)
    assert lane.pauses == sorted(lane.pauses)
    assert lane.pauses[-1] > 10
    assert (lane.sent, lane.postponed) == ([], [])


@pytest.mark.parametrize("poison", [0, 1, 50, 99, 150])
def test_a_row_that_ends_the_sinks_connection_is_alone_postponed_and_all_others_are_sent(poison: int) -> None:
    lane = Driven(200, lost=lambda rows: poison in rows)
    lane.go(120)
    assert sorted(lane.sent) == [position for position in range(200) if position != poison]
    assert lane.postponed == [poison]


def test_several_rows_that_end_the_sinks_connection_are_each_found_as_others_go_through() -> None:
    """Each needs a witness of its own: something that goes through between its two tries."""
    poison = {0, 1, 7, 60, 61}
    lane = Driven(120, lost=lambda rows: bool(poison & set(rows)))
    lane.go(200)
    assert sorted(lane.sent) == [position for position in range(120) if position not in poison]
    for position in range(1000, 1020):
        lane.waiting.append(OutboxRow(position, None))
        lane.go(10)
    assert set(lane.postponed) == poison


def test_a_row_at_fault_holds_its_key_and_no_other() -> None:
    lane = Driven(30, lost=lambda rows: POISON in rows, key=lambda position: str(position % 5))
    lane.go(100)
    assert sorted(lane.sent) == [position for position in range(30) if position % 5 or position < POISON]
    assert lane.postponed == [POISON]


def test_a_batch_of_one_gets_past_a_row_at_fault() -> None:
    """The suspect is the first that can be taken, always; the others must come first all the same."""
    lane = Driven(10, lost=lambda rows: 0 in rows, limit=1)
    lane.go(60)
    assert (sorted(lane.sent), lane.postponed) == (list(range(1, 10)), [0])


def test_a_row_that_is_the_only_one_is_never_blamed() -> None:
    """Nothing tells it from a sink that is away, and nobody waits behind it."""
    lane = Driven(1, lost=lambda _rows: True)
    lane.go(50)
    assert (lane.sent, lane.postponed) == ([], [])
    assert lane.pauses[-1] > 10


def test_a_sink_that_comes_back_gets_everything_in_order_and_nothing_was_postponed() -> None:
    away = [True]
    lane = Driven(50, lost=lambda _rows: away[0], key=lambda _position: "k")
    lane.go(40)
    away[0] = False
    lane.go(40)
    assert (lane.sent, lane.postponed) == (list(range(50)), [])


def test_a_slow_sink_gets_fewer_rows_at_once_and_a_fast_one_more() -> None:
    slow = step(_publishing(), Published((None, None, None), seconds=CHUNK_SECONDS * 3))[0]
    assert slow.reach == 1
    fast = step(_publishing(reach=3), Published((None, None, None), seconds=CHUNK_SECONDS / 10))[0]
    assert fast.reach == 6


def test_a_chunk_is_bounded_in_bytes_and_a_row_that_is_larger_goes_alone() -> None:
    sizes = [CHUNK_BYTES_MAX // 2, CHUNK_BYTES_MAX // 2, 1, CHUNK_BYTES_MAX * 9, 1]
    rows = tuple(OutboxRow(position, None, payload_bytes=size) for position, size in enumerate(sizes))
    state, command = step(State(at=Place.LOCKING, reach=100), BatchLocked(rows))
    chunks = []
    while isinstance(command, Publish):
        chunks.append([row.position for row in command.rows])
        state, command = step(state, Published((None,) * len(command.rows)))
    assert chunks == [[0, 1], [2], [3], [4]]


def test_what_cannot_follow_is_refused() -> None:
    with pytest.raises(AssertionError, match="cannot follow"):
        step(State(), BatchCommitted())


rows = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.booleans()), min_size=1, max_size=8)


@given(rows, st.integers(1, 9))
def test_no_row_is_deleted_behind_a_failed_one_of_its_key(batch: list[tuple[str | None, bool]], reach: int) -> None:
    taken = tuple(OutboxRow(position, key) for position, (key, _) in enumerate(batch))
    errors = [None if sent else "no" for _, sent in batch]
    state, command = step(State(at=Place.LOCKING, reach=reach), BatchLocked(taken))
    while isinstance(command, Publish):
        state, command = step(state, Published(tuple(errors[row.position] for row in command.rows)))
    assert isinstance(command, CommitBatch)
    failed = {row.position for row, _ in command.postponed}
    for row in taken:
        before = [earlier.position for earlier in taken if earlier.key == row.key and earlier.position < row.position]
        held = row.key is not None and any(errors[position] for position in before)
        assert (row.position in command.confirmed) == (errors[row.position] is None and not held)
        assert (row.position in failed) == (errors[row.position] is not None and not held)


class Driven:
    """One lane with an outbox of rows 0, 1, ... and a sink that is lost when `lost` says so of a chunk's positions."""

    def __init__(
        self,
        many: int,
        *,
        lost: Callable[[list[int]], bool],
        key: Callable[[int], str | None] = lambda _position: None,
        limit: int = 100,
    ) -> None:
        self.waiting = [OutboxRow(position, key(position)) for position in range(many)]
        self.sent: list[int] = []
        self.postponed: list[int] = []
        self.pauses: list[int] = []
        self._lost = lost
        self._limit = limit
        self._state = State()
        self._event: Event = Woken()

    def go(self, publishes: int) -> None:
        """Until there is nothing to take, or so many chunks were published."""
        while publishes:
            self._state, command = step(self._state, self._event)
            if command == Sleep(0):
                self._event = Woken()
                return
            publishes -= isinstance(command, Publish)
            self._event = self._perform(command)

    def _perform(self, command: d.Command) -> Event:
        match command:
            case LockBatch(beside):
                return BatchLocked(tuple(self._takeable(beside))[: self._limit])
            case Publish(chunk):
                positions = [row.position for row in chunk]
                if self._lost(positions):
                    return SinkLost("cut")
                return Published((None,) * len(chunk))
            case CommitBatch(confirmed, postponed):
                self.sent += confirmed
                self.postponed += [row.position for row, _ in postponed]
                self.waiting = [row for row in self.waiting if row.position not in confirmed]
                return BatchCommitted()
            case Sleep(failures):
                self.pauses.append(failures)
        return Woken()

    def _takeable(self, beside: tuple[int, ...]) -> Iterator[OutboxRow]:
        """The heads and what is behind them; a key whose head is postponed, or not to be taken, is held."""
        held: set[str | None] = set()
        for row in self.waiting:
            if row.position in beside or row.position in self.postponed:
                held |= {row.key} - {None}
            elif row.key not in held:
                yield row
