"""What befalls a message without a command: leases lapse, copies come again, time passes, upkeep drops, people redrive.

What merely takes its time (a lease without its holder, a window) costs nothing; what goes wrong costs a fault.
"""

from __future__ import annotations

from collections.abc import Iterator

from onceward.protocol import words as p
from onceward.protocol.delivery import Place, start
from onceward_proof.explorer import statements
from onceward_proof.explorer.facts import Emitted, Happening
from onceward_proof.explorer.message_state import (
    LIMITS,
    REASONS_FOR_PEOPLE,
    KeyAge,
    KeyRecord,
    MessageMove,
    MessageState,
    Where,
    Worker,
)


def happenings(state: MessageState) -> Iterator[MessageMove]:
    """Every step that needs no command of a worker."""
    yield from _lapse(state)
    yield from _copies(state)
    yield from _provider(state)
    yield from _dedup_window(state)
    yield from _redrive(state)
    for index in range(len(state.workers)):
        yield MessageMove(Happening.CRASH, state.with_worker(index), 1, actor=index)
    yield from _server(state)
    if state.rules.other_payload and not state.other_payload_came:
        yield MessageMove(Happening.OTHER_PAYLOAD, state.with_arrival(1)._replace(other_payload_came=True), 1)


def _server(state: MessageState) -> Iterator[MessageMove]:
    """A crash of the server undoes what it confirmed and had not flushed: something, where a session lied."""
    if state.flushed is None:
        return
    yield MessageMove(Happening.FLUSH, state._replace(flushed=None))
    rows, writes = state.flushed
    workers = tuple(worker._replace(open=None) for worker in state.workers)
    undone = state._replace(flushed=None, rows=rows, writes=writes, workers=workers)
    yield MessageMove(Happening.SERVER_CRASH, undone, 1)


def _lapse(state: MessageState) -> Iterator[MessageMove]:
    row = state.rows.inbox
    if row is not None and row.state == "pending" and not row.lapsed:
        after = state._replace(rows=state.rows._replace(inbox=row._replace(lapsed=True)))
        early = any(worker.state.token == row.token for worker in state.workers)
        yield MessageMove(Happening.LAPSE_EARLY if early else Happening.LAPSE, after, int(early))


def _copies(state: MessageState) -> Iterator[MessageMove]:
    for number, copy in enumerate(state.copies):
        if copy.where == Where.HELD:
            early = any(worker.copy == number for worker in state.workers)
            fact = Happening.REDELIVERY_EARLY if early else Happening.REDELIVERY
            yield MessageMove(fact, state.with_copy(number, Where.VISIBLE), int(early))
        elif copy.where == Where.VISIBLE:
            held = state.with_copy(number, Where.HELD, received=True)
            received = p.Received(held.copies[number].deliveries)
            worker = Worker(number, copy.payload, *state.rules.step(start(state.rules.shape, LIMITS), received), "start")
            fact = Happening.RECEIVE_OTHER if copy.payload else Happening.RECEIVE
            yield MessageMove(fact, held.with_worker(len(held.workers), worker))


def _provider(state: MessageState) -> Iterator[MessageMove]:
    in_progress = [key for key, record in state.keys if record == KeyRecord.IN_PROGRESS]
    for key in in_progress:
        yield MessageMove(Happening.CHARGE_LATE, state.charged(key))
    calling = any(worker.state.at is Place.CALLING for worker in state.workers)
    if state.key_age == KeyAge.CALLABLE and (state.rows.intent is not None or state.keys):
        yield MessageMove(Happening.KEY_EXPIRES, state._replace(key_age=KeyAge.EXPIRED))
    # No call is open when the key is forgotten: the margin before its expiry is longer than the longest call.
    elif state.key_age == KeyAge.EXPIRED and not calling and not in_progress:
        yield MessageMove(Happening.KEY_FORGOTTEN, state._replace(key_age=KeyAge.FORGOTTEN, keys=()))


def _dedup_window(state: MessageState) -> Iterator[MessageMove]:
    """The id leaves the dedup window, then upkeep drops its partition.

    Under `longer_window` the id is old only for the process by whose window upkeep goes; the workers still take it.
    """
    # The window (days) is far longer than any call or transaction, and longer than the provider's window too: neither is
    # open just when an id leaves it.
    calling = any(worker.state.at is Place.CALLING for worker in state.workers)
    if not state.id_is_old:
        if not state.locked and not calling:
            yield MessageMove(Happening.ID_IS_OLD, state._replace(id_is_old=True))
        return
    rows = state.rows
    # Upkeep keeps what is pending, parked or without an answer.
    finished = (rows.inbox is None or rows.inbox.state == "done") and (rows.intent is None or rows.intent.state == "done")
    if not state.dropped and not state.locked and finished:
        yield MessageMove(Happening.UPKEEP, state._replace(dropped=True, rows=rows._replace(inbox=None, intent=None)))


def _redrive(state: MessageState) -> Iterator[MessageMove]:
    row = state.rows.inbox
    if row is None or state.locked or state.rows.parked[row.payload] in REASONS_FOR_PEOPLE:
        return
    rows = statements.redrive(state.rows)
    if rows is not None:
        emitted = Emitted.REDRIVEN_OTHER if row.payload else Emitted.REDRIVEN
        yield MessageMove(Happening.REDRIVE, state._replace(rows=rows), 0, 1, (emitted,))
