"""The transactions of one delivery: take, finish, fail, park, yield. Each answers with what happened; none decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from onceward.database import is_broken, one_tuple
from onceward.inbox import Take, TakeResult, locked_out, storable, untimed
from onceward.logs import say, say_failed, say_parked, with_trace
from onceward.message import Message
from onceward.outbox import pop_published
from onceward.protocol import words as p
from onceward.protocol.delivery import State, after_failure
from onceward.protocol.words import Fence
from onceward.runtime import Runtime
from onceward.session import begin, commit_guarded, discard, left_open, put_back
from onceward.transport import Delivery

logger = logging.getLogger("onceward")

LOOK: Final = "SELECT coalesce(pg_current_xact_id_if_assigned()::text = %(transaction)s, false)"
Row = tuple[Any, ...]


class Transactions:
    """What one delivery writes. At most one connection is held at a time, and none while a provider is called."""

    def __init__(self, runtime: Runtime, message: Message, delivery: Delivery) -> None:
        self.runtime = runtime
        self.message = message
        self.delivery = delivery
        self.taking = Take(TakeResult.IN_FLIGHT)
        self.conn: Connection[Any] | None = None
        self.session_lost = False
        self.discarded = False  # the handler left something under way on its connection
        self.failure: BaseException | None = None  # what the handler, or its call, raised
        self._transaction = ""  # the id of the one that holds the handler's writes
        self._cleaning: Sequence[str] = ()
        self._handed_out = False  # a handler has had the connection: its session is to be put back
        self._held = ExitStack()

    # ---- the take ----------------------------------------------------------------------------------------------------

    def take(self, state: State) -> p.Event:
        shape = state.shape
        row_state = "done" if shape == "transactional" else "pending"
        lock_timeout = self.runtime.database.lock_timeout
        params = self.runtime.inbox.take_params(self.message, row_state, lock_timeout=lock_timeout)
        if params is None:
            return p.OutsideWindow(untimed(self.message).detail)
        try:
            taking = self._take_on_a_live_session(params, in_transaction=shape == "transactional")
            excused = self._excused(state)
        except psycopg.Error as error:
            return self.database_lost("not taken", error)
        self.taking = taking
        self._transaction = taking.transaction if shape == "transactional" else ""
        self._cleaning = taking.cleaning
        return self._taken(state, taking, excused)

    def _take_on_a_live_session(self, params: dict[str, Any], *, in_transaction: bool) -> Take:
        """The take; once more where its connection turned out to be gone: something on the way ended it while it was idle.

        Else each message of a quiet hour would wait for its redelivery, and meet the next connection that is gone. A claim
        that was committed before its reply was lost is found in flight then, and comes again.
        """
        try:
            return self._take_guarded(params, in_transaction=in_transaction)
        except psycopg.OperationalError as error:
            if self.conn is None or not is_broken(self.conn, error):
                raise
        self.close()
        self.runtime.database.forget_broken()
        return self._take_guarded(params, in_transaction=in_transaction)

    def _take_guarded(self, params: dict[str, Any], *, in_transaction: bool) -> Take:
        """One transaction with the handler's writes, or (autocommit) one of its own. Not TAKEN: nothing is left open."""
        try:
            conn = self._open(begin_transaction=in_transaction)
            taking = self.runtime.inbox.take_with(conn, params)
        except psycopg.errors.LockNotAvailable:
            taking = locked_out()
        except psycopg.errors.CheckViolation as error:
            if error.diag.constraint_name is not None:
                raise
            taking = self._without_partition(params)
        if taking.result is not TakeResult.TAKEN or not in_transaction:
            self.close()
        return taking

    def _without_partition(self, params: dict[str, Any]) -> Take:
        self.close()
        with self.runtime.database.connection() as conn:
            taking = self.runtime.inbox.without_partition(conn, params)
        if taking is not None:
            return taking
        logger.error("the partition for message %s was missing: upkeep is late; it is made now", self.message.id)
        self.emit("upkeep.partition_late")
        self.runtime.partition_late(self.message)
        return Take(TakeResult.IN_FLIGHT, retry_after_seconds=0.0)

    def _taken(self, state: State, taking: Take, excused: int) -> p.Event:
        match taking.result:
            case TakeResult.TAKEN:
                if state.shape == "effectful":
                    self.runtime.keeper.claimed(self.delivery, self.message, taking.token)
                    self.emit("consumer.claimed", token=taking.token)
                else:
                    self.emit("consumer.taken", token=taking.token)
                return p.Taken(taking.token, taking.fresh, taking.takes, excused)
            case TakeResult.DUPLICATE:
                self.emit("consumer.duplicate", state=taking.detail)
                return p.Duplicate()
            case TakeResult.IN_FLIGHT:
                self.emit("consumer.in_flight", seconds=taking.retry_after_seconds)
                self.excuse(state, "it was in another worker's hands")
                return p.InFlight(taking.retry_after_seconds)
            case TakeResult.CONFLICT:
                return p.Conflict(taking.detail)
            case TakeResult.OUTSIDE_WINDOW:
                return p.OutsideWindow(taking.detail)

    def _excused(self, state: State) -> int:
        """How many of the queue's deliveries were no crash; asked only where their number would make the message poison."""
        if state.shape == "effectful" or self.delivery.count <= state.limits.deliveries_max or self.conn is None:
            return 0
        inbox = self.runtime.inbox
        row = one_tuple(self.conn, inbox.statements["excused"], inbox.key(self.message))
        return 0 if row is None else int(row[0])

    def excuse(self, state: State, why: str) -> None:
        """This delivery is counted as no crash. Crash before it, or no database: one too many counts as one."""
        if state.shape == "effectful" or not self.delivery.count:
            return  # its takes are counted in its row, and forgiven there; or the queue counts nothing
        inbox = self.runtime.inbox
        self.close()
        try:
            with self.runtime.database.connection() as conn:
                conn.execute(inbox.statements["excuse"], inbox.key(self.message) | {"error": why})
        except psycopg.Error as error:
            self.database_lost("this delivery counts as a crash", error)

    # ---- the finish --------------------------------------------------------------------------------------------------

    def finish(self) -> p.Event:
        inbox = self.runtime.inbox
        limits = {"token": self.taking.token, "lock_timeout": self.runtime.database.lock_timeout}
        params = inbox.key(self.message) | limits
        try:
            row = one_tuple(self._open(begin_transaction=True), inbox.statements["inbox_finish"], params)
        except psycopg.Error as error:
            return self.database_lost("transaction not opened", error)
        if row is None:
            self.close()
            self.emit("consumer.lease_lost")
            return p.FencedOff()
        self._transaction, self._cleaning = row[2], row[3]
        self.emit("consumer.finishing", token=self.taking.token)
        return p.Finishing(row[0], row[1])

    def commit(self) -> p.Event:
        self.emit("consumer.handled")
        conn = self.conn
        if conn is None or is_broken(conn):
            return p.ForeignCommit() if self._is_committed() else p.DatabaseLost()
        published = pop_published(conn)
        event = commit_guarded(conn, self._transaction, self.runtime.database.putting_back(conn))
        if isinstance(event, p.Committed):
            self._handed_out = False
            self.emit("consumer.committed")
            if published:
                self.runtime.nudge()
        elif isinstance(event, p.Aborted) and self._is_committed():
            event = p.ForeignCommit()
        self.close()
        return event

    def is_ours(self) -> bool:
        """False: the handler has ended the transaction that we opened. Asked after it raised; what is broken is undone."""
        conn = self.conn
        if conn is None:
            return True
        if left_open(conn):
            self.discarded = True
            discard(conn)  # to ask on it would wait for ever
        if is_broken(conn) or conn.info.transaction_status == TransactionStatus.INERROR:
            return not self._is_committed()
        if conn.info.transaction_status == TransactionStatus.IDLE:
            return False
        try:
            row = one_tuple(conn, LOOK, {"transaction": self._transaction})
        except psycopg.Error as error:  # also the server's own limit on idling: no OperationalError
            self.say(logging.WARNING, "the connection was lost while its transaction was looked at: %s", error)
            return not self._is_committed()
        return row is None or row[0] is True

    def _is_committed(self) -> bool:
        """The handler's writes are committed, although we did not commit them: it did, then failed or lost its connection.

        Told by the row that was written with them, on another connection where ours is gone. Crash before this, or no
        server to ask: they stand, and the redelivery is a duplicate (a named non-guarantee).
        """
        if not self._transaction:
            return False
        self.roll_back()
        self.session_lost = self.session_lost or (self.conn is not None and is_broken(self.conn))
        if self.session_lost:
            self.close()
        inbox = self.runtime.inbox
        whose = {"token": self.taking.token, "worker": inbox.worker, "transaction": self._transaction}
        try:
            row = self._ask(inbox.statements["inbox_committed"], inbox.key(self.message) | whose)
        except psycopg.Error as error:
            self.say(logging.WARNING, "nobody can say whether its handler committed: %s", error)
            return False
        return row is not None and row[0] is True

    def _ask(self, statement: str, params: dict[str, Any]) -> Row | None:
        if self.conn is not None:
            return one_tuple(self.conn, statement, params)
        self.runtime.database.forget_broken()  # what took our connection may have taken them all
        with self.runtime.database.connection() as conn:
            return one_tuple(conn, statement, params)

    # ---- fail, park, yield -------------------------------------------------------------------------------------------

    def fail(self, state: State, command: p.Fail) -> p.Event:
        counted: list[int] = []

        def write(conn: Connection[Any]) -> p.Event:
            counts = {"failed": int(not command.session_lost), "session_lost": int(command.session_lost)}
            row = self._fenced(conn, state, "fail", counts | {"error": storable(with_trace(command.error, self.failure))})
            if row is None:
                return p.FencedOff()
            counted[:] = row[:2]
            park = after_failure(state.limits, command, attempts=counted[0], sessions_lost=counted[1])
            if park is None:
                return p.Counted(self.runtime.backoff.delay_seconds(sum(counted)))
            parks.append(park)
            return p.Parked() if self._fenced(conn, state, "park", self._park_params(park)) else p.FencedOff()

        parks: list[p.Park] = []
        event = self._write(write)
        if isinstance(event, p.Counted | p.Parked):
            self.emit("consumer.failed", error=command.error)
        if isinstance(event, p.Counted):
            say_failed(self.say, command, counted[0], state.limits.attempts_max, event.delay_seconds)
        if isinstance(event, p.Parked):
            self._say_parked(parks[0])
        return event

    def park(self, state: State, command: p.Park) -> p.Event:
        def write(conn: Connection[Any]) -> p.Event:
            params = self._park_params(command)
            statements = self.runtime.inbox.statements
            row = None
            if command.fence is Fence.FOREIGN_COMMIT:
                row = one_tuple(conn, statements["park_foreign_commit"], params | {"token": self.taking.token})
            elif command.fence is Fence.ABSENT:
                row = self._park_absent(conn, params)
            elif command.fence is not Fence.BESIDE:
                row = self._fenced(conn, state, "park", params)
            if row is None and command.fence in (Fence.BESIDE, Fence.HOLDER_OR_BESIDE):
                row = one_tuple(conn, statements["park_beside"], params)
            return p.Parked() if row is not None else p.FencedOff()

        event = self._write(write)
        if isinstance(event, p.Parked):
            self._say_parked(command)
        return event

    def _park_absent(self, conn: Connection[Any], params: dict[str, Any]) -> Row | None:
        """Outside the window: parked without an inbox row, for an id that is too old to be told from a duplicate.

        One whose time is still to come gets its row, as parked: else a copy that comes later would be inside the window,
        and be done beside the parked one. Days ahead there is no partition yet for such a row.
        """
        statements = self.runtime.inbox.statements
        if self.taking.early:
            try:
                with conn.transaction():
                    return one_tuple(conn, statements["park_absent"], params)
            except psycopg.errors.CheckViolation as error:
                if error.diag.constraint_name is not None:
                    raise
        return one_tuple(conn, statements["park_outside"], params)

    def give_back(self) -> p.Event:
        def write(conn: Connection[Any]) -> p.Event:
            params = self.runtime.inbox.key(self.message) | {"token": self.taking.token}
            return (
                p.GivenBack()
                if one_tuple(conn, self.runtime.inbox.statements["inbox_give_back"], params)
                else p.FencedOff()
            )

        return self._write(write)

    def _park_params(self, command: p.Park) -> dict[str, Any]:
        detail = with_trace(command.detail, self.failure)
        params = self.runtime.inbox.park_params(self.message, self.delivery.source, command.reason.value, detail)
        return params | {"unknown_n": command.unknown_n}

    def _fenced(self, conn: Connection[Any], state: State, verb: str, params: dict[str, Any]) -> Row | None:
        """`verb` under the fence of whoever holds the message: the claim, or (its row rolled back) what was there."""
        statements = self.runtime.inbox.statements
        params = self.runtime.inbox.key(self.message) | params
        if state.shape == "transactional" and state.fresh:
            return one_tuple(conn, statements[f"{verb}_absent"], params)
        token = state.token if state.shape == "effectful" else state.token - 1
        return one_tuple(conn, statements[f"{verb}_held"], params | {"token": token})

    def _write(self, write: Callable[[Connection[Any]], p.Event]) -> p.Event:
        """One transaction of ours, after whatever was open is rolled back.

        First the heartbeat lets go of the claim: the lease is given back here, and must not be extended behind it.
        """
        self.close()
        self.runtime.keeper.done(self.delivery)
        try:
            with self.runtime.database.connection() as conn:
                with conn.transaction() as transaction:
                    event = write(conn)
                    if isinstance(event, p.FencedOff):
                        raise psycopg.Rollback(transaction)
                return event
        except psycopg.Error as error:
            return self.database_lost("outcome not written", error)

    def database_lost(self, what: str, error: Exception) -> p.DatabaseLost:
        self.close()
        self.say(logging.WARNING, "%s, redelivery decides: %s", what, error, next="redelivery", reason=str(error))
        return p.DatabaseLost()

    # ---- what is said ------------------------------------------------------------------------------------------------

    def _say_parked(self, command: p.Park) -> None:
        self.emit("consumer.parked", reason=command.reason.value)
        say_parked(self.say, command)

    def say(self, level: int, text: str, *args: object, failed: bool = False, **fields: object) -> None:
        """One line about this message; `failed`: with the traceback of what its handler raised."""
        failure = self.failure if failed else None
        say(self.runtime.inbox.consumer, self.message, level, text, *args, failure=failure, **fields)

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _open(self, *, begin_transaction: bool) -> Connection[Any]:
        if self.conn is None:
            self.conn = self._held.enter_context(self.runtime.database.connection())
            if begin_transaction and not begin(self.conn):
                raise psycopg.OperationalError(f"BEGIN: {self.conn.pgconn.get_error_message()}")
        return self.conn

    def hand_out(self) -> Connection[Any]:
        """The connection, for the handler: whatever it does to the session is undone before the next message."""
        if self.conn is None:
            raise AssertionError("no transaction is open")
        self._handed_out = True
        if self._cleaning and self.runtime.database.putting_back(self.conn):
            self.conn.execute("; ".join(self._cleaning).encode())
        return self.conn

    def roll_back(self) -> None:
        """Whatever is open is undone; a connection that is gone has undone it itself."""
        conn = self.conn
        if conn is None or is_broken(conn) or conn.info.transaction_status == TransactionStatus.IDLE:
            return
        try:
            conn.execute("ROLLBACK")
        except psycopg.Error as error:
            self.say(logging.WARNING, "the connection was lost while rolling back: %s", error)

    def close(self) -> None:
        conn = self.conn
        if conn is None:
            return
        if self._handed_out and left_open(conn):
            discard(conn)
        self.roll_back()
        if self._handed_out and not is_broken(conn):
            put_back(conn, self.runtime.database.putting_back(conn))
        self._handed_out = False
        pop_published(conn)
        self.conn = None
        self._held.close()

    def emit(self, point: str, **fields: Any) -> None:
        if self.runtime.listeners:
            self.runtime.listeners.emit(point, self.runtime.inbox.consumer, self.message.id, **fields)
