"""The inbox row: "this consumer has taken this message". INSERT first; done in the handler's own transaction.

`Inbox` is the second door, for code that keeps its own loop. `InboxTable` is what it shares with the runtime: the
statements, their parameters, and what Postgres' answers mean.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import cache
from typing import Any, Final, Literal, NamedTuple
from uuid import uuid4

import psycopg
from psycopg import Connection
from psycopg.types.json import Json

from onceward.database import check_connection, check_outside_transaction
from onceward.day_partitions import (
    WINDOW_DEFAULT,
    WINDOW_MAX,
    day_of,
    make_coming_partitions_steps,
    make_partition_for_steps,
    partition_name,
)
from onceward.errors import UsageError
from onceward.message import Message, canonical_id, parse_uuid7, row_key
from onceward.outbox import check_in_transaction
from onceward.parked import InboxState, parked_id
from onceward.protocol.reasons import ParkReason
from onceward.schema import check_schema_steps
from onceward.statements import SCHEMA_DEFAULT, statements, storable
from onceward.steps import Steps, all_rows, carry_out, in_transaction, one_row

logger = logging.getLogger("onceward")
CONSUMER_CHARS_MAX: Final = 200
LEASE_SECONDS_DEFAULT: Final = 30.0
# A producer whose clock runs ahead by less than this is served like any other.
FUTURE_SECONDS: Final = 3600.0
# A lease that reaches further was made by a clock that was ahead.
LEASE_BELIEVED_SECONDS: Final = 3600.0
TAKES_AGAIN_MAX: Final = 8
# Upkeep is between detaching a day and dropping it. If it died there, the next upkeep goes on.
UNDECIDED_SECONDS: Final = 30.0
# Large, because a second answer is kept in a parked row's detail and nowhere else.
DETAIL_CHARS_MAX: Final = 200_000


@cache
def _worker_of(process_id: int) -> str:
    # Not the name of a host or a pod: two processes may have the same.
    return f"{process_id}-{uuid4().hex[:12]}"


def worker_id() -> str:
    """This process's name as a worker; after a fork, the child has a name of its own."""
    return _worker_of(os.getpid())


class TakeResult(Enum):
    """What became of a take. Only TAKEN allows the handler to run."""

    TAKEN = "taken"
    DUPLICATE = "duplicate"  # done or parked: acknowledge it
    IN_FLIGHT = "in flight"  # another worker holds it: give it back to the queue for `retry_after_seconds`
    CONFLICT = "conflict"  # the id is known with another payload: a person must look
    OUTSIDE_WINDOW = "outside window"  # cannot be told from a duplicate: never process it


@dataclass(frozen=True, slots=True)
class Take:
    """The result of a take, and, when TAKEN, the fence under which everything else is done."""

    result: TakeResult
    token: int = 0
    fresh: bool = True  # the row did not exist before
    takes: int = 1  # this one, and those before it that were not forgiven
    intents: int = 0  # effects that earlier attempts began
    transaction: str = ""  # the id of the transaction that took it
    cleaning: Sequence[str] = ()  # statements that remove what an earlier handler left in this session
    retry_after_seconds: float = 0.0
    detail: str = ""
    early: bool = False  # outside the window because its time is still to come: a later copy would be inside it


class InboxCalls:
    """The second door's calls as steps, and how it is made: what `Inbox` and `onceward.aio.Inbox` share."""

    def __init__(
        self,
        consumer: str,
        *,
        window: timedelta = WINDOW_DEFAULT,
        lease_seconds: float = LEASE_SECONDS_DEFAULT,
        untimed_ids: bool = False,
        schema: str = SCHEMA_DEFAULT,
        worker: str | None = None,
    ) -> None:
        """`consumer` is part of every key: renaming it is a migration.

        `window`: how far back a duplicate is recognised. `lease_seconds`: how long a claim is this worker's; nothing
        extends it here, so it must be longer than the longest work from `claim` to `finish`. `untimed_ids`: ids that are
        not UUIDv7 are taken too; a duplicate that comes after its row was pruned is taken as new. `worker` names this
        process in the row.
        Raises `UsageError` for a name, window or lease that cannot work.
        """
        check_identity(consumer, window=window, lease_seconds=lease_seconds)
        self.consumer = consumer
        self._table = InboxTable(
            consumer, window=window, lease_seconds=lease_seconds, untimed_ids=untimed_ids, schema=schema, worker=worker
        )

    def _register_steps(self, user: str) -> Steps[None]:
        # Each is committed by itself: on a connection that is not in autocommit, the first statement would open a
        # transaction that stays open, with its locks, for as long as the caller waits for its queue.
        yield from in_transaction(check_schema_steps(self._table.schema, user))
        yield from in_transaction(self._table.seen_steps())
        yield from in_transaction(make_coming_partitions_steps(schema=self._table.schema))
        self._table.warn_of_pruning()

    def _make_partition_steps(self, message: Message) -> Steps[list[str]]:
        return (yield from make_partition_for_steps(message.id, schema=self._table.schema))

    def _take_durably_steps(self, message: Message, state: RowState) -> Steps[Take]:
        yield from _check_durable()
        return (yield from self._take_steps(message, state))

    def _claim_steps(self, message: Message) -> Steps[Take]:
        return (yield from in_transaction(self._take_durably_steps(message, "pending")))

    def _finish_steps(self, message: Message, take: Take) -> Steps[bool]:
        yield from _check_durable()
        params = self._table.key(message) | {"token": take.token, "lock_timeout": "0"}
        return (yield from one_row(self._table.statements["inbox_finish"], params)) is not None

    def _give_back_steps(self, message: Message, take: Take) -> Steps[bool]:
        params = self._table.key(message) | {"token": take.token}
        return (yield from one_row(self._table.statements["inbox_give_back"], params)) is not None

    def _take_steps(self, message: Message, state: RowState) -> Steps[Take]:
        params = self._table.take_params(message, state, lock_timeout="0")
        # An uncommitted row of another worker is waited for, but not for as long as its handler may take.
        [before] = yield from all_rows("SELECT current_setting('lock_timeout'), set_config('lock_timeout', '1s', true)")
        params["lock_timeout"] = before[0]
        try:
            # A savepoint: a lock that was waited for too long is a result, and must not abort the caller's transaction.
            take = yield from in_transaction(self._table.take_steps(params))
        except psycopg.errors.LockNotAvailable:
            take = locked_out()
        except psycopg.errors.CheckViolation as error:
            if not misses_day(error, params):
                raise
            take = yield from self._without_partition_steps(params)
        yield from all_rows("SELECT set_config('lock_timeout', %s, true)", (before[0],))
        return take

    def _without_partition_steps(self, params: dict[str, Any]) -> Steps[Take]:
        take = yield from self._table.without_partition_steps(params)
        if take is None:
            raise UsageError(
                f"there is no partition for message {params['message_id']}, although its id is inside the window: outside "
                f"this transaction, call inbox.make_partition(conn, message), and take it again (inbox.register(conn) at "
                f"the start makes those of the coming days, `onceward upkeep --schema {self._table.schema}` daily those "
                f"after)"
            )
        return take


class Inbox(InboxCalls):
    """The inbox of one consumer, for code that keeps its own loop.

    Every method works on the caller's connection. `take`, `finish` and `give_back` join the transaction that is open there;
    `claim`, `register` and `make_partition` commit on their own. A duplicate is a result, not an exception. Above READ
    COMMITTED, Postgres answers a race with 40001 (serialization failure), and the caller runs its transaction again, as it
    does for any other statement there. For asyncio: `onceward.aio.Inbox`.
    """

    def register(self, conn: Connection[Any]) -> None:
        """Upkeep knows this consumer's window, and there are partitions for the ids of these days.

        `run` does this by itself. In a loop of your own, call it at the start and then every hour, outside any transaction:
        a window that no process has reported for a day is given up once another process of this consumer has reported a
        shorter one. Upkeep itself (`onceward upkeep`, or a consumer that runs on this schema) must happen daily.

        Crash in it: run it again. Raises `SchemaMismatch`, or `UsageError` inside an open transaction.
        """
        check_outside_transaction(conn, "register()")
        carry_out(conn, self._register_steps(conn.info.user))

    def make_partition(self, conn: Connection[Any], message: Message) -> None:
        """There is a partition for the id of `message`, unless its day was retired: then a take says so.

        For an id inside the window whose day nobody has served yet: one that is older than the schema, or waited while no
        upkeep ran. Outside any transaction: it must be committed before the take.
        """
        check_outside_transaction(conn, "make_partition()")
        carry_out(conn, self._make_partition_steps(message))

    def take(self, conn: Connection[Any], message: Message) -> Take:
        """Take `message` inside the transaction open on `conn`: its row is done when the caller commits.

        Crash before the caller's commit: nothing is taken, the redelivery starts afresh.
        Crash after it: the redelivery is a DUPLICATE.

        Raises `NotInTransaction` in autocommit mode; `UsageError` when the session would not commit durably, or when upkeep
        has made no partition for this id.
        """
        check_in_transaction(conn)
        return carry_out(conn, self._take_durably_steps(message, "done"))

    def claim(self, conn: Connection[Any], message: Message) -> Take:
        """Claim `message` for work that touches the outside: its row is committed as pending, under a lease.

        Crash after it: the lease lapses, and a redelivery takes over with the next token.
        Raises `UsageError` inside an open transaction (the claim must be committed before any effect).
        """
        check_outside_transaction(conn, "claim()")
        return carry_out(conn, self._claim_steps(message))

    def finish(self, conn: Connection[Any], message: Message, *, take: Take) -> bool:
        """The claimed row is done, in the transaction open on `conn`; the first statement there, before any write.

        `take` is what `claim` returned. False: the lease was lost to another worker: roll back and write nothing.

        Crash before the caller's commit: the claim is pending; a redelivery takes over once its lease lapses.
        Crash after it: the redelivery is a DUPLICATE.
        """
        check_in_transaction(conn)
        return carry_out(conn, self._finish_steps(message, take))

    def give_back(self, conn: Connection[Any], message: Message, *, take: Take) -> bool:
        """The claim is given back uncounted, so that a retry may take over at once. False: it was lost already.

        Crash before it: the lease lapses by itself, and the claim counts as one that ended in a crash.
        """
        check_connection(conn)
        return carry_out(conn, self._give_back_steps(message, take))


RowState = Literal["done", "pending"]
Age = Literal["current", "old", "future", "untimed"]


class InboxRow(NamedTuple):
    """One look at a message's row, by the database's clock. `state` None: there is no row, and the rest says nothing."""

    age: Age  # of the id, not of the row
    state: InboxState | None
    same_payload: bool
    token: int
    lapsed: bool
    lease_left_seconds: float


class InboxTable:
    """The inbox as the runtime and the second door use it: statements, their parameters, and what their answers mean.

    Its methods join whatever transaction is open on the connection, and check nothing that the caller has checked before.
    """

    def __init__(
        self,
        consumer: str,
        *,
        window: timedelta = WINDOW_DEFAULT,
        lease_seconds: float = LEASE_SECONDS_DEFAULT,
        untimed_ids: bool = False,
        schema: str = SCHEMA_DEFAULT,
        worker: str | None = None,
    ) -> None:
        self.consumer = consumer
        self.window = window
        self.lease_seconds = lease_seconds
        self.untimed_ids = untimed_ids
        self.schema = schema
        self.worker = worker or worker_id()
        self.statements = statements(schema)
        self._warned_of_pruning = False

    def key(self, message: Message) -> dict[str, Any]:
        """The parameters that name one row."""
        return {"consumer": self.consumer, "message_id": row_key(message.id)}

    def take_params(self, message: Message, state: RowState, *, lock_timeout: str) -> dict[str, Any]:
        """All that a take needs; `id_seconds` is None for an untimed id."""
        timed = parse_uuid7(message.id)
        return {
            "consumer": self.consumer,
            "message_id": row_key(message.id),
            "fingerprint": message.fingerprint(),
            "state": state,
            "lease_seconds": self.lease_seconds if state == "pending" else None,
            "lease_believed_seconds": max(LEASE_BELIEVED_SECONDS, 10 * self.lease_seconds),
            "worker": self.worker,
            "id_seconds": None if timed is None else (timed.int >> 80) / 1000,
            "untimed_ids": self.untimed_ids,
            "window_seconds": self.window.total_seconds(),
            "future_seconds": FUTURE_SECONDS,
            "lock_timeout": lock_timeout,
        }

    def take_with(self, conn: Connection[Any], params: dict[str, Any]) -> Take:
        """INSERT; where that gives no row, read the row and perhaps take it over; again when it changed in between."""
        return carry_out(conn, self.take_steps(params))

    def take_steps(self, params: dict[str, Any]) -> Steps[Take]:
        """`take_with`, as steps."""
        for _ in range(TAKES_AGAIN_MAX + 1):
            inserted = yield from one_row(self.statements["inbox_insert"], params)
            if inserted is not None:
                return Take(TakeResult.TAKEN, token=inserted[0], transaction=inserted[1], cleaning=inserted[2])
            # A second statement, not one with the INSERT: in a race, both halves of a single one would see no row.
            take = yield from self._take_existing(params)
            if take is not None:
                return take
        return Take(TakeResult.IN_FLIGHT, retry_after_seconds=0.1, detail="the row changed again and again")

    def _take_existing(self, params: dict[str, Any]) -> Steps[Take | None]:
        """What the row that exists allows; None: it vanished or changed in between, so take again."""
        row = yield from self.read_steps(params)
        if row.state is None:
            # The INSERT itself refuses what is outside the window, so only here is it asked why there is no row.
            return None if row.age == "current" else outside_window(row.age)
        # Before the state: another payload is a conflict also where the row is done.
        if not row.same_payload:
            return Take(TakeResult.CONFLICT, detail="another payload under an id that is known")
        if row.state != "pending":
            return Take(TakeResult.DUPLICATE, detail=row.state)
        if not row.lapsed:
            return Take(TakeResult.IN_FLIGHT, retry_after_seconds=row.lease_left_seconds, detail="its lease is alive")
        # The UPDATE repeats the token: of two workers that saw the same lapsed lease, one gets no row.
        taken = yield from one_row(self.statements["inbox_take_over"], params | {"token": row.token})
        if taken is None:
            return None
        token, transaction, cleaning, takes, intents = taken[:5]
        return Take(
            TakeResult.TAKEN, token=token, fresh=False, takes=takes, intents=intents, transaction=transaction,
            cleaning=cleaning,
        )  # fmt: skip

    def read(self, conn: Connection[Any], params: dict[str, Any]) -> InboxRow:
        """The row as it is now; `params` are those of a take."""
        return carry_out(conn, self.read_steps(params))

    def read_steps(self, params: dict[str, Any]) -> Steps[InboxRow]:
        """`read`, as steps."""
        row = yield from one_row(self.statements["inbox_read"], params)
        if row is None:
            raise psycopg.InternalError("inbox_read gave no row")
        return InboxRow(*row)

    def without_partition(self, conn: Connection[Any], params: dict[str, Any]) -> Take | None:
        """What Postgres' refusal means (23514: no partition for this id); None: its day is served, and upkeep is late.

        Retired is retired for every process, whatever its window: what was finished there can no longer be told from new.
        """
        return carry_out(conn, self.without_partition_steps(params))

    def without_partition_steps(self, params: dict[str, Any]) -> Steps[Take | None]:
        """`without_partition`, as steps."""
        age = (yield from self.read_steps(params)).age
        if age != "current":
            return outside_window(age)
        day = day_of(params["message_id"])
        table = f"{self.schema}.{partition_name('inbox', day)}"
        retired = yield from one_row(self.statements["retired_day"], {"day": day, "table": table})
        if retired is None or not retired[0]:
            return None
        if retired[1]:
            return Take(TakeResult.IN_FLIGHT, retry_after_seconds=UNDECIDED_SECONDS, detail="its day is being retired")
        return outside_window("retired")

    def park_params(self, message: Message, source: str, reason: ParkReason, detail: str) -> dict[str, Any]:
        """All that a parked row needs. `message_id` is the key of the inbox row, `parked_id` the id as people read it."""
        headers, body = message.to_wire()
        return {
            "consumer": self.consumer,
            "message_id": row_key(message.id),
            "parked_id": parked_id(canonical_id(message.id)),
            "fingerprint": message.fingerprint(),
            "reason": reason.value,
            "detail": storable(detail, DETAIL_CHARS_MAX),
            "source": source,
            "headers": Json(headers),
            "body": body,
            "worker": self.worker,
        }

    def seen(self, conn: Connection[Any]) -> float:
        """Upkeep knows this process's window. Returns the longest that this consumer had within a day, in seconds."""
        return carry_out(conn, self.seen_steps())

    def seen_steps(self) -> Steps[float]:
        """`seen`, as steps."""
        params = {"consumer": self.consumer, "window_seconds": self.window.total_seconds()}
        row = yield from one_row(self.statements["consumer_seen"], params)
        return float(row[0]) if row is not None else self.window.total_seconds()

    def warn_of_pruning(self) -> None:
        """Where untimed ids are taken, the log has said once for how long a duplicate of one is recognised."""
        if self.untimed_ids and not self._warned_of_pruning:
            self._warned_of_pruning = True
            logger.warning(
                "consumer %r takes ids that are not UUIDv7: upkeep prunes a finished one %.0f s (its window) after it was "
                "taken, and a duplicate that comes after that is taken as new", self.consumer, self.window.total_seconds(),
            )  # fmt: skip


def check_identity(consumer: str, *, window: timedelta, lease_seconds: float) -> None:
    """Raises `UsageError` for a consumer's name, window or lease that cannot work."""
    if not isinstance(consumer, str) or not consumer or not consumer.isprintable() or len(consumer) > CONSUMER_CHARS_MAX:
        raise UsageError(
            f"a consumer needs a stable name of 1 to {CONSUMER_CHARS_MAX} printable characters, not {consumer!r}"
        )
    if not isinstance(window, timedelta):
        raise UsageError(f"window is a timedelta, like timedelta(days=30), not {window!r}")
    if not timedelta(0) < window <= WINDOW_MAX:
        raise UsageError(f"window must be more than 0 and at most {WINDOW_MAX.days} days, not {window}")
    if lease_seconds <= 0:
        raise UsageError("lease_seconds must be more than 0")


_OUTSIDE: Final = {
    "old": "older than the window, and unseen",
    "future": "its time is ahead of the database's clock",
    "retired": "its day was retired: whether it was finished is no longer known",
    "untimed": "its id is not a UUIDv7, so it has no time; only a consumer with untimed_ids=True takes such ids",
}


def outside_window(age: Literal["old", "future", "retired", "untimed"]) -> Take:
    """An id whose time no inbox row can vouch for."""
    return Take(TakeResult.OUTSIDE_WINDOW, detail=_OUTSIDE[age], early=age == "future")


def misses_day(error: psycopg.errors.CheckViolation, params: Mapping[str, Any]) -> bool:
    """Postgres refused the row of this take because there is no partition for the day of its id."""
    # Only that refusal comes without the name of a constraint. The partition of untimed ids is part of the schema: where it
    # is missing, somebody took it away, and there is no day to make.
    return error.diag.constraint_name is None and params["id_seconds"] is not None


def locked_out() -> Take:
    """An uncommitted row of a slow or frozen transaction was waited for, and the wait ran out."""
    return Take(TakeResult.IN_FLIGHT, retry_after_seconds=1.0, detail="its row is locked by an open transaction")


def _check_durable() -> Steps[None]:
    # Our own statements switch it on for the transaction that they are in. Whoever switched it off should hear of that, and
    # decide, instead of finding his transactions slower than he set them.
    row = yield from one_row("SELECT current_setting('synchronous_commit')")
    if row is not None and row[0] == "off":
        raise UsageError("synchronous_commit is off in this session, but our rows must survive a crash of the database")
