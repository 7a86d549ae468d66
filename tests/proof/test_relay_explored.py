"""Every way through a small batch, with three faults: nothing is deleted unsent, and no key is overtaken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onceward_proof.explorer import outbox
from onceward_proof.explorer.outbox import OutboxState, StoredRow


@pytest.mark.parametrize("keyed", [True, False])
def test_no_way_through_a_batch_deletes_what_was_not_sent_or_lets_a_key_be_overtaken(keyed: bool) -> None:
    """Chunks of any size, refusals, a sink that is lost again and again, a batch whose time is over: three faults."""
    blamed = 0
    for post in _outboxes(OutboxState(keyed=keyed, rows=tuple(StoredRow(position) for position in (0, 4, 1))), faults=3):
        positions = {row.position for row in post.rows}
        assert not post.overtaken
        assert [n for n, position in enumerate((0, 4)) if position not in positions and not post.published[n]] == []
        blamed += any(lane.state.failed and lane.state.suspects == () and not lane.state.answering for lane in post.lanes)
    assert blamed


def _outboxes(first: OutboxState, faults: int) -> Iterator[OutboxState]:
    seen, edge = {(first, faults)}, [(first, faults)]
    while edge:
        post, faults_left = edge.pop()
        yield post
        for move in outbox.relay_moves(post):
            after = (move.after, faults_left - move.faults)
            if after[1] >= 0 and after not in seen:
                seen.add(after)
                edge.append(after)
