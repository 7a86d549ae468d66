"""The outbox, the lanes of the relay, and the sink. It is driven by the production `step` of `onceward.protocol.relay`.

The rows of both messages are in one outbox. What a lane holds, the others skip; a lane that dies lets go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any, Final, NamedTuple

from onceward.protocol import relay as d
from onceward_proof.explorer.facts import Emitted, Relayed, RelayHappening, RowFate
from onceward_proof.explorer.rules import RELAY, Bug, RelayRules

ERROR: Final = "x"
REACHES: Final = (1, 2, 4)
Fates = tuple[RowFate, ...]


MESSAGE_BIT: Final = 4


class Position(int):
    """8 * n + 4 * message + what was emitted: flipping one bit of all positions exchanges the two messages.

    `n` is the smallest that nobody uses any more: positions that only grow would make endlessly many worlds. The class
    tells a position from the other numbers in the protocol's state.
    """


class StoredRow(NamedTuple):
    """One outbox row as it is stored. Its place in the tuple is its order; `later`: its retry is not due yet.

    `passed`: it was set aside once, so that rows behind it may be published before it.
    """

    position: int
    later: bool = False
    attempts: int = 0
    set_aside: bool = False
    passed: bool = False


class Lane(NamedTuple):
    """One lane of a relay: the protocol's state and its command. `holds`: the rows of its state are locked by it."""

    state: d.State = d.State()
    command: d.Command | None = None
    holds: bool = False


class OutboxState(NamedTuple):
    """The outbox, the lanes, and whose event has been published."""

    rules: RelayRules = RELAY
    keyed: bool = True
    rows: tuple[StoredRow, ...] = ()
    lanes: tuple[Lane, ...] = (Lane(),)
    published: tuple[bool, bool] = (False, False)  # by message
    overtaken: bool = False  # an event was published before an earlier one of its key


class OutboxMove(NamedTuple):
    """One step that the outbox can make. `arrivals`: (message, payload) of copies that it put into the consumer's queue."""

    fact: Relayed
    after: OutboxState
    faults: int = 0
    arrivals: tuple[tuple[int, int], ...] = ()
    lane: int = -1  # the index of the lane that acted; -1: none


def message_of(position: int) -> int:
    return position // MESSAGE_BIT % 2


def emitted_of(position: int) -> Emitted:
    return Emitted(position % MESSAGE_BIT)


def key_of(outbox: OutboxState, position: int) -> str | None:
    return "key" if outbox.keyed and emitted_of(position) is Emitted.EVENT else None


def locked(lane: Lane) -> set[int]:
    """The positions of a lane's batch, whatever has become of them in it."""
    state = lane.state
    return {*state.confirmed, *(row.position for row in state.rows), *(row.position for row, _ in state.failed)}


def with_rows(outbox: OutboxState, message: int, emitted: tuple[Emitted, ...]) -> OutboxState:
    """These rows were committed with something else."""
    for kind in emitted:
        taken = {row.position for row in outbox.rows}
        taken |= {position for lane in outbox.lanes for position in (*locked(lane), *lane.state.suspects)}
        position = Position(message * MESSAGE_BIT + kind)
        while position in taken:
            position = Position(position + 2 * MESSAGE_BIT)
        outbox = outbox._replace(rows=(*outbox.rows, StoredRow(position)))
    return outbox


def in_order(outbox: OutboxState) -> OutboxState:
    """Lanes have no names: of the same lanes in another order, one stands for all."""
    return outbox if len(outbox.lanes) < 2 else outbox._replace(lanes=tuple(sorted(outbox.lanes, key=repr)))


def mirrored(outbox: OutboxState) -> OutboxState:
    """The same, with the two messages' names exchanged."""
    first, second = outbox.published
    return outbox._replace(rows=_flipped(outbox.rows), lanes=_flipped(outbox.lanes), published=(second, first))


def _flipped(part: Any) -> Any:
    """The same, with every position in it flipped to the other message."""
    match part:
        case Position():
            return Position(part ^ MESSAGE_BIT)
        case tuple():
            items = [_flipped(item) for item in part]
            return type(part)(*items) if hasattr(part, "_fields") else tuple(items)
        case _ if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{field.name: _flipped(getattr(part, field.name)) for field in fields(part)})
    return part


def relay_moves(outbox: OutboxState) -> Iterator[OutboxMove]:
    """Every step that the outbox can make."""
    for place, row in enumerate(outbox.rows):
        if row.later:
            rows = (*outbox.rows[:place], row._replace(later=False), *outbox.rows[place + 1 :])
            yield OutboxMove(Relayed(RelayHappening.RETRY_DUE, ((row.position, None),)), outbox._replace(rows=rows))
        if row.set_aside:
            rows = (*outbox.rows[:place], row._replace(set_aside=False, attempts=0), *outbox.rows[place + 1 :])
            yield OutboxMove(Relayed(RelayHappening.RETRIED, ((row.position, None),)), outbox._replace(rows=rows))
    for index, lane in enumerate(outbox.lanes):
        if lane.command is None:
            yield from _wake(outbox, index, lane)
            continue
        yield _moved(Relayed(RelayHappening.CRASH), outbox, index, Lane(), 1)
        if lane.holds:
            yield _moved(Relayed(RelayHappening.LOCKS_LOST), outbox, index, lane._replace(holds=False), 1)
        yield from _perform(outbox, index, lane)


def _wake(outbox: OutboxState, index: int, lane: Lane) -> Iterator[OutboxMove]:
    # How fast the sink was decides how many rows the first chunk may have. No clock runs here: any number is tried.
    for reach in REACHES[: len(takeable(outbox))]:
        state = lane.state._replace(reach=reach, patience=outbox.rules.patience)
        after = _stepped(outbox, lane._replace(state=state), d.Woken())
        yield _moved(Relayed(RelayHappening.WAKE), outbox, index, after)


def _moved(
    fact: Relayed, outbox: OutboxState, index: int, lane: Lane, faults: int = 0, arrivals: tuple[tuple[int, int], ...] = ()
) -> OutboxMove:
    after = outbox._replace(lanes=(*outbox.lanes[:index], lane, *outbox.lanes[index + 1 :]))
    return OutboxMove(fact, after, faults, arrivals, index)


def _stepped(outbox: OutboxState, lane: Lane, event: d.Event, *, holds: bool = False) -> Lane:
    state, command = outbox.rules.step(lane.state, event)
    if isinstance(command, d.Sleep):
        # How long it sleeps and how far it reaches next are not told apart: any wake-up may come next, with any reach.
        return Lane(state._replace(failures=0, reach=1, patience=d.Patience()))
    return Lane(state, command, holds)


def takeable(outbox: OutboxState, beside: tuple[int, ...] = ()) -> tuple[d.OutboxRow, ...]:
    """The rows that a lane may lock now.

    Heads of their keys that no lane holds, that are not among `beside` and whose retry is due, and what is behind them.
    """
    held = {position for lane in outbox.lanes if lane.holds for position in locked(lane)}
    taken: list[d.OutboxRow] = []
    keys_before: set[str | None] = set()
    keys_taken: set[str | None] = set()
    for row in outbox.rows:
        if row.set_aside:
            continue
        key = key_of(outbox, row.position)
        free = row.position not in held
        if key is not None and key in keys_before and outbox.rules.bug is not Bug.RELAY_OVERTAKES:
            free = free and key in keys_taken
        else:
            free = free and not row.later and row.position not in beside
        keys_before.add(key)
        if free:
            taken.append(d.OutboxRow(row.position, key, row.attempts))
            keys_taken.add(key)
    return tuple(taken)


def _perform(outbox: OutboxState, index: int, lane: Lane) -> Iterator[OutboxMove]:
    match lane.command:
        case d.LockBatch(beside):
            yield from _take(outbox, index, lane, beside)
        case d.Publish(rows):
            yield from _publish(outbox, index, lane, rows)
        case d.CommitBatch() as command:
            yield from _commit(outbox, index, lane, command)


def _take(outbox: OutboxState, index: int, lane: Lane, beside: tuple[int, ...]) -> Iterator[OutboxMove]:
    rows = takeable(outbox, beside)
    positions = tuple(row.position for row in rows)
    deletes_first = outbox.rules.bug is Bug.RELAY_DELETES_FIRST
    taken = _stepped(outbox, lane, d.BatchLocked(rows), holds=bool(rows) and not deletes_first)
    fact = Relayed(RelayHappening.TAKE, tuple((position, None) for position in positions))
    yield _moved(fact, _without(outbox, positions) if deletes_first else outbox, index, taken)
    yield _moved(Relayed(RelayHappening.DATABASE_LOST), outbox, index, _stepped(outbox, lane, d.DatabaseLost()), 1)


def _publish(outbox: OutboxState, index: int, lane: Lane, rows: tuple[d.OutboxRow, ...]) -> Iterator[OutboxMove]:
    for answers in product((RowFate.STORED, RowFate.REFUSED, RowFate.UNCONFIRMED), repeat=len(rows)):
        fates = _fates(rows, answers)
        if fates is None:
            continue
        errors = tuple(None if fate is RowFate.STORED else ERROR for fate in fates)
        faults = fates.count(RowFate.REFUSED) + fates.count(RowFate.UNCONFIRMED)
        for late in (False, True) if len(rows) < len(lane.state.rows) else (False,):
            after = _stepped(outbox, lane, d.Published(errors, late=late), holds=lane.holds)
            kind = RelayHappening.PUBLISH_LATE if late else RelayHappening.PUBLISH
            yield _published(kind, outbox, index, rows, fates, after, faults)
    if lane.state.confirmed or lane.state.failed:
        after = _stepped(outbox, lane, d.Stopped(), holds=lane.holds)
        yield _moved(Relayed(RelayHappening.STOP), outbox, index, after)
    after = _stepped(outbox, lane, d.SinkLost(ERROR), holds=lane.holds)
    for count in range(len(rows) + 1):
        kind = RelayHappening.SINK_LOST_LATE if count else RelayHappening.SINK_LOST
        yield _published(kind, outbox, index, rows[:count], (RowFate.STORED,) * count, after, 1)


def _fates(rows: tuple[d.OutboxRow, ...], answers: Fates) -> Fates | None:
    """Behind a row that has an error, a sink sends none of its key. None: these answers cannot be."""
    keys_held: set[str] = set()
    fates: list[RowFate] = []
    for row, answer in zip(rows, answers, strict=True):
        if row.key is not None and row.key in keys_held:
            # A row that is held gets no answer: of the three that are tried for it, one is enough.
            if answer is not RowFate.REFUSED:
                return None
            fates.append(RowFate.HELD)
            continue
        fates.append(answer)
        if answer is not RowFate.STORED and row.key is not None:
            keys_held.add(row.key)
    return tuple(fates)


def _published(
    kind: RelayHappening, outbox: OutboxState, index: int, rows: tuple[d.OutboxRow, ...], fates: Fates, lane: Lane,
    faults: int,
) -> OutboxMove:  # fmt: skip
    """What the sink stored is published, or is a copy in the consumer's queue, whether the sink confirmed it or not."""
    arrivals: list[tuple[int, int]] = []
    fact = Relayed(kind, tuple((row.position, fate) for row, fate in zip(rows, fates, strict=True)))
    for position, fate in fact.rows:
        emitted = emitted_of(position)
        if fate not in (RowFate.STORED, RowFate.UNCONFIRMED):
            continue
        if emitted is Emitted.EVENT:
            outbox = _with_published(outbox, position)
        else:
            arrivals.append((message_of(position), emitted.payload))
    return _moved(fact, outbox, index, lane, faults, tuple(arrivals))


def _with_published(outbox: OutboxState, position: int) -> OutboxState:
    """The event is published. Overtaken: an earlier row of its key waits for it, and its event was never published."""
    overtaken = outbox.overtaken
    positions = [row.position for row in outbox.rows]
    if key_of(outbox, position) is not None and position in positions:
        earlier = [row.position for row in outbox.rows[: positions.index(position)] if _is_waited_for(outbox, row)]
        overtaken = overtaken or any(key_of(outbox, n) and not outbox.published[message_of(n)] for n in earlier)
    first, second = outbox.published
    published = (first or message_of(position) == 0, second or message_of(position) == 1)
    return outbox._replace(published=published, overtaken=overtaken)


def _is_waited_for(outbox: OutboxState, row: StoredRow) -> bool:
    """Whether the later rows of its key must come after it."""
    return outbox.rules.patience.hold_subjects or not row.passed


def _commit(outbox: OutboxState, index: int, lane: Lane, command: d.CommitBatch) -> Iterator[OutboxMove]:
    lost = _stepped(outbox, lane, d.DatabaseLost())
    if not lane.holds and outbox.rules.bug is not Bug.RELAY_DELETES_FIRST:
        yield _moved(Relayed(RelayHappening.SESSION_GONE), outbox, index, lost)
        return
    fates = dict.fromkeys(command.confirmed, RowFate.DELETED)
    fates |= {row.position: RowFate.POSTPONED for row, _ in command.postponed}
    fates |= {row.position: RowFate.SET_ASIDE for row, _ in command.set_aside}
    after = _without(outbox, command.confirmed)
    after = after._replace(rows=tuple(_tried(row, fates.get(row.position), outbox.rules) for row in after.rows))
    rows = [*fates.items()]
    committed = _stepped(outbox, lane, d.BatchCommitted())
    yield _moved(Relayed(RelayHappening.COMMIT, tuple(rows)), after, index, committed)
    yield _moved(Relayed(RelayHappening.DATABASE_LOST), outbox, index, lost, 1)
    yield _moved(Relayed(RelayHappening.COMMIT_REPLY_LOST, tuple(rows)), after, index, lost, 1)


def _tried(row: StoredRow, fate: RowFate | None, rules: RelayRules) -> StoredRow:
    """The row as the commit of its batch leaves it."""
    match fate:
        case RowFate.POSTPONED:
            # More attempts than the last but one are never told apart: a subject that holds may have any number.
            return row._replace(later=True, attempts=min(row.attempts + 1, rules.patience.attempts_max - 1))
        case RowFate.SET_ASIDE:
            return row._replace(later=False, set_aside=True, passed=True)
    return row


def _without(outbox: OutboxState, positions: tuple[int, ...]) -> OutboxState:
    return outbox._replace(rows=tuple(row for row in outbox.rows if row.position not in positions))
