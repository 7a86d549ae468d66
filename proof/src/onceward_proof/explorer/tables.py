"""What each statement does to the rows of one message: the model of Postgres.

Written from the rules of the protocol and not from the SQL; `tests/proof/test_model_agrees.py` holds it to the real
statements, on random traces. Each function is one transaction: it gives the rows afterwards and what the worker hears.
BLOCKED: it waits, because another's open transaction holds the inbox row. A statement whose fence does not match what is
committed waits for nobody: it has lost.
"""

from __future__ import annotations

from typing import Final, NamedTuple, assert_never

from onceward.protocol import words as p
from onceward.protocol.reasons import ParkReason
from onceward_proof.explorer.cell import CALLABLE, LIMITS, Books, Intent, Row
from onceward_proof.explorer.rules import Rules

Result = tuple[Books, p.Event]
BLOCKED: Final = None
UNKNOWN: Final = (ParkReason.UNKNOWN, ParkReason.ANSWER_IS_NOT_JSON)  # reasons that leave the intent unknown


class Who(NamedTuple):
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

    old: bool = False
    dropped: bool = False
    key_age: int = CALLABLE
    locked: bool = False


def mine(books: Books, who: Who) -> bool:
    """The fence: state and token."""
    if books.row is None or who.rules.fence == "nothing":
        return books.row is not None
    return books.row.state == "pending" and (who.rules.fence == "state" or books.row.token == who.held)


# ---- the take --------------------------------------------------------------------------------------------------------


def take(books: Books, who: Who, clock: Clock) -> tuple[Row | None, p.Event]:
    """The row as the taker's transaction has it (None: not taken), and the event. An effectful take commits at once."""
    row, rules = books.row, who.rules
    state = "pending" if rules.shape == "effectful" else "done"
    if clock.locked and (rules.longer_window or not clock.old):
        return None, p.InFlight(1.0)  # the INSERT waits for the other's transaction, until the wait runs out
    if row is None:
        if _is_outside(rules, clock):
            return None, p.OutsideWindow()
        return Row(state, payload=who.payload), p.Taken(1, True, 1)
    refused = _refused(row, who, clock)
    if refused is not None:
        return None, refused
    taken = row._replace(state=state, token=row.token + 1, lapsed=False)
    return taken, p.Taken(taken.token, False, taken.token - taken.forgiven)


def _is_outside(rules: Rules, clock: Clock) -> bool:
    """An id that nobody has taken: too old for this worker's window, or, whatever that is, of a day that was retired."""
    if clock.dropped:
        return not (rules.default_partition or rules.retired_made_again)
    return clock.old and not rules.longer_window


def _refused(row: Row, who: Who, clock: Clock) -> p.Event | None:
    other = row.payload != who.payload
    if other and not who.rules.conflict_late:
        return p.Conflict()
    if row.state != "pending" or who.rules.zero_rows_skip:
        return p.Duplicate()
    if not row.lapsed or clock.locked:
        return p.InFlight(1.0)
    return p.Conflict() if other else None


# ---- the effect ------------------------------------------------------------------------------------------------------


def intend(books: Books, who: Who, clock: Clock) -> Result | None:
    if not mine(books, who) or books.row is None or books.row.lapsed:
        return books, p.FencedOff()
    if clock.locked:
        return BLOCKED
    intent = books.intent
    if intent is None:
        return books._replace(intent=Intent()), p.Intended()
    if intent.state == "done":
        return books, p.Recorded(intent.answer, intent.refused)
    return books, p.Intended() if intent.state == "pending" and clock.key_age == CALLABLE else p.Expired()


def record(books: Books, answer: str, refused: bool) -> Result:
    """Write-once, not fenced, and never blocked: it touches the intent alone."""
    intent = books.intent
    if intent is None:
        return books, p.DatabaseLost()  # dropped with its partition: somebody finished long ago
    if intent.state != "done":
        return books._replace(intent=Intent("done", answer, refused)), p.Recorded(answer, refused)
    if (intent.answer, intent.refused) == (answer, refused):
        return books, p.Recorded(answer, refused)
    return books, p.TwoAnswers(f"{intent.answer} and {answer}")


# ---- the finish ------------------------------------------------------------------------------------------------------


def begin(books: Books, who: Who, clock: Clock) -> tuple[Row | None, p.Event] | None:
    """The row as the finishing transaction has it, or None: lost."""
    if not mine(books, who) or books.row is None:
        return None, p.FencedOff()
    if clock.locked:
        return BLOCKED
    count = 0 if books.intent is None else 1
    open_count = 0 if books.intent is None or books.intent.state == "done" else 1
    return books.row._replace(state="done", lapsed=False), p.Finishing(count, open_count)


# ---- fail, park, yield -----------------------------------------------------------------------------------------------


def fail(books: Books, who: Who, clock: Clock, *, session_lost: bool = False) -> Result | None:
    """Counted, and the claim given back; when attempts, or sessions, ran out, parked in the same transaction."""
    if books.row is not None if who.rolled_back else not mine(books, who):
        return books, p.FencedOff()
    if clock.locked and not who.rolled_back:
        return BLOCKED
    after = books if who.rolled_back else _given_back(books)
    if session_lost:
        after = after._replace(sessions_lost=books.sessions_lost + 1)
    else:
        after = after._replace(attempts=books.attempts + 1)
    if who.rules.failed_row_stays:
        after = after._replace(row=Row("done", payload=who.payload))
    if after.attempts < LIMITS.attempts_max and after.sessions_lost < LIMITS.deliveries_max:
        return after, p.Counted(1.0)
    result = _park_holder(after, who, clock, ParkReason.SESSIONS_LOST if session_lost else ParkReason.ATTEMPTS_RAN_OUT)
    return (books, result[1]) if result is not None and not isinstance(result[1], p.Parked) else result


def park(books: Books, who: Who, clock: Clock, command: p.Park) -> Result | None:
    """Under the fence that the command names; BESIDE and ABSENT touch no inbox row, and so wait for none."""
    match command.fence:
        case p.Fence.BESIDE:
            return books.park(who.payload, command.reason), p.Parked()
        case p.Fence.ABSENT:
            return (books.park(who.payload, command.reason), p.Parked()) if books.row is None else (books, p.FencedOff())
        case p.Fence.FOREIGN_COMMIT if clock.locked:
            return BLOCKED
        case p.Fence.FOREIGN_COMMIT:
            if books.row is None and clock.dropped:
                return books, p.DatabaseLost()  # no partition for the row
            return _park_foreign(books, who, command.reason), p.Parked()
        case p.Fence.HOLDER_OR_BESIDE:
            result = _park_holder(books, who, clock, command.reason)
            lost = result is not None and isinstance(result[1], p.FencedOff)
            return (books.park(who.payload, command.reason), p.Parked()) if lost else result
        case p.Fence.HOLDER:
            return _park_holder(books, who, clock, command.reason)
        case _:
            assert_never(command.fence)


def _park_holder(books: Books, who: Who, clock: Clock, reason: ParkReason) -> Result | None:
    """Parked under the fence of whoever holds the message."""
    if clock.locked and (who.rolled_back or mine(books, who)):
        return BLOCKED
    if who.rolled_back:
        if books.row is not None:
            return books, p.FencedOff()
        if clock.dropped:
            return books, p.DatabaseLost()  # no partition for the row: refused, and redelivery finds it outside the window
        return books._replace(row=Row("parked", payload=who.payload)).park(who.payload, reason), p.Parked()
    row, intent = books.row, books.intent
    if not mine(books, who) or row is None:
        return books, p.FencedOff()
    if reason in UNKNOWN and intent is not None and intent.state == "pending":
        books = books._replace(intent=intent._replace(state="unknown"))
    row = row if who.rules.park_leaves_row else row._replace(state="parked", lapsed=False)
    return books._replace(row=row).park(who.payload, None if who.rules.parked_row_missing else reason), p.Parked()


def _park_foreign(books: Books, who: Who, reason: ParkReason) -> Books:
    """What the handler committed is parked from done; what it rolled back, from whatever it was before the take."""
    row, token = books.row, who.token
    if row is None:
        row = Row("parked", token=token, payload=who.payload)
    elif row.payload == who.payload and (row.token == token or (row.token == token - 1 and row.state == "pending")):
        row = row._replace(state="parked", lapsed=False)
    return books._replace(row=row).park(who.payload, reason)


def give_back(books: Books, who: Who, clock: Clock) -> Result | None:
    """The take is forgiven: it was no crash."""
    if clock.locked and mine(books, who):
        return BLOCKED
    return (_given_back(books), p.GivenBack()) if mine(books, who) else (books, p.FencedOff())


def _given_back(books: Books) -> Books:
    row = books.row
    return books if row is None else books._replace(row=row._replace(lapsed=True, forgiven=row.forgiven + 1))


# ---- people ----------------------------------------------------------------------------------------------------------


def redrive(books: Books) -> Books | None:
    """Pending again, under a new token, without attempts; None: refused."""
    row = books.row
    if row is None or row.state != "parked" or books.parked[row.payload] in (None, ParkReason.TWO_ANSWERS):
        return None
    token = row.token + 1
    pending = row._replace(state="pending", token=token, forgiven=token, lapsed=True)
    return books._replace(row=pending, attempts=0, sessions_lost=0).park(row.payload, None)
