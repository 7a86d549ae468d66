"""The worlds of one passage, each as one integer.

A world is two messages, the outbox, and what may still go wrong. Each part is numbered, and its moves are worked out once,
by the production `step`. Worlds that differ only in names (of workers, lanes, messages) are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from onceward_proof.explorer.environment import happenings
from onceward_proof.explorer.facts import Emitted
from onceward_proof.explorer.message_state import MessageMove, MessageState, Worker
from onceward_proof.explorer.outbox import OutboxState, in_order, mirrored, relay_moves, with_rows
from onceward_proof.explorer.passages import Passage
from onceward_proof.explorer.promises import (
    MessageSummary,
    OutboxSummary,
    Promise,
    broken_together,
    message_summary,
    outbox_summary,
)
from onceward_proof.explorer.worker import work

# A world fits into 64 bits: first message, second message, outbox, faults left, and two bits for the redrives left.
MESSAGE_BITS: Final = 22
OUTBOX_BITS: Final = 14
MESSAGE_MASK: Final = (1 << MESSAGE_BITS) - 1
OUTBOX_MASK: Final = (1 << OUTBOX_BITS) - 1
OUTBOX_AT: Final = 2 * MESSAGE_BITS
BUDGET_AT: Final = OUTBOX_AT + OUTBOX_BITS
PARTS_MASK: Final = (1 << BUDGET_AT) - 1
NOBODY: Final = 0  # the number of a second message that does not exist


class NumberedMove(NamedTuple):
    """A move of one message, as the search needs it."""

    faults: int
    redrives: int
    workers: int  # how many more are busy after it
    after: int
    emitted: tuple[Emitted, ...]


class NumberedOutboxMove(NamedTuple):
    """A move of the outbox, as the search needs it."""

    faults: int
    after: int
    arrivals: tuple[tuple[int, int], ...]


class MessageStates:
    """The states of messages, numbered, with what is worked out of each. Grows as the space is explored."""

    def __init__(self, *, relayed: bool) -> None:
        self.relayed = relayed
        self.states: list[MessageState] = []
        self.busy: list[int] = []
        self.summaries: list[MessageSummary] = []
        self._numbers: dict[MessageState, int] = {}
        self._worker_numbers: dict[Worker, int] = {}
        self._moves: dict[tuple[int, bool], list[NumberedMove]] = {}
        self._arrivals: dict[tuple[int, int], int] = {}
        self.number(MessageState(copies=(), writes=(1, 0)))  # NOBODY: it breaks no promise, and never moves

    def number(self, state: MessageState) -> int:
        if len(state.workers) > 1:
            state = state._replace(workers=tuple(sorted(state.workers, key=self._worker_number)))
        number = self._numbers.setdefault(state, len(self.states))
        if number == len(self.states):
            _check_width(number, MESSAGE_BITS)
            self.states.append(state)
            self.busy.append(len(state.workers))
            self.summaries.append(message_summary(state))
        return number

    def _worker_number(self, worker: Worker) -> int:
        return self._worker_numbers.setdefault(worker, len(self._worker_numbers))

    def moves(self, number: int, *, faulty: bool) -> list[NumberedMove]:
        """With `faulty`, also those that cost a fault."""
        known = self._moves.get((number, faulty))
        if known is None:
            known = self._moves[number, faulty] = self._work_out(number, faulty=faulty)
        return known

    def _work_out(self, number: int, *, faulty: bool) -> list[NumberedMove]:
        with_faults = self._moves.get((number, True))
        if with_faults is not None:
            return [move for move in with_faults if not move.faults]
        # What costs a fault is left out before it is numbered: most of those states are never reached.
        moves = message_moves(self.states[number])
        return [self._numbered(number, move) for move in moves if faulty or not move.faults]

    def _numbered(self, number: int, move: MessageMove) -> NumberedMove:
        state, emitted = self.delivered(move)
        after = self.number(state)
        return NumberedMove(move.faults, move.redrives, self.busy[after] - self.busy[number], after, emitted)

    def delivered(self, move: MessageMove) -> tuple[MessageState, tuple[Emitted, ...]]:
        """The state after the move, and what enters the outbox."""
        if self.relayed:
            return move.after, move.emitted
        # There is no outbox: nobody looks for the event, and what is redriven is in the queue at once.
        state = move.after
        for emitted in move.emitted:
            if emitted is not Emitted.EVENT:
                state = state.with_arrival(emitted.payload)
        return state, ()

    def with_arrival(self, number: int, payload: int) -> int:
        known = self._arrivals.get((number, payload))
        if known is None:
            known = self._arrivals[number, payload] = self.number(self.states[number].with_arrival(payload))
        return known


class OutboxStates:
    """The states of the outbox, numbered, with what is worked out of each."""

    def __init__(self) -> None:
        self.states: list[OutboxState] = []
        self.summaries: list[OutboxSummary] = []
        self._numbers: dict[OutboxState, int] = {}
        self._moves: dict[int, list[NumberedOutboxMove]] = {}
        self._mirrored: dict[int, int] = {}
        self._with_rows: dict[tuple[int, int, tuple[Emitted, ...]], int] = {}

    def number(self, outbox: OutboxState) -> int:
        outbox = in_order(outbox)
        number = self._numbers.setdefault(outbox, len(self.states))
        if number == len(self.states):
            _check_width(number, OUTBOX_BITS)
            self.states.append(outbox)
            self.summaries.append(outbox_summary(outbox))
        return number

    def moves(self, number: int) -> list[NumberedOutboxMove]:
        known = self._moves.get(number)
        if known is None:
            moves = relay_moves(self.states[number])
            known = [NumberedOutboxMove(move.faults, self.number(move.after), move.arrivals) for move in moves]
            self._moves[number] = known
        return known

    def mirrored(self, number: int) -> int:
        known = self._mirrored.get(number)
        if known is None:
            known = self._mirrored[number] = self.number(mirrored(self.states[number]))
        return known

    def with_rows(self, number: int, message: int, emitted: tuple[Emitted, ...]) -> int:
        known = self._with_rows.get((number, message, emitted))
        if known is None:
            known = self.number(with_rows(self.states[number], message, emitted))
            self._with_rows[number, message, emitted] = known
        return known


class StateSpace:
    """The worlds of one passage: where they begin, what follows on each, and which promise each breaks."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.relayed = bool(passage.outbox.lanes)
        self.messages = MessageStates(relayed=self.relayed)
        self.outboxes = OutboxStates()
        self._broken_together: dict[tuple[int, int, int], Promise | None] = {}

    def first(self) -> int:
        numbers = [self.messages.number(state) for state in self.passage.messages]
        first, second = (*numbers, NOBODY)[:2]
        outbox = self.outboxes.number(self.passage.outbox)
        budget = self.passage.bound.faults << 2 | self.passage.bound.redrives
        return first | second << MESSAGE_BITS | outbox << OUTBOX_AT | budget << BUDGET_AT

    def canonical(self, first: int, second: int, outbox: int) -> int:
        """The one world that stands for this one and its mirror image, without what may still go wrong."""
        if first < second or second == NOBODY:
            return first | second << MESSAGE_BITS | outbox << OUTBOX_AT
        mirror = self.outboxes.mirrored(outbox)
        if first == second:
            return first | second << MESSAGE_BITS | min(outbox, mirror) << OUTBOX_AT
        return second | first << MESSAGE_BITS | mirror << OUTBOX_AT

    def successors(self, world: int) -> Iterator[int]:
        """Every world that is one move away and within the bound."""
        first, second = world & MESSAGE_MASK, world >> MESSAGE_BITS & MESSAGE_MASK
        outbox, budget = world >> OUTBOX_AT & OUTBOX_MASK, world >> BUDGET_AT
        faults, redrives = budget >> 2, budget & 3
        messages, canonical, with_rows, faulty = self.messages, self.canonical, self.outboxes.with_rows, faults > 0
        room = self.passage.bound.workers - messages.busy[first] - messages.busy[second]
        # Two loops that differ in one line each: here is where nearly all of the time goes.
        for cost, redriven, more, after, emitted in messages.moves(first, faulty=faulty):
            if cost <= faults and redriven <= redrives and more <= room:
                rows = with_rows(outbox, 0, emitted) if emitted else outbox
                yield canonical(after, second, rows) | (budget - (cost << 2) - redriven) << BUDGET_AT
        for cost, redriven, more, after, emitted in () if second == NOBODY else messages.moves(second, faulty=faulty):
            if cost <= faults and redriven <= redrives and more <= room:
                rows = with_rows(outbox, 1, emitted) if emitted else outbox
                yield canonical(first, after, rows) | (budget - (cost << 2) - redriven) << BUDGET_AT
        for cost, rows, arrivals in self.outboxes.moves(outbox):
            if cost <= faults:
                numbers = [first, second]
                for message, payload in arrivals:
                    numbers[message] = messages.with_arrival(numbers[message], payload)
                yield canonical(numbers[0], numbers[1], rows) | (budget - (cost << 2)) << BUDGET_AT

    def broken(self, world: int) -> Promise | None:
        """The first promise that this world breaks."""
        first, second, outbox = split(world)
        return (
            self.messages.summaries[first].broken
            or self.messages.summaries[second].broken
            or self.outboxes.summaries[outbox].broken
            or self._together(0, first, outbox)
            or self._together(1, second, outbox)
        )

    def _together(self, message: int, number: int, outbox: int) -> Promise | None:
        if number == NOBODY:
            return None
        key = (message, number, outbox)
        if key not in self._broken_together:
            summaries = self.messages.summaries[number], self.outboxes.summaries[outbox]
            self._broken_together[key] = broken_together(message, *summaries, relayed=self.relayed)
        return self._broken_together[key]


def split(world: int) -> tuple[int, int, int]:
    """The numbers of its messages and of its outbox."""
    return world & MESSAGE_MASK, world >> MESSAGE_BITS & MESSAGE_MASK, world >> OUTBOX_AT & OUTBOX_MASK


def _check_width(number: int, bits: int) -> None:
    if number >> bits:
        raise OverflowError("this bound is too wide: a world no longer fits into 64 bits")


def message_moves(state: MessageState) -> Iterator[MessageMove]:
    """Every step that one message can make."""
    yield from happenings(state)
    for index in range(len(state.workers)):
        yield from work(state, index)
