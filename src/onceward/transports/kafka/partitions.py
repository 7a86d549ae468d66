"""What this process knows of one assigned partition: which records it has read, given and finished. No I/O.

Kafka remembers one number for a partition, the offset from which its next owner reads on. Messages finish in any order. So
the number to be committed is the offset of the oldest record that is not finished: offsets that hold no message (control
records, compacted or aborted ones) are passed over by themselves.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

# Records of one line are given in the order of their offsets: those of one key, or else one record alone.
Line = str | int


class State(Enum):
    """Where a record is."""

    WAITING = "waiting"  # here, to be given when its turn comes
    IN_HAND = "in hand"  # given, and not settled
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Record:
    """One record of a partition, from when it was read."""

    offset: int
    line: Line
    message: Any  # the client's
    place: int  # how many were read before it under this assignment
    due: float  # by the monotonic clock: not given before
    givings: int = 0
    state: State = State.WAITING


class Handle(NamedTuple):
    """What a delivery carries: the record, the assignment under which it was given, and how often by then."""

    partition: Partition
    record: Record
    giving: int

    @property
    def is_current(self) -> bool:
        """Neither was the partition taken away since, nor the record given again."""
        return self.partition.is_ours and self.record.givings == self.giving

    @property
    def is_in_hand(self) -> bool:
        """It may be settled."""
        return self.is_current and self.record.state is State.IN_HAND


class Partition:
    """One partition under one assignment; a partition that comes back later is another one. One caller at a time."""

    def __init__(self, topic: str, number: int, ahead_max: int) -> None:
        """`ahead_max`: so many records are read beyond the oldest one that is not finished, and then no more."""
        self.topic = topic
        self.number = number
        self.is_ours = True
        # None: not known. A partition that was taken away while it was paused is still so, for the client, when it is back.
        self.is_paused: bool | None = None
        self.committed: int | None = None  # the last offset that the broker has confirmed
        self.next_offset: int | None = None  # one more than that of the last record read; None: none was read
        self._ahead_max = ahead_max
        self._read = 0
        # In the order of their offsets. The first of a plain dict is slow to find when many before it were deleted.
        self._unfinished: OrderedDict[int, Record] = OrderedDict()
        self._waiting: dict[Line, list[Record]] = {}
        self._in_hand: dict[Line, set[int]] = {}
        # When the first of each line is due. What is out of date in here is passed over when it comes up.
        self._turns: list[tuple[float, int, Line]] = []

    def read(self, offset: int, order_key: str | None, message: Any, due: float) -> None:
        """A record came from the broker; it waits for its turn."""
        if self.next_offset is None:
            # Nothing is finished yet: there is nothing that the broker does not know.
            self.committed = offset
        line: Line = offset if order_key is None else order_key
        record = Record(offset, line, message, self._read, due)
        self._read += 1
        self.next_offset = offset + 1
        self._unfinished[offset] = record
        self._wait(record)

    def give(self, now: float) -> Record | None:
        """The next record whose turn it is, in hand from now on; None: there is none now."""
        while self._turns and self._turns[0][0] <= now:
            due, offset, line = heapq.heappop(self._turns)
            waiting = self._waiting.get(line)
            if waiting is None or (waiting[0].due, waiting[0].offset) != (due, offset) or self._is_blocked(line, offset):
                continue
            return self._hand_out(line, waiting)
        return None

    def _is_blocked(self, line: Line, offset: int) -> bool:
        # A later one of its line is in hand: this one came back, and the later one is about to come back, too. Given now,
        # they would be handled in the wrong order. The line gets another turn when the later one is settled.
        return any(other > offset for other in self._in_hand.get(line, ()))

    def _hand_out(self, line: Line, waiting: list[Record]) -> Record:
        record = waiting.pop(0)
        if not waiting:
            del self._waiting[line]
        self._in_hand.setdefault(line, set()).add(record.offset)
        self._take_turn(line)
        record.state = State.IN_HAND
        record.givings += 1
        return record

    def finish(self, record: Record) -> None:
        """This record, which is in hand, is never given again."""
        self._put_down(record)
        record.state = State.FINISHED
        record.message = None
        del self._unfinished[record.offset]
        self._take_turn(record.line)

    def give_back(self, record: Record, due: float) -> None:
        """This record, which is in hand, is given again when it is due; what is behind it in its line waits for it."""
        self._put_down(record)
        record.state = State.WAITING
        record.due = due
        self._wait(record)
        self._take_turn(record.line)

    def _put_down(self, record: Record) -> None:
        in_hand = self._in_hand[record.line]
        in_hand.discard(record.offset)
        if not in_hand:
            del self._in_hand[record.line]

    def _wait(self, record: Record) -> None:
        waiting = self._waiting.setdefault(record.line, [])
        insort(waiting, record, key=lambda other: other.offset)
        if waiting[0] is record:
            self._take_turn(record.line)

    def _take_turn(self, line: Line) -> None:
        if line in self._waiting:
            first = self._waiting[line][0]
            heapq.heappush(self._turns, (first.due, first.offset, line))

    @property
    def next_due(self) -> float | None:
        """When there may be something to give; None: not before more is read or settled."""
        return self._turns[0][0] if self._turns else None

    @property
    def committable(self) -> int | None:
        """Everything before this offset is finished; None: nothing was read."""
        return next(iter(self._unfinished), self.next_offset)

    @property
    def needs_commit(self) -> bool:
        """More is finished than the broker has confirmed."""
        return self.committable != self.committed

    @property
    def is_full(self) -> bool:
        """Nothing more is to be read now: too far behind is a record that is not finished."""
        oldest = next(iter(self._unfinished.values()), None)
        return oldest is not None and self._read - oldest.place > self._ahead_max

    def in_hand(self) -> Iterable[Record]:
        """The records that were given and not settled."""
        return [record for record in self._unfinished.values() if record.state is State.IN_HAND]
