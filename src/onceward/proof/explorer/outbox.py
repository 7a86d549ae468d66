"""The outbox, the relay's lanes and the sink: `dispatch.step` is the code on trial, unchanged.

The rows of both messages are in one outbox. What a lane holds, the others skip; a lane that dies lets go.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final, NamedTuple

from onceward import dispatch as d
from onceward.proof.explorer.rules import RELAY, RelayRules

KINDS: Final = ("out", "in0", "in1")  # the handler's event; the message itself, redriven, by payload
ERROR: Final = "x"


class OutRow(NamedTuple):
    """One outbox row; `position` names it, its place in the tuple is its order. `later`: its retry is not due yet."""

    position: int
    later: bool = False


class Lane(NamedTuple):
    """One lane of a relay: the protocol's state and its command. `holds`: the rows of its state are locked by it."""

    state: d.State = d.State()
    command: d.Command | None = None
    holds: bool = False


class Post(NamedTuple):
    """The outbox, the lanes, and whose event has been published."""

    rules: RelayRules = RELAY
    keyed: bool = True
    rows: tuple[OutRow, ...] = ()
    lanes: tuple[Lane, ...] = (Lane(),)
    sent: tuple[bool, bool] = (False, False)
    overtaken: bool = False  # an event was published before an earlier one of its key


class PostMove(NamedTuple):
    """One way on for the outbox. `arrivals`: (message, payload) of copies that are in the consumer's queue now."""

    words: tuple[str, ...]
    post: Post
    faults: int = 0
    arrivals: tuple[tuple[int, int], ...] = ()
    actor: int = -1
    lane: Lane | None = None


def message_of(position: int) -> int:
    return position // 4 % 2


def kind_of(position: int) -> str:
    return KINDS[position % 4]


def key_of(post: Post, position: int) -> str | None:
    return "key" if post.keyed and kind_of(position) == "out" else None


def added(post: Post, message: int, kinds: tuple[str, ...]) -> Post:
    """These rows were committed with something else."""
    for kind in kinds:
        taken = {row.position for row in post.rows} | {row.position for lane in post.lanes for row in lane.state.rows}
        position = message * 4 + KINDS.index(kind)
        while position in taken:
            position += 8
        post = post._replace(rows=(*post.rows, OutRow(position)))
    return post


def turned(post: Post) -> Post:
    """The same, with the two messages' names exchanged."""
    lanes = tuple(_turned_lane(lane) for lane in post.lanes)
    rows = tuple(row._replace(position=row.position ^ 4) for row in post.rows)
    return in_order(post._replace(rows=rows, lanes=lanes, sent=(post.sent[1], post.sent[0])))


def _turned_lane(lane: Lane) -> Lane:
    state = lane.state._replace(rows=tuple(_turned_row(row) for row in lane.state.rows))
    match lane.command:
        case d.Publish(rows):
            command: d.Command | None = d.Publish(tuple(_turned_row(row) for row in rows))
        case d.Mark(confirmed, failed):
            command = d.Mark(tuple(n ^ 4 for n in confirmed), tuple((_turned_row(row), error) for row, error in failed))
        case _:
            command = lane.command
    return lane._replace(state=state, command=command)


def _turned_row(row: d.Row) -> d.Row:
    return row._replace(position=row.position ^ 4)


def in_order(post: Post) -> Post:
    """Lanes have no names: of the same lanes in another order, one stands for all."""
    return post if len(post.lanes) < 2 else post._replace(lanes=tuple(sorted(post.lanes, key=repr)))


# ---- moves -----------------------------------------------------------------------------------------------------------


def relay(post: Post) -> Iterator[PostMove]:
    """Every way on for the outbox."""
    for place, row in enumerate(post.rows):
        if row.later:
            rows = (*post.rows[:place], row._replace(later=False), *post.rows[place + 1 :])
            yield PostMove(("retry due", str(message_of(row.position))), post._replace(rows=rows))
    for index, lane in enumerate(post.lanes):
        if lane.command is None:
            if takeable(post):
                yield _moved(("wake",), post, index, *_stepped(post, lane, d.Woken()))
            continue
        yield _moved(("relay crash",), post, index, Lane(), 1)
        if lane.holds:
            yield _moved(("relay loses its locks",), post, index, lane._replace(holds=False), 1)
        yield from _perform(post, index, lane)


def _moved(
    words: tuple[str, ...], post: Post, index: int, lane: Lane, faults: int = 0, arrivals: tuple[tuple[int, int], ...] = ()
) -> PostMove:
    after = post._replace(lanes=(*post.lanes[:index], lane, *post.lanes[index + 1 :]))
    return PostMove(words, in_order(after), faults, arrivals, index, lane)


def _stepped(post: Post, lane: Lane, event: d.Event, *, holds: bool = False) -> tuple[Lane]:
    state, command = post.rules.step(lane.state, event)
    if isinstance(command, d.Sleep):
        return (Lane(state._replace(failures=0)),)
    return (Lane(state, command, holds),)


def takeable(post: Post) -> tuple[d.Row, ...]:
    """The rows that a lane may lock now: heads that nobody holds and whose retry is due, and what is behind them."""
    locked = {row.position for lane in post.lanes if lane.holds for row in lane.state.rows}
    taken: list[d.Row] = []
    before: set[str] = set()
    mine: set[str] = set()
    for row in post.rows:
        key = key_of(post, row.position)
        free = row.position not in locked
        if key is not None and key in before and post.rules.heads_only:
            free = free and key in mine
        else:
            free = free and not row.later
        if free:
            taken.append(d.Row(row.position, key))
        before.update(() if key is None else (key,))
        mine.update((key,) if key is not None and free else ())
    return tuple(taken)


def _perform(post: Post, index: int, lane: Lane) -> Iterator[PostMove]:
    match lane.command:
        case d.Take():
            yield from _take(post, index, lane)
        case d.Publish(rows):
            yield from _publish(post, index, lane, rows)
        case d.Mark() as mark:
            yield from _mark(post, index, lane, mark)


def _take(post: Post, index: int, lane: Lane) -> Iterator[PostMove]:
    rows = takeable(post)
    after = post
    if post.rules.delete_before_publish:
        after = _without(post, tuple(row.position for row in rows))
    holds = bool(rows) and not post.rules.delete_before_publish
    words = ("relay takes", *(str(message_of(row.position)) + kind_of(row.position) for row in rows))
    yield _moved(words, after, index, *_stepped(post, lane, d.Taken(rows), holds=holds))
    yield _moved(("relay loses the database",), post, index, *_stepped(post, lane, d.DatabaseLost()), 1)


def _publish(post: Post, index: int, lane: Lane, rows: tuple[d.Row, ...]) -> Iterator[PostMove]:
    for tried in product(("stored", "refused", "stored, not confirmed"), repeat=len(rows)):
        results = _held(rows, tried)
        if results is not None:
            errors = tuple(None if result == "stored" else ERROR for result in results)
            words = ("relay publishes", *_named(rows, results))
            stored = [row for row, result in zip(rows, results, strict=True) if result.startswith("stored")]
            faults = sum(result in ("refused", "stored, not confirmed") for result in results)
            yield _stored(words, post, index, stored, *_stepped(post, lane, d.Published(errors), holds=lane.holds), faults)
    for count in range(len(rows) + 1):
        words = ("sink lost", *_named(rows[:count], ("stored",) * count))
        yield _stored(words, post, index, list(rows[:count]), *_stepped(post, lane, d.SinkLost()), 1)


def _held(rows: tuple[d.Row, ...], results: tuple[str, ...]) -> tuple[str, ...] | None:
    """Behind a row that has an error, a sink sends none of its key. None: these results cannot be."""
    held: set[str] = set()
    made: list[str] = []
    for row, result in zip(rows, results, strict=True):
        if row.key is not None and row.key in held:
            if result != "refused":
                return None
            made.append("held")
            continue
        made.append(result)
        if result != "stored" and row.key is not None:
            held.add(row.key)
    return tuple(made)


def _named(rows: tuple[d.Row, ...], results: tuple[str, ...]) -> list[str]:
    return [
        f"{message_of(row.position)}{kind_of(row.position)} {result}" for row, result in zip(rows, results, strict=True)
    ]


def _stored(words: tuple[str, ...], post: Post, index: int, rows: list[d.Row], lane: Lane, faults: int) -> PostMove:
    arrivals: list[tuple[int, int]] = []
    for row in rows:
        message, kind = message_of(row.position), kind_of(row.position)
        if kind == "out":
            post = _sent(post, row)
        else:
            arrivals.append((message, int(kind[-1])))
    return _moved(words, post, index, lane, faults, tuple(arrivals))


def _sent(post: Post, row: d.Row) -> Post:
    """The event is published. Overtaken: an earlier row of its key is there, and its event was never published."""
    overtaken = post.overtaken
    places = [place for place, there in enumerate(post.rows) if there.position == row.position]
    if row.key is not None and places:
        earlier = [other.position for other in post.rows[: places[0]] if key_of(post, other.position) == row.key]
        overtaken = overtaken or any(not post.sent[message_of(position)] for position in earlier)
    first, second = post.sent
    sent = (first or message_of(row.position) == 0, second or message_of(row.position) == 1)
    return post._replace(sent=sent, overtaken=overtaken)


def _mark(post: Post, index: int, lane: Lane, mark: d.Mark) -> Iterator[PostMove]:
    lost = _stepped(post, lane, d.DatabaseLost())
    if not lane.holds and not post.rules.delete_before_publish:
        yield _moved(("relay cannot mark",), post, index, *lost)
        return
    failed = {row.position for row, _ in mark.failed}
    after = _without(post, mark.confirmed)
    after = after._replace(rows=tuple(row._replace(later=row.later or row.position in failed) for row in after.rows))
    words = ("relay marks", str(len(mark.confirmed)), str(len(failed)))
    yield _moved(words, after, index, *_stepped(post, lane, d.Marked()))
    yield _moved(("relay loses the database",), post, index, *lost, 1)
    yield _moved(("relay marks, reply lost",), after, index, *lost, 1)


def _without(post: Post, positions: tuple[int, ...]) -> Post:
    return post._replace(rows=tuple(row for row in post.rows if row.position not in positions))
