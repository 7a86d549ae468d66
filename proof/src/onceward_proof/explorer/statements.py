"""What each statement does to the rows of one message: the model of Postgres.

Each function is one transaction and returns the rows afterwards and what the worker hears; or BLOCKED: it waits, because
another worker's open transaction holds the inbox row. A statement whose fence does not match what is committed waits for
nobody: its worker is fenced off.
"""

# Written from what the statements promise and not from the SQL, so that a mistake there is not copied into the model.
# tests/proof/test_model_agrees.py holds the model to the real statements, on random traces.

from __future__ import annotations

from typing import Final, Literal, NamedTuple, assert_never

from onceward.protocol import words as p
from onceward.protocol.reasons import ParkReason
from onceward_proof.explorer.message_state import LIMITS, InboxRow, IntentRow, KeyAge, Rows
from onceward_proof.explorer.rules import Bug, Rules

Result = tuple[Rows, p.Event]
BLOCKED: Final = None
UNKNOWN: Final = (ParkReason.UNKNOWN, ParkReason.ANSWER_IS_NOT_JSON)  # reasons that leave the intent unknown


class Writer(NamedTuple):
    """Who writes: its shape and fence, and the payload that it was given."""

    rules: Rules
    token: int = 0
    fresh: bool = True
    payload: int = 0

    @property
    def rolled_back(self) -> bool:
        """A transactional worker that made the row holds nothing of it, once it is rolled back."""
        return self.rules.shape == "transactional" and self.fresh

    @property
    def held(self) -> int:
        """A transactional worker that took over holds, once it is rolled back, only what was there before."""
        return self.token - (self.rules.shape == "transactional")


class Clock(NamedTuple):
    """What the database's clock says, whether the inbox row is locked, and what upkeep has done."""

    id_is_old: bool = False
    dropped: bool = False
    key_age: KeyAge = KeyAge.CALLABLE
    locked: bool = False


def held_row(rows: Rows, writer: Writer) -> InboxRow | None:
    """The inbox row if the fence matches it by state and token, else None."""
    row, bug = rows.inbox, writer.rules.bug
    if row is None or bug is Bug.NO_FENCE:
        return row
    matches = row.state == "pending" and (bug is Bug.TOKEN_NOT_CHECKED or row.token == writer.held)
    return row if matches else None


def take(rows: Rows, writer: Writer, clock: Clock) -> tuple[InboxRow | None, p.Event]:
    """The row as the taker's transaction has it (None: not taken), and the event. An effectful take commits at once."""
    row, rules = rows.inbox, writer.rules
    state: Literal["pending", "done"] = "pending" if rules.shape == "effectful" else "done"
    # The INSERT waits for the other's transaction until the wait runs out. It is not reached by an id outside the window.
    if clock.locked and (rules.longer_window or not clock.id_is_old):
        return None, p.InFlight(1.0)
    if row is None:
        if _is_outside(rules, clock):
            return None, p.OutsideWindow()
        return InboxRow(state, payload=writer.payload), p.Taken(1, True, 1)
    refusal = _refusal(row, writer, clock)
    if refusal is not None:
        return None, refusal
    taken = row._replace(state=state, token=row.token + 1, lapsed=False)
    intents = int(rows.intent is not None)
    return taken, p.Taken(taken.token, False, taken.token - taken.forgiven, intents=intents)


def _is_outside(rules: Rules, clock: Clock) -> bool:
    """An id that nobody has taken is refused: it is too old for this worker's window, or of a day that upkeep dropped."""
    if clock.dropped:
        return rules.bug not in (Bug.DEFAULT_PARTITION, Bug.RETIRED_MADE_AGAIN)
    return clock.id_is_old and not rules.longer_window


def _refusal(row: InboxRow, writer: Writer, clock: Clock) -> p.Event | None:
    other, bug = row.payload != writer.payload, writer.rules.bug
    if other and bug is not Bug.CONFLICT_AFTER_IN_FLIGHT:
        return p.Conflict()
    if row.state != "pending" or bug is Bug.SKIP_ON_ZERO_ROWS:
        return p.Duplicate()
    if not row.lapsed or clock.locked:
        return p.InFlight(1.0)
    return p.Conflict() if other else None


def intend(rows: Rows, writer: Writer, clock: Clock, *, checked: bool = False) -> Result | None:
    row = held_row(rows, writer)
    if row is None or row.lapsed:
        return rows, p.FencedOff()
    if clock.locked:
        return BLOCKED
    intent = rows.intent
    if intent is None:
        return rows._replace(intent=IntentRow()), p.Intended()
    if intent.state == "done":
        return rows, p.Recorded(intent.answer, intent.refused)
    if intent.state != "pending" or clock.key_age != KeyAge.CALLABLE:
        return rows, p.Expired()
    return rows, p.Intended() if checked or intent.generation == 1 else p.Reopened()


def record(rows: Rows, rules: Rules, answer: str, refused: bool, *, generation: int | None = None) -> Result:
    """Write-once, not fenced, and never blocked: it touches the intent alone."""
    intent = rows.intent
    # Dropped with its partition, so somebody finished long ago.
    if intent is None:
        return rows, p.DatabaseLost()
    if intent.state == "discarded":
        event = p.Recorded(answer, refused) if rules.bug is Bug.DISCARD_FORGETS_ANSWERS else p.AnsweredAfterDiscard(answer)
        return rows, event
    if intent.state != "done" and refused and generation not in (None, intent.generation):
        return rows, p.FencedOff()  # under the new key, the effect may have been accepted
    if intent.state != "done":
        answered = intent._replace(state="done", answer=answer, refused=refused)
        return rows._replace(intent=answered), p.Recorded(answer, refused)
    if (intent.answer, intent.refused) == (answer, refused):
        return rows, p.Recorded(answer, refused)
    return rows, p.TwoAnswers(f"{intent.answer} and {answer}")


def finish(rows: Rows, writer: Writer, clock: Clock) -> tuple[InboxRow | None, p.Event] | None:
    """The row as the finishing transaction has it (None: fenced off), and the event."""
    row = held_row(rows, writer)
    if row is None:
        return None, p.FencedOff()
    if clock.locked:
        return BLOCKED
    count = 0 if rows.intent is None else 1
    open_count = 0 if rows.intent is None or rows.intent.state == "done" else 1
    return row._replace(state="done", lapsed=False), p.Finishing(count, open_count)


def fail(rows: Rows, writer: Writer, clock: Clock, *, session_lost: bool = False) -> Result | None:
    """Counted, and the claim given back; parked in the same transaction when attempts, or sessions, have run out."""
    if rows.inbox is not None if writer.rolled_back else held_row(rows, writer) is None:
        return rows, p.FencedOff()
    if clock.locked and not writer.rolled_back:
        return BLOCKED
    after = rows if writer.rolled_back else _given_back(rows)
    if session_lost:
        after = after._replace(sessions_lost=rows.sessions_lost + 1)
    else:
        after = after._replace(attempts=rows.attempts + 1)
    if writer.rules.bug is Bug.FAILED_ROW_STAYS:
        after = after._replace(inbox=InboxRow("done", payload=writer.payload))
    if after.attempts < LIMITS.attempts_max and after.sessions_lost < LIMITS.deliveries_max:
        return after, p.Counted(1.0)
    result = _park_holder(after, writer, clock, ParkReason.SESSIONS_LOST if session_lost else ParkReason.ATTEMPTS_RAN_OUT)
    # One transaction: where the park is refused, the count is rolled back with it.
    return (rows, result[1]) if result is not None and not isinstance(result[1], p.Parked) else result


def park(rows: Rows, writer: Writer, clock: Clock, command: p.Park) -> Result | None:
    """Under the fence that the command names; BESIDE and ABSENT touch no inbox row, and so wait for none."""
    reason = command.reason
    parked = rows.park(writer.payload, reason), p.Parked()
    match command.fence:
        case p.Fence.BESIDE:
            return parked
        case p.Fence.ABSENT:
            return parked if rows.inbox is None else (rows, p.FencedOff())
        case p.Fence.HOLDER:
            return _park_holder(rows, writer, clock, reason)
        case p.Fence.HOLDER_OR_BESIDE:
            result = _park_holder(rows, writer, clock, reason)
            return parked if result is not None and isinstance(result[1], p.FencedOff) else result
        case p.Fence.FOREIGN_COMMIT:
            return _park_foreign(rows, writer, clock, reason)
    assert_never(command.fence)


def _park_holder(rows: Rows, writer: Writer, clock: Clock, reason: ParkReason) -> Result | None:
    """Parked under the fence of the worker that holds the message."""
    row, intent = held_row(rows, writer), rows.intent
    if clock.locked and (writer.rolled_back or row is not None):
        return BLOCKED
    if writer.rolled_back:
        if rows.inbox is not None:
            return rows, p.FencedOff()
        if clock.dropped:
            return rows, p.DatabaseLost()  # no partition for the row: refused, and redelivery finds it outside the window
        return rows._replace(inbox=InboxRow("parked", payload=writer.payload)).park(writer.payload, reason), p.Parked()
    if row is None:
        return rows, p.FencedOff()
    if reason in UNKNOWN and intent is not None and intent.state == "pending":
        rows = rows._replace(intent=intent._replace(state="unknown"))
    if writer.rules.bug is not Bug.PARK_LEAVES_ROW:
        rows = rows._replace(inbox=row._replace(state="parked", lapsed=False))
    return rows.park(writer.payload, None if writer.rules.bug is Bug.PARKED_ROW_MISSING else reason), p.Parked()


def _park_foreign(rows: Rows, writer: Writer, clock: Clock, reason: ParkReason) -> Result | None:
    """What the handler committed is parked from done; what it rolled back, from the state before the take."""
    if clock.locked:
        return BLOCKED
    row, token = rows.inbox, writer.token
    if row is None and clock.dropped:
        return rows, p.DatabaseLost()  # no partition for the row
    if row is None:
        row = InboxRow("parked", token=token, payload=writer.payload)
    elif row.payload == writer.payload and (row.token == token or (row.token == token - 1 and row.state == "pending")):
        row = row._replace(state="parked", lapsed=False)
    return rows._replace(inbox=row).park(writer.payload, reason), p.Parked()


def give_back(rows: Rows, writer: Writer, clock: Clock) -> Result | None:
    """The take is forgiven: it did not end in a crash."""
    if held_row(rows, writer) is None:
        return rows, p.FencedOff()
    return BLOCKED if clock.locked else (_given_back(rows), p.GivenBack())


def _given_back(rows: Rows) -> Rows:
    row = rows.inbox
    return rows if row is None else rows._replace(inbox=row._replace(lapsed=True, forgiven=row.forgiven + 1))


def redrive(rows: Rows) -> Rows | None:
    """Pending again, under a new token, without attempts; None: refused."""
    return None if _is_parked(rows, ParkReason.TWO_ANSWERS) else _reopened(rows)


def _is_parked(rows: Rows, reason: ParkReason) -> bool:
    return rows.inbox is not None and rows.parked[rows.inbox.payload] is reason


def settle(rows: Rows, answer: str, *, refused: bool = False) -> Rows | None:
    """The effect has this answer, and the message is pending again; None: refused."""
    intent, after = rows.intent, _reopened(rows)
    if after is None or intent is None or intent.state == "discarded" or _is_parked(rows, ParkReason.FOREIGN_COMMIT):
        return None
    if intent.state == "done":
        return after if (intent.answer, intent.refused) == (answer, refused) else None
    return after._replace(intent=intent._replace(state="done", answer=answer, refused=refused))


def settle_as_not_happened(rows: Rows, rules: Rules, *, over: bool) -> Rows | None:
    """The effect begins its next generation, and the message is pending again; None: refused.

    `over`: the provider can no longer act under the former key, or the person takes that risk.
    """
    intent, after = rows.intent, redrive(rows)
    if after is None or intent is None or _is_parked(rows, ParkReason.FOREIGN_COMMIT):
        return None
    did_not = intent.refused if intent.state == "done" else over
    if not did_not and rules.bug is not Bug.REOPENED_THOUGH_ANSWERED:
        return None
    return after._replace(intent=IntentRow(generation=intent.generation + 1))


def discard(rows: Rows, payload: int) -> Rows | None:
    """What is parked of this payload is over; None: nothing is. Another payload's inbox row, or one that is done, stays."""
    if rows.parked[payload] is None:
        return None
    row, intent = rows.inbox, rows.intent
    if row is not None and row.state == "parked" and row.payload == payload:
        rows = rows._replace(inbox=row._replace(state="discarded", token=row.token + 1, lapsed=False))
        if intent is not None and intent.state != "done":
            rows = rows._replace(intent=intent._replace(state="discarded"))
    return rows.park(payload, None)


def _reopened(rows: Rows) -> Rows | None:
    row = rows.inbox
    if row is None or row.state != "parked" or rows.parked[row.payload] is None:
        return None
    # The new token fences off every earlier worker; all takes so far are forgiven.
    token = row.token + 1
    pending = row._replace(state="pending", token=token, forgiven=token, lapsed=True)
    return rows._replace(inbox=pending, attempts=0, sessions_lost=0).park(row.payload, None)
