"""The explorer's model of Postgres and the real one, side by side: each operation is done on both, and both must agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from psycopg import Connection
from tests.support import rows as books_of
from tests.support.deliveries import delivery, order
from tests.support.rows import CONSUMER
from tests.support.shop import AT_ONCE

from onceward.database import Database
from onceward.day_partitions import PARTITIONED, WINDOW_DEFAULT, day_of, make_partition_for, partition_name
from onceward.decisions import Decided, Decider, discard_parked, redrive, settle, settle_as_not_happened
from onceward.events import Listeners
from onceward.inbox import InboxTable
from onceward.intents import Intent, IntentResult, Intents, Record, RecordResult, record_json
from onceward.message import Message
from onceward.protocol import words as p
from onceward.protocol.delivery import Place, State
from onceward.protocol.reasons import ParkReason
from onceward.provider import STRIPE_V1
from onceward.runtime import Runtime
from onceward.transactions import Context, Transactions
from onceward.transport import Delivery
from onceward_proof.explorer import statements
from onceward_proof.explorer.message_state import LIMITS, InboxRow, KeyAge
from onceward_proof.explorer.message_state import Rows as ModelRows
from onceward_proof.explorer.rules import Rules
from onceward_proof.explorer.statements import Clock, Writer

Conn = Connection[Any]
Operation = tuple[Any, ...]  # what is called, and with what
PARKS: Final = (
    p.Park(ParkReason.UNKNOWN, unknown_n=1),
    p.Park(ParkReason.REFUSED),
    p.Park(ParkReason.OUTSIDE_WINDOW, fence=p.Fence.ABSENT),
    p.Park(ParkReason.CONFLICT, fence=p.Fence.BESIDE),
    p.Park(ParkReason.TWO_ANSWERS, fence=p.Fence.HOLDER_OR_BESIDE),
    p.Park(ParkReason.FOREIGN_COMMIT, fence=p.Fence.FOREIGN_COMMIT),
)


class Impatient(Database):
    """Does not wait long for a lock: what blocks in the model blocks here too, but nobody has a second for each."""

    def _settings(self, conn: Conn) -> dict[str, str]:
        return super()._settings(conn) | {"lock_timeout": "25ms"}


class NoHeartbeat:
    """Leases lapse when the trace says so."""

    def claimed(self, delivery: Delivery, message: Message, token: int) -> None: ...

    def done(self, delivery: Delivery) -> None: ...

    def is_lost(self, delivery: Delivery) -> bool:
        return delivery is None


class Holder(NamedTuple):
    """One worker: what it writes with, and the row as its open transaction has it."""

    context: Context
    transactions: Transactions
    state: State
    payload: int
    open: InboxRow | None = None

    def carry_out(self, command: p.Transaction) -> p.Event:
        return self.transactions.carry_out(self.state, command)


class Pair:
    """One message in the model and in Postgres, and two workers at it."""

    def __init__(self, runtime: Runtime, db: Conn, shape: p.Shape, met: Counter[str]) -> None:
        self.runtime, self.db, self.met = runtime, db, met
        self.rules = Rules(shape=shape)
        first = order({"payload": 0})
        self.messages = (first, order({"payload": 1}, id=first.id))
        self.books = ModelRows()
        self.old = self.dropped = False
        self.key_age = KeyAge.CALLABLE
        self.reopened_for = -1  # which worker has read that a person began the effect again
        self.holders: list[Holder | None] = [None, None]
        runtime.inbox.window = WINDOW_DEFAULT

    # ---- what may be done now ------------------------------------------------------------------------------------------

    def possible(self) -> list[Operation]:
        """Every operation that somebody could do now; what leads further comes more than once."""
        found: list[Operation] = []
        row, intent = self.books.inbox, self.books.intent
        if row is not None and not self._locked():
            found += [(self.redrive,)] * (3 if row.state == "parked" else 1)
            found += [(self.discard, 0)] * (3 if row.state == "parked" else 1) + [(self.discard, 1)]
            found += [(self.lapse,)] * (4 if row.state == "pending" and not row.lapsed else 0)
            found += [] if self.old else [(self.id_is_old,)]
        if intent is not None and self.key_age == KeyAge.CALLABLE:
            found += [(self.key_expires,)] * 6
        if intent is not None and not self._locked():
            weight = 3 if row is not None and row.state == "parked" else 1
            found += [
                (self.settle, 0),
                (self.settle, 1),
                *[(self.did_not_happen, force) for force in (True, False)],
            ] * weight
            found += [(self.key_is_forgotten,)] if self.key_age == KeyAge.EXPIRED else []
        if self.old and not self.dropped:
            found += [(self.drop_partition,)] * 3
        for index, holder in enumerate(self.holders):
            found += self._possible_of(index, holder)
        return found

    def _possible_of(self, index: int, holder: Holder | None) -> list[Operation]:
        if holder is None:
            begun_again = self.books.intent is not None and self.books.intent.generation > 1
            return [(self.take, index, 0)] * (24 if begun_again else 4) + [(self.take, index, 1)]
        if holder.open is not None:
            ends = (self.commit_after_an_error, self.commit_by_hand, self.roll_back_by_hand, self.crash, self.fail)
            return [(self.commit, index)] * 3 + [(end, index) for end in ends]
        steps: list[Operation] = [(self.fail, index), (self.crash, index), (self.lose_session, index)]
        steps += [(self.park, index, park) for park in PARKS]
        if self.rules.shape == "effectful":
            begun_again = self.books.intent is not None and self.books.intent.generation > 1
            steps += [(self.give_back, index), *[(self.finish, index)] * 4]
            steps += [(self.intend, index)] * (24 if begun_again else 6)
            steps += (
                [(self.record, index, 0), (self.record, index, 0), (self.record, index, 1)] if self.books.intent else []
            )
            steps += [(self.record, index, 0)] if self.dropped else []
            discarded = self.books.intent is not None and self.books.intent.state == "discarded"
            steps += [(self.record, index, 0)] * (24 if discarded else 0)
        return steps

    # ---- operations; one that nobody would do now does nothing ---------------------------------------------------------

    def take(self, index: int, payload: int) -> None:
        self.crash(index)
        message = self.messages[payload]
        state = State(self.rules.shape, LIMITS, at=Place.TAKING)
        context = Context(self.runtime, message, delivery(message))
        transactions = Transactions(context)
        event = transactions.carry_out(state, p.Take())
        row, expected = statements.take(self.books, self._who(state, payload), self._clock())
        self._agree("take", event, expected)
        if not isinstance(event, p.Taken) or row is None:
            return
        state = state._replace(token=event.token, fresh=event.fresh)
        if row.state == "pending":
            self.books = self.books._replace(inbox=row)
        self.holders[index] = Holder(context, transactions, state, payload, row if row.state == "done" else None)

    def intend(self, index: int) -> None:
        holder = self.holders[index]
        if holder is None or holder.open or self.rules.shape == "transactional":
            return
        before = self.books.intent
        # As production does: only after it was read as begun again.
        checked = self.reopened_for == index
        with self.runtime.database.connection() as conn:
            try:
                intent = self.runtime.intents.intend(
                    conn, self.messages[holder.payload], take=holder.context.take, n=1, name="charge",
                    request={}, provider=STRIPE_V1, checked=checked,
                )  # fmt: skip
                event: p.Event = _intent_event(intent)
            except psycopg.Error:
                event = p.DatabaseLost()
        expected = statements.intend(self.books, self._who_of(holder), self._clock(), checked=checked)
        self._written("intend", event, expected)
        self.reopened_for = index if isinstance(event, p.Reopened) else -1
        if before is None and self.books.intent is not None:
            self.key_age = KeyAge.CALLABLE

    def record(self, index: int, payload: int) -> None:
        holder = self.holders[index]
        if holder is None or holder.open or self.rules.shape == "transactional" or not (self.books.intent or self.dropped):
            return
        answer, refused = f'"c{payload}"', payload == 1
        with self.runtime.database.connection() as conn:
            try:
                record = record_json(
                    self.runtime.intents, conn, self.messages[0], n=1, answer_json=answer, refused=refused, key=None
                )
                event: p.Event = _record_event(record, answer, refused=refused)
            except psycopg.Error:
                event = p.DatabaseLost()
        self._written("record", event, statements.record(self.books, self.rules, answer, refused))

    def finish(self, index: int) -> None:
        holder = self.holders[index]
        if holder is None or holder.open or self.rules.shape == "transactional":
            return
        event = holder.carry_out(p.Finish())
        expected = statements.finish(self.books, self._who_of(holder), self._clock())
        row, said = (None, p.DatabaseLost()) if expected is None else expected
        self._agree("finish", event, said)
        self.holders[index] = holder._replace(open=row)

    def commit(self, index: int) -> None:
        self._end(index, "", p.Committed(), committed=True)

    def commit_after_an_error(self, index: int) -> None:
        self._end(index, "SELECT 1/0", p.Aborted(), committed=False)

    def commit_by_hand(self, index: int) -> None:
        self._end(index, "COMMIT", p.ForeignCommit(), committed=True)

    def roll_back_by_hand(self, index: int) -> None:
        self._end(index, "ROLLBACK", p.ForeignCommit(), committed=False)

    def _end(self, index: int, before: str, expected: p.Event, *, committed: bool) -> None:
        holder = self.holders[index]
        if holder is None or holder.open is None or holder.transactions.session.conn is None:
            return
        if before:
            try:
                holder.transactions.session.conn.execute(before.encode())
            except psycopg.errors.DivisionByZero:
                self.met["a swallowed error"] += 1
        self._agree("commit", holder.carry_out(p.Commit()), expected)
        if committed:
            self.books = self.books._replace(inbox=holder.open)
        self.holders[index] = holder._replace(open=None)

    def crash(self, index: int) -> None:
        holder = self.holders[index]
        if holder is not None:
            holder.transactions.session.close()
            self.holders[index] = None

    def fail(self, index: int) -> None:
        holder = self._rolled_back(index)
        if holder is not None:
            event = holder.carry_out(p.Fail("x"))
            self._written("fail", event, statements.fail(self.books, self._who_of(holder), self._clock()))

    def lose_session(self, index: int) -> None:
        holder = self._rolled_back(index)
        if holder is not None:
            event = holder.carry_out(p.Fail("x", session_lost=True))
            expected = statements.fail(self.books, self._who_of(holder), self._clock(), session_lost=True)
            self._written("lose session", event, expected)

    def give_back(self, index: int) -> None:
        holder = self._rolled_back(index)
        if holder is not None and self.rules.shape == "effectful":
            event = holder.carry_out(p.GiveBack())
            self._written("give back", event, statements.give_back(self.books, self._who_of(holder), self._clock()))

    def park(self, index: int, command: p.Park) -> None:
        holder = self._rolled_back(index)
        if holder is not None:
            event = holder.carry_out(command)
            self._written(
                f"park {command.fence.value}",
                event,
                statements.park(self.books, self._who_of(holder), self._clock(), command),
            )

    def redrive(self) -> None:
        if self._locked():
            return
        self._decided("redrive", redrive(self.db, self.messages[0].id, consumer=CONSUMER), statements.redrive(self.books))

    def settle(self, payload: int) -> None:
        if self._locked():
            return
        answer, refused = f"c{payload}", payload == 1
        decided = settle(self.db, self.messages[0].id, consumer=CONSUMER, effect="charge", answer=answer, refused=refused)
        self._decided("settle", decided, statements.settle(self.books, f'"{answer}"', refused=refused))

    def did_not_happen(self, force: bool) -> None:
        if self._locked():
            return
        decided = settle_as_not_happened(self.db, self.messages[0].id, consumer=CONSUMER, effect="charge", force=force)
        over = force or self.key_age == KeyAge.FORGOTTEN
        expected = statements.settle_as_not_happened(self.books, self.rules, over=over)
        self._decided("did not happen", decided, expected)
        if expected is not None:
            self.key_age = KeyAge.CALLABLE

    def discard(self, payload: int) -> None:
        if self._locked():
            return
        fingerprint = self.messages[payload].fingerprint().hex()
        decided = discard_parked(
            self.db, self.messages[0].id, consumer=CONSUMER, fingerprint=fingerprint, decider=Decider(reason="enough")
        )
        self._decided("discard", decided, statements.discard(self.books, payload))

    def _decided(self, what: str, decided: Decided, expected: ModelRows | None) -> None:
        assert decided.stands == (expected is not None), decided
        self.met[what if expected else f"{what} refused"] += 1
        self.books = expected or self.books
        assert not decided.token or (self.books.inbox is not None and self.books.inbox.token == decided.token)

    # ---- what happens by itself ----------------------------------------------------------------------------------------

    def lapse(self) -> None:
        row = self.books.inbox
        if row is not None and row.state == "pending" and not self._locked():
            books_of.lapse(self.db, self.messages[0])
            self.books = self.books._replace(inbox=row._replace(lapsed=True))

    def key_expires(self) -> None:
        if self.books.intent is not None:
            books_of.age_intents(self.db, self.messages[0], timedelta(hours=23.5))
            self.key_age = KeyAge.EXPIRED

    def key_is_forgotten(self) -> None:
        if self.key_age == KeyAge.EXPIRED:
            books_of.age_intents(self.db, self.messages[0], timedelta(hours=25))
            self.key_age = KeyAge.FORGOTTEN

    def id_is_old(self) -> None:
        """The window is made so short that the id has left it."""
        if not self._locked():
            self.runtime.inbox.window = timedelta(microseconds=1)
            self.old = True

    def drop_partition(self) -> None:
        row, intent = self.books.inbox, self.books.intent
        over = ("done", "discarded")
        finished = (row is None or row.state in over) and (intent is None or intent.state in over)
        if self.old and finished and not self._locked() and not self.dropped:
            retire(self.db, self.messages[0])
            self.books = self.books._replace(inbox=None, intent=None)
            self.dropped = True

    # ---- agreement -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        for index in (0, 1):
            self.crash(index)
        self.runtime.inbox.window = WINDOW_DEFAULT
        if self.dropped:
            make_partition_for(self.db, self.messages[0].id, schema="onceward")

    def _rolled_back(self, index: int) -> Holder | None:
        holder = self.holders[index]
        if holder is not None:
            holder = self.holders[index] = holder._replace(open=None)
        return holder

    def _locked(self) -> bool:
        return any(holder is not None and holder.open is not None for holder in self.holders)

    def _clock(self) -> Clock:
        return Clock(self.old, self.dropped, self.key_age, self._locked())

    def _who_of(self, holder: Holder) -> Writer:
        return self._who(holder.state, holder.payload)

    def _who(self, state: State, payload: int) -> Writer:
        return Writer(self.rules, state.token, state.fresh, payload)

    def _written(self, what: str, event: p.Event, expected: statements.Result | None) -> None:
        """None: the model says that it waits, and here the wait ran out."""
        books, said = (self.books, p.DatabaseLost()) if expected is None else expected
        if expected is None:
            self.met[f"{what} blocked"] += 1
        self._agree(what, event, said)
        self.books = books

    def _agree(self, what: str, event: p.Event, expected: p.Event) -> None:
        self.met[f"{what}: {type(event).__name__}"] += 1
        assert _known(event) == _known(expected), f"{what}: Postgres says {event}, the model {expected}"

    def agree(self) -> None:
        """The committed rows are those of the model."""
        assert self._inbox_row() == self.books.inbox
        assert books_of.attempts(self.db, self.messages[0]) == self.books.attempts
        assert books_of.sessions_lost(self.db, self.messages[0]) == self.books.sessions_lost
        assert self._parked() == self.books.parked
        intent = self.books.intent
        expected = [] if intent is None else [(intent.state, intent.answer or None, intent.refused, intent.generation)]
        effects = books_of.intents(self.db, self.messages[0])
        assert [(row.state, row.text, row.refused, row.generation) for row in effects] == expected

    def _inbox_row(self) -> InboxRow | None:
        row = books_of.inbox_row(self.db, self.messages[0])
        if row is None:
            return None
        payload = int(row.fingerprint == self.messages[1].fingerprint())
        return InboxRow(row.state, row.token, row.state == "pending" and not row.leased, row.forgiven, payload)

    def _parked(self) -> tuple[ParkReason | None, ParkReason | None]:
        statement = "SELECT fingerprint, reason FROM onceward.parked WHERE message_id = %s"
        reasons = dict(self.db.execute(statement, (str(UUID(self.messages[0].id)),)).fetchall())
        first, second = (reasons.get(message.fingerprint()) for message in self.messages)
        return first and ParkReason(first), second and ParkReason(second)


def _known(event: p.Event) -> p.Event:
    """The event without what the model cannot know: how long to wait, and the words of a detail."""
    match event:
        case p.InFlight():
            return p.InFlight(0.0)
        case p.Counted():
            return p.Counted(0.0)
        case p.Conflict() | p.OutsideWindow():
            return type(event)()
        case p.TwoAnswers() | p.AnsweredAfterDiscard():
            return type(event)("")
        case _:
            return event


def _intent_event(intent: Intent) -> p.Event:
    """As the performer tells it to the protocol."""
    match intent.result:
        case IntentResult.CALL:
            return p.Intended()
        case IntentResult.ANSWERED:
            return p.Recorded(intent.answer_json, intent.refused)
        case IntentResult.CHECK:
            return p.Reopened()
        case IntentResult.LOOK_UP:
            return p.Expired()
        case IntentResult.CHANGED:
            return p.Changed(intent.detail)
        case IntentResult.LEASE_LOST:
            return p.FencedOff()


def _record_event(record: Record, answer: str, *, refused: bool) -> p.Event:
    match record.result:
        case RecordResult.RECORDED:
            return p.Recorded(answer, refused)
        case RecordResult.TWO_ANSWERS:
            return p.TwoAnswers(record.detail)
        case RecordResult.SUPERSEDED:
            return p.FencedOff()
        case RecordResult.AFTER_DISCARD:
            return p.AnsweredAfterDiscard(record.detail)


def retire(db: Conn, message: Message) -> None:
    """Its partitions are dropped, whatever else is in them, and without the memory of it: the next run needs them again."""
    day = day_of(UUID(message.id))
    db.execute("".join(f"DROP TABLE onceward.{partition_name(table, day)};" for table in PARTITIONED).encode())


@contextmanager
def runtime(dsn: str) -> Iterator[Runtime]:
    """A consumer's runtime without its threads."""
    database = Impatient(dsn, size=4)
    try:
        yield Runtime(
            inbox=InboxTable(CONSUMER, lease_seconds=3600.0),
            intents=Intents(CONSUMER),
            database=database,
            limits=LIMITS,
            backoff=AT_ONCE,
            listeners=Listeners(()),
            keeper=NoHeartbeat(),
            nudge=lambda: None,
            partition_late=lambda _message: None,
        )
    finally:
        database.close()
