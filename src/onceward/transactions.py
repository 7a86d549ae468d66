"""The transactions of one delivery: take, finish, commit, fail, park, give back.

Each answers with what happened. What follows from that is `protocol.delivery`'s to say; here stands only how it is asked of
the database. At most one connection is held at a time, and none while a provider is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, LiteralString, TypeVar, assert_never

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from onceward.database import is_broken, one_tuple
from onceward.inbox import Take, TakeResult, locked_out, misses_day
from onceward.logs import say, say_failed, say_parked, with_trace
from onceward.message import Message
from onceward.outbox import pop_published
from onceward.protocol import words as p
from onceward.protocol.delivery import State, after_failure
from onceward.protocol.words import Fence
from onceward.runtime import Runtime
from onceward.session import begin, commit_guarded, discard, left_open, put_back
from onceward.statements import storable
from onceward.transport import Delivery

IS_IN_TRANSACTION: Final = "SELECT coalesce(pg_current_xact_id_if_assigned()::text = %(transaction)s, false)"
Row = tuple[Any, ...]
Written = TypeVar("Written")
NotWritten = p.FencedOff | p.DatabaseLost


class Context:
    """What the parts of one delivery share: what was taken, and what is said of it."""

    def __init__(self, runtime: Runtime, message: Message, delivery: Delivery) -> None:
        self.runtime = runtime
        self.message = message
        self.delivery = delivery
        self.take = Take(TakeResult.IN_FLIGHT)  # the fence; nothing is taken yet
        self.failure: BaseException | None = None  # what the handler, or its call, raised

    @property
    def statements(self) -> Mapping[str, LiteralString]:
        return self.runtime.inbox.statements

    @property
    def key(self) -> dict[str, Any]:
        """The message's row, as the parameters of every statement name it."""
        return self.runtime.inbox.key(self.message)

    def emit(self, point: str, **fields: Any) -> None:
        self.runtime.listeners.emit(point, self.runtime.inbox.consumer, self.message.id, **fields)

    def say(self, level: int, text: str, *args: object, failed: bool = False, **fields: object) -> None:
        """One line about this message; `failed`: with the traceback of what its handler raised."""
        failure = self.failure if failed else None
        say(self.runtime.inbox.consumer, self.message, level, text, *args, failure=failure, **fields)

    def database_lost(self, what: str, error: Exception) -> p.DatabaseLost:
        """The event, and one line about the error, which costs only time."""
        text = "%s; the message will be redelivered: %s"
        self.say(logging.WARNING, text, what, error, next="redelivery", reason=str(error))
        return p.DatabaseLost()


class HandlerSession:
    """The connection of the handler's transaction, from BEGIN until it is put back as it was."""

    def __init__(self, context: Context) -> None:
        self.conn: Connection[Any] | None = None
        self.transaction = ""  # the id of the one that holds the handler's writes
        self.cleaning: Sequence[str] = ()  # what clears away that an earlier handler left in this session
        self.lost = False
        self.discarded = False  # closed by us, because the handler left something under way on it
        self._context = context
        self._database = context.runtime.database
        self._handed_out = False  # a handler has had the connection: its session is to be put back
        self._held = ExitStack()

    def open(self, *, begin_transaction: bool) -> Connection[Any]:
        if self.conn is None:
            self.conn = self._held.enter_context(self._database.connection())
            if begin_transaction and not begin(self.conn):
                raise psycopg.OperationalError(f"BEGIN: {self.conn.pgconn.get_error_message()}")
        return self.conn

    def hand_out(self) -> Connection[Any]:
        """The connection, for the handler. Its session is reset before the next message."""
        if self.conn is None:
            raise AssertionError("no transaction is open")
        self._handed_out = True
        # A borrowed session is its owner's, and so is what was left in it.
        if self.cleaning and self._database.putting_back(self.conn):
            self.conn.execute("; ".join(self.cleaning).encode())
        return self.conn

    def commit(self) -> p.Committed | p.Aborted | p.ForeignCommit | p.Ambiguous:
        if self.conn is None:
            raise AssertionError("no transaction is open")
        event = commit_guarded(self.conn, self.transaction, self._database.putting_back(self.conn))
        if isinstance(event, p.Committed):
            self._handed_out = False  # COMMIT's own round trip has put the session back
        return event

    def roll_back(self) -> None:
        """Whatever is open is undone; a connection that is gone has undone it itself."""
        conn = self.conn
        if conn is None or is_broken(conn) or conn.info.transaction_status == TransactionStatus.IDLE:
            return
        try:
            conn.execute("ROLLBACK")
        except psycopg.Error as error:
            text = "the connection was lost during ROLLBACK; the server rolls back by itself: %s"
            self._context.say(logging.WARNING, text, error)

    def close(self) -> bool:
        """Roll back what is open and return the connection. True: something was published on it."""
        conn = self.conn
        if conn is None:
            return False
        if self._handed_out and left_open(conn):
            discard(conn)  # to speak on it would wait for ever
        self.roll_back()
        if self._handed_out and not is_broken(conn):
            put_back(conn, self._database.putting_back(conn))
        self._handed_out = False
        self.conn = None
        # Before the connection is anybody else's: another thread may publish on it at once.
        published = pop_published(conn)
        self._held.close()
        return published

    def ask(self, statement: str, params: dict[str, Any]) -> Row | None:
        """One row, on this connection, or on another where this one is gone."""
        if self.conn is not None:
            return one_tuple(self.conn, statement, params)
        self._database.forget_broken()  # what took our connection may have taken them all
        with self._database.connection() as conn:
            try:
                return one_tuple(conn, statement, params)
            except psycopg.OperationalError as error:
                if not is_broken(conn, error):
                    raise
        # The pool was making that one when ours was lost, and it died as well. The next is a fresh one.
        self._database.forget_broken()
        with self._database.connection() as conn:
            return one_tuple(conn, statement, params)


class TakeTransactions:
    """The take, and what keeps a delivery that did not end in a crash from counting as one."""

    def __init__(self, context: Context, session: HandlerSession) -> None:
        self._context = context
        self._session = session
        self._inbox = context.runtime.inbox

    def take(self, state: State) -> p.Event:
        """The message is ours, or the event says whose it is.

        Transactional: the row is done, in a transaction that stays open. Effectful: it is committed as pending.

        Crash after an effectful take: the lease lapses, and a redelivery takes over.
        """
        context, transactional = self._context, state.shape == "transactional"
        lock_timeout = context.runtime.database.lock_timeout
        params = self._inbox.take_params(context.message, "done" if transactional else "pending", lock_timeout=lock_timeout)
        try:
            take = self._take_on_a_live_session(params, in_transaction=transactional)
            excused = self._excused(state)
        except psycopg.Error as error:
            self._session.close()
            return context.database_lost("the message was not taken", error)
        context.take = take
        self._session.transaction = take.transaction if transactional else ""
        self._session.cleaning = take.cleaning
        return self._event(state, take, excused)

    def _take_on_a_live_session(self, params: dict[str, Any], *, in_transaction: bool) -> Take:
        """The take; once more when its connection turned out to be gone."""
        try:
            return self._take_guarded(params, in_transaction=in_transaction)
        except psycopg.OperationalError as error:
            if self._session.conn is None or not is_broken(self._session.conn, error):
                raise
        # Something on the way ended the connection while it was idle. Without a second try, each message of a quiet hour
        # would wait for its redelivery, and meet the next dead connection. A claim that was committed before its reply was
        # lost is found in flight by the second try, and comes again.
        self._session.close()
        self._context.runtime.database.forget_broken()
        return self._take_guarded(params, in_transaction=in_transaction)

    def _take_guarded(self, params: dict[str, Any], *, in_transaction: bool) -> Take:
        """The take, in the handler's transaction or (autocommit) in one of its own.

        Unless it is TAKEN there, nothing is left open.
        """
        try:
            conn = self._session.open(begin_transaction=in_transaction)
            take = self._inbox.take_with(conn, params)
        except psycopg.errors.LockNotAvailable:
            take = locked_out()
        except psycopg.errors.CheckViolation as error:
            if not misses_day(error, params):
                raise
            take = self._take_without_partition(params)
        if take.result is not TakeResult.TAKEN or not in_transaction:
            self._session.close()
        return take

    def _take_without_partition(self, params: dict[str, Any]) -> Take:
        context = self._context
        self._session.close()
        with context.runtime.database.connection() as conn:
            take = self._inbox.without_partition(conn, params)
        if take is not None:
            return take
        context.say(logging.ERROR, "its partition is missing because upkeep is late; creating it now")
        context.emit("upkeep.partition_late")
        context.runtime.partition_late(context.message)
        return Take(TakeResult.IN_FLIGHT, retry_after_seconds=0.0, detail="its partition was missing")

    def _event(self, state: State, take: Take, excused: int) -> p.Event:
        context = self._context
        match take.result:
            case TakeResult.TAKEN:
                if state.shape == "effectful":
                    context.runtime.keeper.claimed(context.delivery, context.message, take.token)
                    context.emit("consumer.claimed", token=take.token)
                else:
                    context.emit("consumer.taken", token=take.token)
                return p.Taken(take.token, take.fresh, take.takes, excused, take.intents)
            case TakeResult.DUPLICATE:
                context.emit("consumer.duplicate", state=take.detail)
                return p.Duplicate()
            case TakeResult.IN_FLIGHT:
                context.emit("consumer.in_flight", seconds=take.retry_after_seconds)
                self.excuse(state, f"in flight: {take.detail}")
                return p.InFlight(take.retry_after_seconds)
            case TakeResult.CONFLICT:
                return p.Conflict(take.detail)
            case TakeResult.OUTSIDE_WINDOW:
                return p.OutsideWindow(take.detail)
            case _:
                assert_never(take.result)

    def _excused(self, state: State) -> int:
        """How many of the queue's deliveries were no crash."""
        context, conn = self._context, self._session.conn
        # Asked only where the queue's count would make the message poison: it is a round trip, and hardly ever needed.
        if state.shape == "effectful" or context.delivery.count <= state.limits.deliveries_max or conn is None:
            return 0
        row = one_tuple(conn, context.statements["excused"], context.key)
        return 0 if row is None else int(row[0])

    def excuse(self, state: State, why: str) -> None:
        """This delivery is counted as no crash. Crash before it, or no database: it counts as one."""
        context = self._context
        if state.shape == "effectful" or not context.delivery.count:
            return  # its takes are counted in its row, and forgiven there; or the queue counts nothing
        self._session.close()
        try:
            with context.runtime.database.connection() as conn:
                conn.execute(context.statements["excuse"], context.key | {"error": why})
        except psycopg.Error as error:
            context.database_lost("this delivery counts as a crash", error)


class HandlerTransaction:
    """The handler's transaction: how it begins and ends, and whether it is still ours."""

    def __init__(self, context: Context, session: HandlerSession) -> None:
        self._context = context
        self._session = session

    def finish(self) -> p.Event:
        """The transaction is open, and the claimed row is done in it.

        Crash: it is rolled back, the claim lapses, and the redelivery runs the handler again.
        """
        context, session = self._context, self._session
        fence = {"token": context.take.token, "lock_timeout": context.runtime.database.lock_timeout}
        try:
            conn = session.open(begin_transaction=True)
            row = one_tuple(conn, context.statements["inbox_finish"], context.key | fence)
        except psycopg.Error as error:
            session.close()
            return context.database_lost("the handler's transaction was not opened", error)
        if row is None:
            session.close()
            context.emit("consumer.lease_lost")
            return p.FencedOff()
        intents, intents_open, session.transaction, session.cleaning = row[:4]
        context.emit("consumer.finishing", token=context.take.token)
        return p.Finishing(intents, intents_open)

    def commit(self) -> p.Event:
        """The row is done, with the handler's writes, or the event says why not.

        Crash before COMMIT: nothing is written. Crash after it: the redelivery is turned away as a duplicate.
        """
        context, session = self._context, self._session
        context.emit("consumer.handled")
        if session.conn is None or is_broken(session.conn):
            return p.ForeignCommit() if self._is_committed() else p.DatabaseLost()
        event: p.Event = session.commit()
        if isinstance(event, p.Committed):
            context.emit("consumer.committed")
        elif isinstance(event, p.Aborted) and self._is_committed():
            event = p.ForeignCommit()
        # After COMMIT, and never inside the transaction: a NOTIFY there would make all commits wait for each other.
        if session.close() and isinstance(event, p.Committed):
            context.runtime.nudge()
        return event

    def is_ours(self) -> bool:
        """False: the handler has ended the transaction that we opened.

        Asked after the handler raised. A transaction that is broken is rolled back by the question.
        """
        session, conn = self._session, self._session.conn
        if conn is None:
            return True
        if left_open(conn):
            session.discarded = True
            discard(conn)  # to ask on it would wait for ever
        # An aborted transaction answers no question; whether it is ours, only the row can tell then.
        if is_broken(conn) or conn.info.transaction_status == TransactionStatus.INERROR:
            return not self._is_committed()
        if conn.info.transaction_status == TransactionStatus.IDLE:
            return False
        try:
            row = one_tuple(conn, IS_IN_TRANSACTION, {"transaction": session.transaction})
        except psycopg.Error as error:  # also the server's own limit on idling: no OperationalError
            text = "the connection was lost while its transaction was checked; asking the inbox row instead: %s"
            self._context.say(logging.WARNING, text, error)
            return not self._is_committed()
        return row is None or row[0] is True

    def _is_committed(self) -> bool:
        """The handler committed its writes by itself.

        Crash before this, or no server to ask: they stand, and the redelivery is a duplicate (a named non-guarantee).
        """
        context, session = self._context, self._session
        if not session.transaction:
            return False
        # The row that was written with them tells. Our own transaction must end first, or the question would be asked
        # inside it, where the row is done in any case.
        session.roll_back()
        session.lost = session.lost or (session.conn is not None and is_broken(session.conn))
        if session.lost:
            session.close()
        inbox = context.runtime.inbox
        whose = {"token": context.take.token, "worker": inbox.worker, "transaction": session.transaction}
        try:
            row = session.ask(context.statements["inbox_committed"], context.key | whose)
        except psycopg.Error as error:
            text = "cannot tell whether the handler committed by itself; taking it that it did not: %s"
            context.say(logging.WARNING, text, error)
            return False
        return row is not None and row[0] is True


class OutcomeTransactions:
    """How a delivery ends that does not commit: failed, parked or given back.

    Each is one transaction of ours.
    """

    def __init__(self, context: Context, session: HandlerSession) -> None:
        self._context = context
        self._session = session

    def fail(self, state: State, command: p.Fail) -> p.Event:
        """The failure is counted and the claim given back; or, at the last one, parked.

        Crash before it: nothing is counted. Crash after it: the queue delivers again, or is told of a duplicate.
        """
        context, limits = self._context, state.limits

        def write(conn: Connection[Any]) -> tuple[int, int, p.Park | None] | None:
            row = self._count(conn, state, command)
            if row is None:
                return None
            attempts, sessions_lost = row[:2]
            park = after_failure(limits, command, attempts=attempts, sessions_lost=sessions_lost)
            if park is not None and self._park_as_holder(conn, state, self._park_params(park)) is None:
                return None
            return attempts, sessions_lost, park

        written = self._write(write)
        if isinstance(written, NotWritten):
            return written
        attempts, sessions_lost, park = written
        context.emit("consumer.failed", error=command.error)
        if park is not None:
            return self._parked(park)
        delay_seconds = context.runtime.backoff.seconds_after(attempts + sessions_lost)
        say_failed(context.say, command, attempts, limits.attempts_max, delay_seconds)
        return p.Counted(delay_seconds)

    def park(self, state: State, command: p.Park) -> p.Event:
        """The message is parked under the fence of `command`.

        Crash before it: the redelivery comes here again. Crash after it: the redelivery is a duplicate.
        """
        row = self._write(lambda conn: self._park_fenced(conn, state, command.fence, self._park_params(command)))
        return row if isinstance(row, NotWritten) else self._parked(command)

    def give_back(self) -> p.Event:
        """The claim is given back; nothing is counted.

        Crash before it: the lease lapses, and this take counts as one that ended in nothing.
        """
        context = self._context
        params = context.key | {"token": context.take.token}
        row = self._write(lambda conn: one_tuple(conn, context.statements["inbox_give_back"], params))
        return row if isinstance(row, NotWritten) else p.GivenBack()

    def _count(self, conn: Connection[Any], state: State, command: p.Fail) -> Row | None:
        context = self._context
        params = context.key | {
            "failed": int(not command.session_lost),
            "session_lost": int(command.session_lost),
            "error": storable(with_trace(command.error, context.failure)),
        }
        if _has_no_row(state):
            return one_tuple(conn, context.statements["fail_absent"], params)
        return one_tuple(conn, context.statements["fail_held"], params | {"token": _token_held(state)})

    def _park_fenced(self, conn: Connection[Any], state: State, fence: Fence, params: dict[str, Any]) -> Row | None:
        statements = self._context.statements
        match fence:
            case Fence.HOLDER:
                return self._park_as_holder(conn, state, params)
            case Fence.ABSENT:
                return self._park_absent(conn, params)
            case Fence.BESIDE:
                return one_tuple(conn, statements["park_beside"], params)
            case Fence.HOLDER_OR_BESIDE:
                row = self._park_as_holder(conn, state, params)
                return row if row is not None else one_tuple(conn, statements["park_beside"], params)
            case Fence.FOREIGN_COMMIT:
                token = {"token": self._context.take.token}
                return one_tuple(conn, statements["park_foreign_commit"], params | token)
            case _:
                assert_never(fence)

    def _park_as_holder(self, conn: Connection[Any], state: State, params: dict[str, Any]) -> Row | None:
        statements = self._context.statements
        if _has_no_row(state):
            return one_tuple(conn, statements["park_absent"], params)
        return one_tuple(conn, statements["park_held"], params | {"token": _token_held(state)})

    def _park_absent(self, conn: Connection[Any], params: dict[str, Any]) -> Row | None:
        """Outside the window: parked without an inbox row, for it may be a duplicate."""
        statements = self._context.statements
        if self._context.take.early:
            # Its time is still to come, so it gets its row, as parked: else a copy that comes later would be inside the
            # window, and be done beside the parked one. Days ahead there is no partition yet for such a row.
            try:
                with conn.transaction():
                    return one_tuple(conn, statements["park_absent"], params)
            except psycopg.errors.CheckViolation as error:
                if error.diag.constraint_name is not None:
                    raise
        return one_tuple(conn, statements["park_outside"], params)

    def _park_params(self, command: p.Park) -> dict[str, Any]:
        context = self._context
        detail = with_trace(command.detail, context.failure)
        inbox, source = context.runtime.inbox, context.delivery.source
        return inbox.park_params(context.message, source, command.reason, detail) | {"unknown_n": command.unknown_n}

    def _write(self, write: Callable[[Connection[Any]], Written | None]) -> Written | NotWritten:
        """One transaction of ours, after whatever was open is rolled back.

        `write` returns None when a statement of it was fenced off: then nothing of it is written.
        """
        context = self._context
        self._session.close()
        # The heartbeat lets go of the claim first: the lease is given back here, and must not be extended behind our back.
        context.runtime.keeper.done(context.delivery)
        try:
            with context.runtime.database.connection() as conn:
                with conn.transaction() as transaction:
                    written = write(conn)
                    if written is None:
                        raise psycopg.Rollback(transaction)
                return p.FencedOff() if written is None else written
        except psycopg.Error as error:
            return context.database_lost("the outcome was not written", error)

    def _parked(self, command: p.Park) -> p.Parked:
        self._context.emit("consumer.parked", reason=command.reason.value)
        say_parked(self._context.say, command)
        return p.Parked()


def _has_no_row(state: State) -> bool:
    """The take made the row and was rolled back: the fence is that there is still none."""
    return state.shape == "transactional" and state.fresh


def _token_held(state: State) -> int:
    """The token that the row must have: the claim's.

    Once a transactional take-over is rolled back, it is the one before it.
    """
    return state.token if state.shape == "effectful" else state.token - 1


class Transactions:
    """What one delivery writes, one command at a time."""

    def __init__(self, context: Context) -> None:
        self.session = HandlerSession(context)
        self.take = TakeTransactions(context, self.session)
        self.handler = HandlerTransaction(context, self.session)
        self._outcome = OutcomeTransactions(context, self.session)

    def carry_out(self, state: State, command: p.Transaction) -> p.Event:
        match command:
            case p.Take():
                return self.take.take(state)
            case p.Finish():
                return self.handler.finish()
            case p.Commit():
                return self.handler.commit()
            case p.Fail():
                return self._outcome.fail(state, command)
            case p.Park():
                return self._outcome.park(state, command)
            case p.GiveBack():
                return self._outcome.give_back()
            case _:
                assert_never(command)
