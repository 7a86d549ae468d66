"""Every way through a small batch, with three faults: nothing is deleted unsent, and no key is overtaken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onceward.protocol.relay import Patience
from onceward_proof.explorer import outbox
from onceward_proof.explorer.facts import Emitted
from onceward_proof.explorer.outbox import OutboxState, StoredRow, emitted_of
from onceward_proof.explorer.rules import RelayRules

ROWS = (0, 4, 1)
PATIENCE = {
    "for ever": Patience(attempts_max=1_000),
    "one try": Patience(attempts_max=1),
    "two tries": Patience(attempts_max=2),
    "held": Patience(attempts_max=1, hold_subjects=True),
}


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("patience", PATIENCE.values(), ids=PATIENCE.keys())
def test_no_way_through_a_batch_deletes_what_was_not_sent_or_lets_a_key_be_overtaken(
    patience: Patience, keyed: bool
) -> None:
    """Chunks of any size, refusals, a sink that is lost again and again, a batch whose time is over: three faults.

    Whatever was not sent waits or is set aside, and only what is behind a row that was set aside is sent before it.
    """
    blamed = set_aside = 0
    rows = tuple(StoredRow(position) for position in ROWS)
    for post in _outboxes(OutboxState(RelayRules(patience), keyed, rows), faults=3):
        positions = {row.position for row in post.rows}
        assert not post.overtaken
        assert [n for n, position in enumerate((0, 4)) if position not in positions and not post.published[n]] == []
        blamed += any(lane.state.failed and lane.state.suspects == () and not lane.state.answering for lane in post.lanes)
        given_up = [row for row in post.rows if row.set_aside]
        set_aside += len(given_up)
        if keyed and patience.hold_subjects:
            assert all(emitted_of(row.position) is not Emitted.EVENT for row in given_up)
    assert blamed
    assert bool(set_aside) == (patience != PATIENCE["for ever"])


@pytest.mark.parametrize("hold_subjects", [True, False])
def test_what_is_behind_a_row_that_is_set_aside_goes_on_unless_its_subject_must_hold(hold_subjects: bool) -> None:
    rules = RelayRules(Patience(1, hold_subjects))
    passed = [
        post
        for post in _outboxes(OutboxState(rules, keyed=True, rows=(StoredRow(0), StoredRow(4))), faults=1)
        if post.published == (False, True)
    ]
    assert bool(passed) == (not hold_subjects)


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
