"""What must be true of every world. Each promise has a name; a world that breaks one is found, and its path told."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from onceward_proof.explorer.facts import Emitted
from onceward_proof.explorer.message_state import REASONS_FOR_PEOPLE, MessageState, Where
from onceward_proof.explorer.outbox import OutboxState, emitted_of, message_of


class Promise(StrEnum):
    """What a broken world is named by."""

    CHARGED_BLIND = "charged blind, past the provider's window"
    CHARGED_TWICE = "charged more than once"
    WRITTEN_TWICE = "finished more than once"
    LOST = "lost: neither done nor parked, and in no queue"
    DONE_AND_PARKED = "done and parked"
    NAMELESS = "parked without a reason"
    UNWRITTEN = "done without its writes"
    UNANSWERED = "done, though its effect has no answer"
    TRESPASSED = "a worker that had lost its lease changed the row"
    ANSWER_GONE = "an answer that a handler was given is not recorded"
    EVENT_LOST = "committed, and its event is in no outbox and was never published"
    EVENT_PHANTOM = "published, though nothing was committed"
    OVERTAKEN = "an event was published before an earlier one of its key"


class MessageSummary(NamedTuple):
    """What is judged of one message alone, and what judging it together with the outbox needs."""

    broken: Promise | None  # the first that it breaks
    committed: bool
    homeless: tuple[bool, bool]  # by payload: no copy of it is left, and it is neither done nor parked


def message_summary(state: MessageState) -> MessageSummary:
    homeless = _is_homeless(state, 0), state.other_payload_came and _is_homeless(state, 1)
    return MessageSummary(_broken(state), sum(state.writes) > 0, homeless)


def _broken(state: MessageState) -> Promise | None:
    row, intent = state.rows.inbox, state.rows.intent
    done = row is not None and row.state == "done"
    # The parked row of the other payload is a conflict's and stands beside a message that is done.
    parked = None if row is None else state.rows.parked[row.payload]
    answered = intent is not None and intent.state == "done"
    # `dropped`: upkeep takes an answer away only with its finished message.
    promises = (
        (Promise.CHARGED_BLIND, state.charged_blind),
        (Promise.CHARGED_TWICE, state.charges > 1),
        (Promise.WRITTEN_TWICE, sum(state.writes) > 1),
        (Promise.DONE_AND_PARKED, done and parked not in (None, *REASONS_FOR_PEOPLE)),
        (Promise.NAMELESS, row is not None and row.state == "parked" and not parked),
        (Promise.UNWRITTEN, done and not sum(state.writes)),
        (Promise.UNANSWERED, done and intent is not None and not answered),
        (Promise.TRESPASSED, state.trespassed),
        (Promise.ANSWER_GONE, state.answer_given and not state.dropped and not answered),
    )
    return next((promise for promise, is_broken in promises if is_broken), None)


def _is_homeless(state: MessageState, payload: int) -> bool:
    if state.writes[payload] or state.rows.parked[payload] or state.discarded[payload]:
        return False
    return all(copy.where == Where.GONE or copy.payload != payload for copy in state.copies)


class OutboxSummary(NamedTuple):
    """What is judged of the outbox alone, and, by message, what judging it together with a message needs."""

    broken: Promise | None
    published: tuple[bool, bool]
    under_way: tuple[bool, bool]  # an event is in the outbox, or in the hands of a lane
    coming: tuple[frozenset[int], frozenset[int]]  # payloads of the message itself that are on their way to the queue


def outbox_summary(outbox: OutboxState) -> OutboxSummary:
    positions = {row.position for row in outbox.rows}
    positions |= {row.position for lane in outbox.lanes for row in lane.state.rows}
    rows = [(message_of(position), emitted_of(position)) for position in positions]
    coming = [
        frozenset(emitted.payload for owner, emitted in rows if owner == message and emitted is not Emitted.EVENT)
        for message in (0, 1)
    ]
    under_way = (0, Emitted.EVENT) in rows, (1, Emitted.EVENT) in rows
    return OutboxSummary(
        Promise.OVERTAKEN if outbox.overtaken else None, outbox.published, under_way, (coming[0], coming[1])
    )


def broken_together(message: int, state: MessageSummary, outbox: OutboxSummary, *, relayed: bool) -> Promise | None:
    """The first promise that a message and the outbox break together. `relayed`: there is a relay for its event."""
    if relayed and state.committed and not outbox.published[message] and not outbox.under_way[message]:
        return Promise.EVENT_LOST
    if outbox.published[message] and not state.committed:
        return Promise.EVENT_PHANTOM
    if any(homeless and payload not in outbox.coming[message] for payload, homeless in enumerate(state.homeless)):
        return Promise.LOST
    return None
