"""What must be true of every world. Each promise has a name; a world that breaks one is found, and its path told."""

from __future__ import annotations

from typing import Final, NamedTuple

from onceward_proof.explorer.facts import Emitted
from onceward_proof.explorer.message_state import REASONS_FOR_PEOPLE, MessageState, Where
from onceward_proof.explorer.outbox import OutboxState, emitted_of, message_of

CHARGED_BLIND: Final = "charged blind, past the provider's window"
CHARGED_TWICE: Final = "charged more than once"
WRITTEN_TWICE: Final = "finished more than once"
LOST: Final = "lost: neither done nor parked, and in no queue"
DONE_AND_PARKED: Final = "done and parked"
NAMELESS: Final = "parked without a reason"
UNWRITTEN: Final = "done without its writes"
UNANSWERED: Final = "done, though its effect has no answer"
TRESPASSED: Final = "a worker that had lost its lease changed the row"
ANSWER_GONE: Final = "an answer that a handler was given is not recorded"
EVENT_LOST: Final = "committed, and its event is in no outbox and was never published"
EVENT_PHANTOM: Final = "published, though nothing was committed"
OVERTAKEN: Final = "an event was published before an earlier one of its key"
PROMISES: Final = (
    CHARGED_BLIND, CHARGED_TWICE, WRITTEN_TWICE, LOST, DONE_AND_PARKED, NAMELESS, UNWRITTEN, UNANSWERED, TRESPASSED,
    ANSWER_GONE, EVENT_LOST, EVENT_PHANTOM, OVERTAKEN,
)  # fmt: skip


class MessageSummary(NamedTuple):
    """What is judged of one message alone, and what judging it together with the outbox needs."""

    broken: str  # the first promise that it breaks; '': it keeps them all
    committed: bool
    homeless: tuple[bool, bool]  # by payload: no copy of it is left, and it is neither done nor parked
    quiet: bool


def message_summary(state: MessageState) -> MessageSummary:
    quiet = not state.workers and all(copy.where == Where.GONE for copy in state.copies)
    homeless = _is_homeless(state, 0), state.other_payload_came and _is_homeless(state, 1)
    return MessageSummary(_broken(state), sum(state.writes) > 0, homeless, quiet)


def _broken(state: MessageState) -> str:
    row, intent = state.rows.inbox, state.rows.intent
    done = row is not None and row.state == "done"
    parked = "" if row is None else state.rows.parked[row.payload]
    answered = intent is not None and intent.state == "done"
    promises = (
        (CHARGED_BLIND, state.charged_blind),
        (CHARGED_TWICE, state.charges > 1),
        (WRITTEN_TWICE, sum(state.writes) > 1),
        (DONE_AND_PARKED, done and parked not in ("", *REASONS_FOR_PEOPLE)),
        (NAMELESS, row is not None and row.state == "parked" and not parked),
        (UNWRITTEN, done and not sum(state.writes)),
        (UNANSWERED, done and intent is not None and not answered),
        (TRESPASSED, state.trespassed),
        (ANSWER_GONE, state.answer_given and not state.dropped and not answered),
    )
    return next((promise for promise, is_broken in promises if is_broken), "")


def _is_homeless(state: MessageState, payload: int) -> bool:
    if state.writes[payload] or state.rows.parked[payload]:
        return False
    return all(copy.where == Where.GONE or copy.payload != payload for copy in state.copies)


class OutboxSummary(NamedTuple):
    """What is judged of the outbox alone, and, by message, what judging it together with a message needs."""

    broken: str
    published: tuple[bool, bool]
    under_way: tuple[bool, bool]  # an event is in the outbox, or in the hands of a lane
    coming: tuple[frozenset[int], frozenset[int]]  # payloads of the message itself that are on their way to the queue
    quiet: bool


def outbox_summary(outbox: OutboxState) -> OutboxSummary:
    positions = {row.position for row in outbox.rows}
    positions |= {row.position for lane in outbox.lanes for row in lane.state.rows}
    rows = [(message_of(position), emitted_of(position)) for position in positions]
    coming = [
        frozenset(emitted.payload for owner, emitted in rows if owner == message and emitted is not Emitted.EVENT)
        for message in (0, 1)
    ]
    quiet = not outbox.rows and all(lane.command is None for lane in outbox.lanes)
    under_way = (0, Emitted.EVENT) in rows, (1, Emitted.EVENT) in rows
    return OutboxSummary(OVERTAKEN if outbox.overtaken else "", outbox.published, under_way, (coming[0], coming[1]), quiet)


def broken_together(message: int, state: MessageSummary, outbox: OutboxSummary, *, relayed: bool) -> str:
    """The first promise that a message and the outbox break together. `relayed`: there is a relay for its event."""
    if relayed and state.committed and not outbox.published[message] and not outbox.under_way[message]:
        return EVENT_LOST
    if outbox.published[message] and not state.committed:
        return EVENT_PHANTOM
    if any(homeless and payload not in outbox.coming[message] for payload, homeless in enumerate(state.homeless)):
        return LOST
    return ""
