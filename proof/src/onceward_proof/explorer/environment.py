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
from onceward_proof.explorer.rules import Bug


def happenings(state: MessageState) -> Iterator[MessageMove]:
    """Every step that needs no command of a worker."""
    yield from _lapse(state)
    yield from _copies(state)
    yield from _provider(state)
    yield from _dedup_window(state)
    yield from _redrive(state)
    if state.rules.decisions and not state.locked:
        yield from _settle(state)
        yield from _did_not_happen(state)
        yield from _discard(state)
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
    over = ("done", "discarded")
    finished = (rows.inbox is None or rows.inbox.state in over) and (rows.intent is None or rows.intent.state in over)
    if not state.dropped and not state.locked and finished:
        yield MessageMove(Happening.UPKEEP, state._replace(dropped=True, rows=rows._replace(inbox=None, intent=None)))


def _redrive(state: MessageState) -> Iterator[MessageMove]:
    row = state.rows.inbox
    if row is None or state.locked or state.rows.parked[row.payload] in REASONS_FOR_PEOPLE:
        return
    rows = statements.redrive(state.rows)
    if rows is not None:
        yield _sent_again(Happening.REDRIVE, state._replace(rows=rows))


def _sent_again(fact: Happening, after: MessageState) -> MessageMove:
    """A person's decision with which the message goes on."""
    row = after.rows.inbox
    emitted = Emitted.REDRIVEN_OTHER if row is not None and row.payload else Emitted.REDRIVEN
    return MessageMove(fact, after, 0, 1, (emitted,))


def _settle(state: MessageState) -> Iterator[MessageMove]:
    """A person finds the charge at the provider."""
    rows = statements.settle(state.rows, "c1") if state.charges else None
    if rows is not None:
        yield _sent_again(Happening.SETTLE, state._replace(rows=rows))


def _did_not_happen(state: MessageState) -> Iterator[MessageMove]:
    """A person does not find the charge, and no call is under way; a careless one has not even looked."""
    intent, rules = state.rows.intent, state.rules
    under_way = any(worker.state.at is Place.CALLING for worker in state.workers) or any(
        record == KeyRecord.IN_PROGRESS for _, record in state.keys
    )
    over = state.key_age == KeyAge.FORGOTTEN
    # --force is for somebody who knows that nothing is under way, and who has looked.
    forced = not over and not rules.careless and (not under_way or rules.bug is Bug.REOPENED_INSIDE_WINDOW)
    if intent is None or (state.charges and not rules.careless):
        return
    rows = statements.settle_as_not_happened(state.rows, rules, over=over or forced)
    if rows is not None:
        # The new key's window begins now; the provider may still know the former one. A refusal that was given to a handler
        # is not its answer any more: the decision keeps it.
        after = state._replace(rows=rows, key_age=KeyAge.CALLABLE, answer_given=state.answer_given and not intent.refused)
        yield _sent_again(Happening.DID_NOT_HAPPEN, after)


def _discard(state: MessageState) -> Iterator[MessageMove]:
    for payload, fact in enumerate((Happening.DISCARD, Happening.DISCARD_OTHER)):
        rows = statements.discard(state.rows, payload)
        if rows is not None:
            yield MessageMove(fact, state._replace(rows=rows, discarded=_with(state.discarded, payload)), 0, 1)


def _with(discarded: tuple[bool, bool], payload: int) -> tuple[bool, bool]:
    return (discarded[0] or payload == 0, discarded[1] or payload == 1)
