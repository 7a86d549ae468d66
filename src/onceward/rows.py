"""The transactions of one delivery: take, finish, fail, park, yield. Each answers with what happened; none decides."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol

import psycopg
from psycopg import Connection
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus

from onceward import protocol as p
from onceward.database import Database, is_lost, one_tuple
from onceward.events import Listeners
from onceward.inbox import Inbox, TakeResult, Taking, locked_out, storable, untimed
from onceward.intent import Intents
from onceward.message import Message
from onceward.outbox import take_published
from onceward.retry import Backoff
from onceward.state import Limits, State
from onceward.transport import Delivery

logger = logging.getLogger("onceward")

# The commit guard. One string is one round trip: when the division fails, the server does not go on to COMMIT. A handler
# may have switched durable commits off for its session; this commit is durable all the same.
COMMIT_GUARDED: Final = (
    "SELECT 1 / coalesce((current_setting('onceward.delivery', true) = '{mark}')::int, 0),"
    " set_config('synchronous_commit', 'on', true); COMMIT"
)
DIVISION_BY_ZERO: Final = "22012"
CONNECTION_CLASSES: Final = ("08", "57P")  # connection exceptions; the server was told to stop, or starts
_marks: Final = count(1)
Row = tuple[Any, ...]


class Keeper(Protocol):
    """Who keeps leases alive (see `onceward.lease`)."""

    def claimed(self, delivery: Delivery, message: Message, token: int) -> None: ...
    def is_lost(self, delivery: Delivery) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the deliveries of one consumer in one process share."""

    inbox: Inbox
    intents: Intents
    database: Database
    limits: Limits
    backoff: Backoff
    listeners: Listeners
    keeper: Keeper
    nudge: Callable[[], None]
    partition_late: Callable[[Message], None]


class Rows:
    """What one delivery writes. At most one connection is held at a time, and none while a provider is called."""

    def __init__(self, runtime: Runtime, message: Message, delivery: Delivery) -> None:
        self.runtime = runtime
        self.message = message
        self.delivery = delivery
        self.taking = Taking(TakeResult.IN_FLIGHT)
        self.conn: Connection[Any] | None = None
        self.connection_lost = False
        self._transaction = ""  # the id of the one that holds the handler's writes
        self._held = ExitStack()
        self._mark = f"{runtime.inbox.worker}-{next(_marks)}"

    # ---- the take ----------------------------------------------------------------------------------------------------

    def take(self, state: State) -> p.Event:
        shape = state.shape
        row_state = "done" if shape == "transactional" else "pending"
        mark, lock_timeout = self._mark, self.runtime.database.lock_timeout
        params = self.runtime.inbox.take_params(self.message, row_state, mark=mark, lock_timeout=lock_timeout)
        if params is None:
            return p.OutsideWindow(untimed(self.message).detail)
        try:
            taking = self._take_guarded(params, in_transaction=shape == "transactional")
        except psycopg.Error as error:
            return self.database_lost("not taken", error)
        self.taking = taking
        self._transaction = taking.transaction if shape == "transactional" else ""
        return self._taken(state, taking)

    def _take_guarded(self, params: dict[str, Any], *, in_transaction: bool) -> Taking:
        """One transaction with the handler's writes, or (autocommit) one of its own. Not TAKEN: nothing is left open."""
        try:
            conn = self._open(begin=in_transaction)
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

    def _without_partition(self, params: dict[str, Any]) -> Taking:
        self.close()
        with self.runtime.database.connection() as conn:
            taking = self.runtime.inbox.without_partition(conn, params)
        if taking is not None:
            return taking
        logger.error("the partition for message %s was missing: upkeep is late; it is made now", self.message.id)
        self.emit("upkeep.partition_late")
        self.runtime.partition_late(self.message)
        return Taking(TakeResult.IN_FLIGHT, retry_after_seconds=0.0)

    def _taken(self, state: State, taking: Taking) -> p.Event:
        match taking.result:
            case TakeResult.TAKEN:
                if state.shape == "effectful":
                    self.runtime.keeper.claimed(self.delivery, self.message, taking.token)
                    self.emit("consumer.claimed", token=taking.token)
                else:
                    self.emit("consumer.taken", token=taking.token)
                return p.Taken(taking.token, taking.fresh, taking.takes)
            case TakeResult.DUPLICATE:
                self.emit("consumer.duplicate", state=taking.detail)
                return p.Duplicate()
            case TakeResult.IN_FLIGHT:
                self.emit("consumer.in_flight", seconds=taking.retry_after_seconds)
                return p.InFlight(taking.retry_after_seconds)
            case TakeResult.CONFLICT:
                return p.Conflict(taking.detail)
            case TakeResult.OUTSIDE_WINDOW:
                return p.OutsideWindow(taking.detail)

    # ---- the finish --------------------------------------------------------------------------------------------------

    def begin(self) -> p.Event:
        inbox = self.runtime.inbox
        marks = inbox.mark(self._mark, self.runtime.database.lock_timeout)
        params = inbox.key(self.message) | {"token": self.taking.token} | marks
        try:
            row = one_tuple(self._open(begin=True), inbox.statements["inbox_finish"], params)
        except psycopg.Error as error:
            return self.database_lost("transaction not opened", error)
        if row is None:
            self.close()
            self.emit("consumer.lease_lost")
            return p.Lost()
        self._transaction = row[2]
        self.emit("consumer.finishing", token=self.taking.token)
        return p.Begun(row[0], row[1])

    def commit(self) -> p.Event:
        self.emit("consumer.handled")
        conn = self.conn
        if conn is None or is_lost(conn):
            return p.ForeignCommit() if self._is_committed() else p.DatabaseLost()
        published = take_published(conn)
        event = commit_guarded(conn, self._mark)
        if isinstance(event, p.Committed):
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
        if is_lost(conn) or conn.info.transaction_status == TransactionStatus.INERROR:
            return not self._is_committed()
        if conn.info.transaction_status == TransactionStatus.IDLE:
            return False
        try:
            row = one_tuple(conn, "SELECT current_setting('onceward.delivery', true) = %(mark)s", {"mark": self._mark})
        except psycopg.Error as error:  # also the server's own limit on idling: no OperationalError
            logger.warning(
                "message %s: the connection was lost while its transaction was looked at: %s", self.message.id, error
            )
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
        self.connection_lost = self.connection_lost or (self.conn is not None and is_lost(self.conn))
        if self.connection_lost:
            self.close()
        inbox = self.runtime.inbox
        whose = {"token": self.taking.token, "worker": inbox.worker, "transaction": self._transaction}
        try:
            row = self._ask(inbox.statements["inbox_committed"], inbox.key(self.message) | whose)
        except psycopg.Error as error:
            logger.warning("message %s: nobody can say whether its handler committed: %s", self.message.id, error)
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
        def write(conn: Connection[Any]) -> p.Event:
            error = {"error": storable(command.error)}
            row = self._fenced(conn, state, "fail", error)
            if row is None:
                return p.Lost()
            if row[0] < self.runtime.limits.attempts_max:
                return p.Counted(self.runtime.backoff.delay_seconds(row[0]))
            park = p.Park("attempts ran out", command.error)
            return p.Parked() if self._fenced(conn, state, "park", self._park_params(park)) else p.Lost()

        event = self._write(write)
        if isinstance(event, p.Counted | p.Parked):
            self.emit("consumer.failed", error=command.error)
        if isinstance(event, p.Parked):
            self.emit("consumer.parked", reason="attempts ran out")
        return event

    def park(self, state: State, command: p.Park) -> p.Event:
        def write(conn: Connection[Any]) -> p.Event:
            params = self._park_params(command)
            statements = self.runtime.inbox.statements
            row = None
            if command.fence == "foreign commit":
                row = one_tuple(conn, statements["park_foreign_commit"], params | {"token": self.taking.token})
            elif command.fence == "absent":
                row = self._park_absent(conn, params)
            elif command.fence != "beside":
                row = self._fenced(conn, state, "park", params)
            if row is None and command.fence in ("beside", "holder or beside"):
                row = one_tuple(conn, statements["park_beside"], params)
            return p.Parked() if row is not None else p.Lost()

        event = self._write(write)
        if isinstance(event, p.Parked):
            logger.warning("message %s is parked: %s: %s", self.message.id, command.reason, command.detail)
            self.emit("consumer.parked", reason=command.reason)
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
            return p.Yielded() if one_tuple(conn, self.runtime.inbox.statements["inbox_yield"], params) else p.Lost()

        return self._write(write)

    def _park_params(self, command: p.Park) -> dict[str, Any]:
        params = self.runtime.inbox.park_params(self.message, self.delivery.source, command.reason, command.detail)
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
        """One transaction of ours, after whatever was open is rolled back."""
        self.close()
        try:
            with self.runtime.database.connection() as conn:
                with conn.transaction() as transaction:
                    event = write(conn)
                    if isinstance(event, p.Lost):
                        raise psycopg.Rollback(transaction)
                return event
        except psycopg.Error as error:
            return self.database_lost("outcome not written", error)

    def database_lost(self, what: str, error: Exception) -> p.DatabaseLost:
        self.close()
        logger.warning("message %s: %s, redelivery decides: %s", self.message.id, what, error)
        return p.DatabaseLost()

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _open(self, *, begin: bool) -> Connection[Any]:
        if self.conn is None:
            self.conn = self._held.enter_context(self.runtime.database.connection())
            if begin:
                open_transaction(self.conn)
        return self.conn

    def roll_back(self) -> None:
        """Whatever is open is undone; a connection that is gone has undone it itself."""
        conn = self.conn
        if conn is None or is_lost(conn) or conn.info.transaction_status == TransactionStatus.IDLE:
            return
        try:
            conn.execute("ROLLBACK")
        except psycopg.Error as error:
            logger.warning("message %s: the connection was lost while rolling back: %s", self.message.id, error)

    def close(self) -> None:
        if self.conn is not None:
            self.roll_back()
            take_published(self.conn)
            self.conn = None
            self._held.close()

    def emit(self, point: str, **fields: Any) -> None:
        if self.runtime.listeners:
            self.runtime.listeners.emit(point, self.runtime.inbox.consumer, self.message.id, **fields)


def open_transaction(conn: Connection[Any]) -> None:
    """A transaction is open on `conn`. Raises psycopg.OperationalError when the server does not say so.

    By libpq's own blocking call, as the commit below: what psycopg adds (parameters, rows, types) these two do not need,
    and they are half of a transaction's round trips.
    """
    result = conn.pgconn.exec_(b"BEGIN")
    if result.status != ExecStatus.COMMAND_OK:
        raise psycopg.OperationalError(f"BEGIN: {result.get_error_message()}")


def commit_guarded(conn: Connection[Any], mark: str) -> p.Committed | p.Aborted | p.ForeignCommit | p.Ambiguous:
    """COMMIT, only if this session is still in the transaction that was marked so, and only if the reply says COMMIT.

    A transaction that failed inside "commits" as ROLLBACK without an error; a handler that ended it by raw SQL leaves none.
    """
    if conn.info.transaction_status == TransactionStatus.INERROR:
        return p.Aborted()
    result = conn.pgconn.exec_(COMMIT_GUARDED.format(mark=mark).encode())  # of several results, the last one
    if result.status == ExecStatus.COMMAND_OK:
        return p.Committed() if result.command_status == b"COMMIT" else p.Aborted()
    sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    if sqlstate == DIVISION_BY_ZERO:
        return p.ForeignCommit()
    if not sqlstate or sqlstate.startswith(CONNECTION_CLASSES) or conn.closed or conn.broken:
        return p.Ambiguous()
    logger.warning("a transaction could not be committed: %s", result.get_error_message())
    return p.Aborted()
