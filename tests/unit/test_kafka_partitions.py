"""What is known of one partition: any order of finishing, and an offset that never passes what is not finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onceward.transports.kafka.partitions import Partition, Record

KEYS = ("a", "b", None)


def partition(*keys: str | None, first: int = 0, ahead_max: int = 100) -> Partition:
    """With one record for each key, at the offsets from `first` on."""
    made = Partition("orders", 0, ahead_max)
    for offset, key in enumerate(keys, first):
        made.read(offset, key, "record", 0.0)
    return made


def give_all(given_by: Partition, now: float = 0.0) -> list[Record]:
    records: list[Record] = []
    while (record := given_by.give(now)) is not None:
        records.append(record)
    return records


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


def test_whether_the_client_has_paused_a_partition_is_not_known_when_it_is_assigned() -> None:
    """It keeps a pause over a revocation: taken for unpaused, the partition would never be read again."""
    assert partition().is_paused not in (True, False)


def test_nothing_is_committed_before_something_is_finished() -> None:
    read = partition(None, None, first=7)
    give_all(read)
    assert (read.committable, read.needs_commit) == (7, False)


def test_an_early_finish_waits_for_what_is_before_it() -> None:
    read = partition(None, None, None)
    first, second, third = give_all(read)
    read.finish(third)
    assert not read.needs_commit
    read.finish(first)
    assert read.committable == 1
    read.finish(second)
    assert read.committable == 3


def test_offsets_without_a_record_stall_nothing() -> None:
    read = partition(None)
    read.read(5, None, "after a gap", 0.0)
    for record in give_all(read):
        read.finish(record)
    assert read.committable == 6


def test_what_was_released_comes_when_it_is_due_and_its_key_waits_for_it() -> None:
    read = partition("a", "b", "a")
    first, other, second = give_all(read)
    read.give_back(first, 10.0)
    read.give_back(second, 0.0)
    read.finish(other)
    read.read(3, "a", "record", 0.0)
    read.read(4, "b", "record", 0.0)
    assert offsets(give_all(read)) == [4]
    assert offsets(give_all(read, now=10.0)) == [0, 2, 3]
    assert read.committable == 0


def test_what_came_back_is_not_given_while_a_later_one_of_its_key_is_in_hand() -> None:
    read = partition("a", "a")
    first, second = give_all(read)
    read.give_back(first, 0.0)
    assert give_all(read) == []
    read.give_back(second, 0.0)
    assert offsets(give_all(read)) == [0, 1]


def test_a_partition_is_full_when_it_is_read_far_beyond_what_is_not_finished() -> None:
    read = partition(*[None] * 4, ahead_max=3)
    assert read.is_full
    records = give_all(read)
    for record in records[1:]:
        read.finish(record)
    assert read.is_full, "finished ones behind it come again after a crash: they count"
    read.finish(records[0])
    assert not read.is_full


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.just("give"), st.just(0)),
        st.tuples(st.just("finish"), st.integers(0, 30)),
        st.tuples(st.just("release"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(STEPS)
def test_in_any_history_nothing_is_skipped_and_no_key_loses_its_order(steps: list[Step]) -> None:
    broken = history(Partition("orders", 0, 100), steps)
    assert broken == ""


def history(read: Partition, steps: list[Step]) -> str:
    """What went wrong; empty: nothing. A small model of the same: what was read, and what of it is finished."""
    keys: list[str | None] = []
    finished: set[int] = set()
    in_hand: list[Record] = []
    for what, choice in steps:
        match what:
            case "read":
                # Every other offset holds no record.
                read.read(2 * len(keys), KEYS[choice], "record", 0.0)
                keys.append(KEYS[choice])
            case "give" if (record := read.give(0.0)) is not None:
                in_hand.append(record)
                key, before = keys[record.offset // 2], range(record.offset // 2)
                known = finished | {other.offset // 2 for other in in_hand}
                if key is not None and any(keys[n] == key and n not in known for n in before):
                    return f"{record.offset} was given before an earlier one of its key"
            case "finish" if in_hand:
                record = in_hand.pop(choice % len(in_hand))
                read.finish(record)
                finished.add(record.offset // 2)
            case "release" if in_hand:
                read.give_back(in_hand.pop(choice % len(in_hand)), 0.0)
        lowest = next((n for n in range(len(keys)) if n not in finished), None)
        wanted = 2 * lowest if lowest is not None else 2 * len(keys) - 1
        if keys and read.committable != wanted:
            return f"{read.committable} would be committed, and {wanted} is right"
    # Whatever happened, all of it can still be given.
    while in_hand or (record := read.give(0.0)) is not None:
        done = in_hand.pop() if in_hand else record
        assert done is not None
        read.finish(done)
        finished.add(done.offset // 2)
    return "" if len(finished) == len(keys) else f"only {finished} of {len(keys)} were ever given"


class CommitsTheHighest(Partition):
    """Sabotage."""

    @property
    def committable(self) -> int | None:
        return self.next_offset


def test_a_partition_that_commits_the_highest_finished_offset_is_caught() -> None:
    steps = [("read", 0), ("read", 1), ("give", 0), ("give", 0), ("finish", 1)]
    assert "would be committed" in history(CommitsTheHighest("orders", 0, 100), steps)
