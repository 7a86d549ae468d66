"""The outbox, the relay's lanes and the sink: `dispatch.step` is the code on trial, unchanged.

The rows of both messages are in one outbox. What a lane holds, the others skip; a lane that dies lets go.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final, NamedTuple

from onceward.protocol import relay as d
from onceward_proof.explorer.rules import RELAY, RelayRules

KINDS: Final = ("out", "in0", "in1")  # the handler's event; the message itself, redriven, by payload
ERROR: Final = "x"
REACHES: Final = (1, 2, 4)
LATE: Final = (False, True)


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


def locked(lane: Lane) -> set[int]:
    """The positions of a lane's batch, whatever has become of them in it."""
    state = lane.state
    return {*state.confirmed, *(row.position for row in state.rows), *(row.position for row, _ in state.failed)}


def added(post: Post, message: int, kinds: tuple[str, ...]) -> Post:
    """These rows were committed with something else."""
    for kind in kinds:
        taken = {row.position for row in post.rows}
        taken |= {position for lane in post.lanes for position in (*locked(lane), *lane.state.suspects)}
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
    state = lane.state._replace(
        rows=_turned_rows(lane.state.rows),
        confirmed=_turned_positions(lane.state.confirmed),
        failed=_turned_failed(lane.state.failed),
        suspects=_turned_positions(lane.state.suspects),
    )
    match lane.command:
        case d.Take(beside):
            command: d.Command | None = d.Take(_turned_positions(beside))
        case d.Publish(rows):
            command = d.Publish(_turned_rows(rows))
        case d.SettleRows(confirmed, failed):
            command = d.SettleRows(_turned_positions(confirmed), _turned_failed(failed))
        case _:
            command = lane.command
    return lane._replace(state=state, command=command)


def _turned_rows(rows: tuple[d.OutboxRow, ...]) -> tuple[d.OutboxRow, ...]:
    return tuple(row._replace(position=row.position ^ 4) for row in rows)


def _turned_positions(positions: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(position ^ 4 for position in positions)


def _turned_failed(failed: tuple[tuple[d.OutboxRow, str], ...]) -> tuple[tuple[d.OutboxRow, str], ...]:
    return tuple((row._replace(position=row.position ^ 4), error) for row, error in failed)


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
            yield from _wake(post, index, lane)
            continue
        yield _moved(("relay crash",), post, index, Lane(), 1)
        if lane.holds:
            yield _moved(("relay loses its locks",), post, index, lane._replace(holds=False), 1)
        yield from _perform(post, index, lane)


def _wake(post: Post, index: int, lane: Lane) -> Iterator[PostMove]:
    """How fast the sink was decides how many rows the first chunk may have: any number."""
    for reach in REACHES[: len(takeable(post))]:
        state = lane.state._replace(reach=reach)
        yield _moved(("wake",), post, index, *_stepped(post, lane._replace(state=state), d.Woken()))


def _moved(
    words: tuple[str, ...], post: Post, index: int, lane: Lane, faults: int = 0, arrivals: tuple[tuple[int, int], ...] = ()
) -> PostMove:
    after = post._replace(lanes=(*post.lanes[:index], lane, *post.lanes[index + 1 :]))
    return PostMove(words, in_order(after), faults, arrivals, index, lane)


def _stepped(post: Post, lane: Lane, event: d.Event, *, holds: bool = False) -> tuple[Lane]:
    state, command = post.rules.step(lane.state, event)
    if isinstance(command, d.Sleep):
        return (Lane(state._replace(failures=0, reach=1)),)
    return (Lane(state, command, holds),)


def takeable(post: Post, beside: tuple[int, ...] = ()) -> tuple[d.OutboxRow, ...]:
    """The rows that a lane may lock now: heads that nobody holds, that are not among `beside` and whose retry is due, and
    what is behind them."""
    held = {position for lane in post.lanes if lane.holds for position in locked(lane)}
    taken: list[d.OutboxRow] = []
    before: set[str] = set()
    mine: set[str] = set()
    for row in post.rows:
        key = key_of(post, row.position)
        free = row.position not in held
        if key is not None and key in before and post.rules.heads_only:
            free = free and key in mine
        else:
            free = free and not row.later and row.position not in beside
        if free:
            taken.append(d.OutboxRow(row.position, key))
        before.update(() if key is None else (key,))
        mine.update((key,) if key is not None and free else ())
    return tuple(taken)


def _perform(post: Post, index: int, lane: Lane) -> Iterator[PostMove]:
    match lane.command:
        case d.Take(beside):
            yield from _take(post, index, lane, beside)
        case d.Publish(rows):
            yield from _publish(post, index, lane, rows)
        case d.SettleRows() as mark:
            yield from _mark(post, index, lane, mark)


def _take(post: Post, index: int, lane: Lane, beside: tuple[int, ...]) -> Iterator[PostMove]:
    rows = takeable(post, beside)
    after = post
    if post.rules.delete_before_publish:
        after = _without(post, tuple(row.position for row in rows))
    holds = bool(rows) and not post.rules.delete_before_publish
    words = ("relay takes", *(str(message_of(row.position)) + kind_of(row.position) for row in rows))
    yield _moved(words, after, index, *_stepped(post, lane, d.Taken(rows), holds=holds))
    yield _moved(("relay loses the database",), post, index, *_stepped(post, lane, d.DatabaseLost()), 1)


def _publish(post: Post, index: int, lane: Lane, rows: tuple[d.OutboxRow, ...]) -> Iterator[PostMove]:
    for tried in product(("stored", "refused", "stored, not confirmed"), repeat=len(rows)):
        results = _held(rows, tried)
        if results is not None:
            errors = tuple(None if result == "stored" else ERROR for result in results)
            named = _named(rows, results)
            stored = [row for row, result in zip(rows, results, strict=True) if result.startswith("stored")]
            faults = sum(result in ("refused", "stored, not confirmed") for result in results)
            for late in LATE if len(rows) < len(lane.state.rows) else (False,):
                after = _stepped(post, lane, d.Published(errors, late=late), holds=lane.holds)
                words = ("relay publishes, late" if late else "relay publishes", *named)
                yield _stored(words, post, index, stored, *after, faults)
    if lane.state.confirmed or lane.state.failed:
        yield _moved(("relay is stopped",), post, index, *_stepped(post, lane, d.Stopped(), holds=lane.holds))
    for count in range(len(rows) + 1):
        words = ("sink lost", *_named(rows[:count], ("stored",) * count))
        after = _stepped(post, lane, d.SinkLost(ERROR), holds=lane.holds)
        yield _stored(words, post, index, list(rows[:count]), *after, 1)


def _held(rows: tuple[d.OutboxRow, ...], results: tuple[str, ...]) -> tuple[str, ...] | None:
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


def _named(rows: tuple[d.OutboxRow, ...], results: tuple[str, ...]) -> list[str]:
    return [
        f"{message_of(row.position)}{kind_of(row.position)} {result}" for row, result in zip(rows, results, strict=True)
    ]


def _stored(words: tuple[str, ...], post: Post, index: int, rows: list[d.OutboxRow], lane: Lane, faults: int) -> PostMove:
    arrivals: list[tuple[int, int]] = []
    for row in rows:
        message, kind = message_of(row.position), kind_of(row.position)
        if kind == "out":
            post = _sent(post, row)
        else:
            arrivals.append((message, int(kind[-1])))
    return _moved(words, post, index, lane, faults, tuple(arrivals))


def _sent(post: Post, row: d.OutboxRow) -> Post:
    """The event is published. Overtaken: an earlier row of its key is there, and its event was never published."""
    overtaken = post.overtaken
    places = [place for place, there in enumerate(post.rows) if there.position == row.position]
    if key_of(post, row.position) is not None and places:
        earlier = [other.position for other in post.rows[: places[0]] if key_of(post, other.position) is not None]
        overtaken = overtaken or any(not post.sent[message_of(position)] for position in earlier)
    first, second = post.sent
    sent = (first or message_of(row.position) == 0, second or message_of(row.position) == 1)
    return post._replace(sent=sent, overtaken=overtaken)


def _mark(post: Post, index: int, lane: Lane, mark: d.SettleRows) -> Iterator[PostMove]:
    lost = _stepped(post, lane, d.DatabaseLost())
    if not lane.holds and not post.rules.delete_before_publish:
        yield _moved(("relay cannot mark",), post, index, *lost)
        return
    failed = {row.position for row, _ in mark.failed}
    after = _without(post, mark.confirmed)
    after = after._replace(rows=tuple(row._replace(later=row.later or row.position in failed) for row in after.rows))
    words = ("relay marks", str(len(mark.confirmed)), str(len(failed)))
    yield _moved(words, after, index, *_stepped(post, lane, d.RowsSettled()))
    yield _moved(("relay loses the database",), post, index, *lost, 1)
    yield _moved(("relay marks, reply lost",), after, index, *lost, 1)


def _without(post: Post, positions: tuple[int, ...]) -> Post:
    return post._replace(rows=tuple(row for row in post.rows if row.position not in positions))
