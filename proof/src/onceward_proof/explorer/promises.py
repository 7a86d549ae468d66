"""What must be true of every world. Each promise has a name; a broken one names the world's way in the story."""

from __future__ import annotations

from typing import Final, NamedTuple

from onceward_proof.explorer.cell import GONE, REASONS_FOR_PEOPLE, Cell
from onceward_proof.explorer.outbox import Post, kind_of, message_of

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


class CellFacts(NamedTuple):
    """What the promises that reach beyond a cell need to know of it."""

    broken: str
    committed: bool
    homeless: tuple[bool, bool]  # by payload: no copy of it is left, and it is neither done nor parked
    quiet: bool


def facts(cell: Cell) -> CellFacts:
    return CellFacts(broken_in(cell), sum(cell.writes) > 0, _homeless(cell), not cell.workers and _is_over(cell))


def broken_in(cell: Cell) -> str:
    """The first promise that this message's own state breaks; '' when it keeps them all."""
    row, intent = cell.books.row, cell.books.intent
    done = row is not None and row.state == "done"
    parked = None if row is None else cell.books.parked[row.payload]
    promises = (
        (CHARGED_BLIND, cell.blind),
        (CHARGED_TWICE, cell.charges > 1),
        (WRITTEN_TWICE, sum(cell.writes) > 1),
        (DONE_AND_PARKED, done and parked not in (None, *REASONS_FOR_PEOPLE)),
        (NAMELESS, row is not None and row.state == "parked" and not parked),
        (UNWRITTEN, done and not sum(cell.writes)),
        (UNANSWERED, done and intent is not None and intent.state != "done"),
        (TRESPASSED, cell.trespassed),
        (ANSWER_GONE, cell.told and not cell.dropped and (intent is None or intent.state != "done")),
    )
    return next((promise for promise, is_broken in promises if is_broken), "")


def _homeless(cell: Cell) -> tuple[bool, bool]:
    return _is_homeless(cell, 0), cell.other and _is_homeless(cell, 1)


def _is_homeless(cell: Cell, payload: int) -> bool:
    if cell.writes[payload] or cell.books.parked[payload]:
        return False
    return all(copy.where == GONE or copy.payload != payload for copy in cell.copies)


def _is_over(cell: Cell) -> bool:
    return all(copy.where == GONE for copy in cell.copies)


class PostFacts(NamedTuple):
    """What the promises that reach beyond the outbox need to know of it, by message."""

    broken: str
    sent: tuple[bool, bool]
    under_way: tuple[bool, bool]  # an event is in the outbox, or in the hands of a lane
    coming: tuple[frozenset[int], frozenset[int]]  # payloads of the message itself that are on their way to the queue
    quiet: bool


def post_facts(post: Post) -> PostFacts:
    positions = {row.position for row in post.rows} | {row.position for lane in post.lanes for row in lane.state.rows}
    coming = [
        frozenset(int(kind_of(n)[-1]) for n in positions if message_of(n) == message and kind_of(n) != "out")
        for message in (0, 1)
    ]
    events = {message_of(position) for position in positions if kind_of(position) == "out"}
    quiet = not post.rows and all(lane.command is None for lane in post.lanes)
    broken = OVERTAKEN if post.overtaken else ""
    return PostFacts(broken, post.sent, (0 in events, 1 in events), (coming[0], coming[1]), quiet)


def broken_between(message: int, cell: CellFacts, post: PostFacts, *, relayed: bool) -> str:
    """The first promise that a message and the outbox break together. `relayed`: there is a relay for its event."""
    if relayed and cell.committed and not post.sent[message] and not post.under_way[message]:
        return EVENT_LOST
    if post.sent[message] and not cell.committed:
        return EVENT_PHANTOM
    if any(gone and payload not in post.coming[message] for payload, gone in enumerate(cell.homeless)):
        return LOST
    return ""
