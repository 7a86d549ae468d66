"""pgmq: a queue in Postgres, by SQL from its own package (`pip install 'onceward[pgmq]'`). No extension is needed.

Settling is by message id alone, so an old delivery settles a newer one of the same message (`settle_fenced=False`). That is
safe here: an ack follows a durable fact, and the fact is about the message, not about the delivery.
A delivery becomes visible again after whole seconds only (`read` takes an integer); a release may be shorter.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final, NamedTuple, assert_never

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb, set_json_loads

from onceward.errors import TransportError, UsageError
from onceward.message import Message, encode_json
from onceward.transport import Delivery, Outcome, Received, Settlement, Traits

__all__ = [
    "Queue",
    "Sink",
    "Source",
    "check_queue",
    "create_queue",
    "creation_sql",
    "install",
    "install_sql",
    "list_queues",
]

POLL_MILLISECONDS: Final = 50
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
SEND_BYTES_MAX: Final = 8 * 1024 * 1024  # of bodies in one transaction
_TRAITS: Final = Traits(
    lease_seconds=30.0, settle_fenced=False, counts_deliveries=True, publish_max=1000, body_bytes_max=BODY_BYTES_MAX
)
_UNREADABLE: Final = object()
_HELD: Final = TransportError("held back: an earlier message of its subject was not sent")
_MISSING: Final = "pgmq's SQL comes with its own package: pip install 'onceward[pgmq]'"
_NOT_HERE: Final = "pgmq is not in this database: `onceward queue create {name}` installs it, and makes the queue"


class Queue(NamedTuple):
    """One queue, as `list_queues` finds it."""

    name: str
    messages: int  # visible or not
    oldest_seconds: int | None  # since its oldest message was sent; None: it is empty
    durable: bool  # False: an UNLOGGED table, which a crash of its server empties


def install(conn: Connection[Any]) -> bool:
    """The schema `pgmq` is in this database; True when this call made it. One transaction under an advisory lock."""
    with conn.transaction():
        conn.execute(_LOCK_INSTALL)
        # Before its package is looked for: where pgmq is there as an extension, that package is not needed.
        if _is_installed(conn):
            return False
        conn.execute(install_sql().encode())
        return True


def install_sql() -> str:
    """pgmq's own SQL, for a database that does not have it. Raises `UsageError` when its package is not installed."""
    try:
        return files("pgmq").joinpath("sql", "pgmq.sql").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise UsageError(_MISSING) from error


def create_queue(conn: Connection[Any], name: str) -> bool:
    """The queue `name` exists; True when this call made it. Needs `install` first."""
    _check_name(name)
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        # pgmq.create does not say whether the queue was there. Under the lock, of two at once only one has made it.
        cursor.execute(_LOCK_INSTALL)
        found = cursor.execute(_QUEUE, (name,)).fetchone()
        cursor.execute("SELECT pgmq.create(%s)", (name,))
    return found is None


def creation_sql(names: Sequence[str], *, with_install: bool = True) -> str:
    """One script, in one transaction, after which these queues exist; pgmq itself as well, unless told otherwise."""
    for name in names:
        _check_name(name)
    parts = [install_sql().strip()] if with_install else []
    parts += [sql.SQL("SELECT pgmq.create({});").format(name).as_string(None) for name in names]
    return "\n\n".join(["BEGIN;", f"{_LOCK_INSTALL};", *parts, "COMMIT;"])


def _check_name(name: str) -> None:
    # pgmq itself refuses what is too long or strange, but takes this one: of a variable in a script that is not set.
    if not name:
        raise UsageError("a queue has a name, and this one is empty")


def list_queues(conn: Connection[Any]) -> list[Queue]:
    """All queues of this database, by name. Raises `UsageError` when pgmq is not in it."""
    if not _is_installed(conn):
        raise UsageError(_NOT_HERE.format(name="NAME"))
    with conn.cursor(row_factory=tuple_row) as cursor:
        return [Queue(*row) for row in cursor.execute(_QUEUES).fetchall()]


def check_queue(dsn: str, name: str) -> None:
    """Raises `UsageError` when pgmq, or this queue, is not in that database: every read would fail.

    Also when the queue is UNLOGGED: what it has confirmed is gone after a crash of its server.
    """
    with psycopg.connect(dsn, autocommit=True) as conn:
        if not _is_installed(conn):
            raise UsageError(_NOT_HERE.format(name=name))
        row = conn.execute(_QUEUE, (name,)).fetchone()
        if row is None:
            raise UsageError(
                f"there is no pgmq queue {name!r} in this database: make it with `onceward queue create {name}` "
                f"(or SELECT pgmq.create('{name}'))"
            )
        table, persistence = row
        if persistence == "u":
            raise UsageError(
                f"the pgmq queue {name!r} is UNLOGGED, so a crash of its server empties it, and what it confirmed is lost: "
                f"make it durable with ALTER TABLE {table} SET LOGGED"
            )


def _is_installed(conn: Connection[Any]) -> bool:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT to_regclass('pgmq.meta') IS NOT NULL").fetchone()
    return row is not None and bool(row[0])


class Session:
    """One connection, made when it is first needed and again after it was lost. One caller at a time."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._conn: Connection[dict[str, Any]] | None = None
        self._lock = threading.Lock()

    def fetch(self, statement: str, params: Mapping[str, Any]) -> list[Any]:
        with self._connected() as conn:
            return conn.execute(statement.encode(), params).fetchall()

    def send(self, by_queue: Mapping[str, Sequence[Message]]) -> None:
        """Each queue has its messages, in one transaction."""
        # The wire form of a batch is large: it is made under this session's lock, so that only one exists at a time. One
        # statement is a transaction by itself, and needs no two round trips more for BEGIN and COMMIT.
        with self._connected() as conn, conn.transaction() if len(by_queue) > 1 else nullcontext():
            for queue, messages in by_queue.items():
                conn.execute(_SEND.encode(), {"queue": queue} | _wire(messages))

    @contextmanager
    def _connected(self) -> Iterator[Connection[Any]]:
        """The connection, for one caller at a time. Raises `TransportError` when it was lost in its hands."""
        with self._lock:
            try:
                yield self._connection()
            except psycopg.Error as error:
                if self._conn is None or self._conn.closed or self._conn.broken:
                    self._conn = None
                    raise TransportError(f"the queue's database does not answer: {error}") from error
                raise

    def _connection(self) -> Connection[Any]:
        if self._conn is None:
            conn: Connection[Any] = psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=5, application_name=self._application_name
            )
            # JSON is decoded below: Postgres takes numbers and depths that Python's decoder would refuse amid a batch.
            set_json_loads(_undecoded, conn)
            conn.execute(_SETTINGS)
            self._conn = conn
        return self._conn

    def close(self) -> None:
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None


class Source:
    """One pgmq queue as a source. `visibility_seconds`: whole seconds that a delivery stays hidden unless extended."""

    def __init__(self, queue: str, dsn: str, *, visibility_seconds: int = 30, archive: bool = False) -> None:
        """`archive`: an acknowledged message is kept in the queue's archive table, instead of deleted."""
        if visibility_seconds != int(visibility_seconds) or visibility_seconds < 1:
            raise UsageError("pgmq counts visibility in whole seconds, at least 1")
        self.name = f"pgmq:{queue}"
        self.traits = replace(_TRAITS, lease_seconds=float(visibility_seconds), receive_max=1000)
        self._queue = queue
        self._visibility_seconds = int(visibility_seconds)
        self._remove = _ARCHIVE if archive else _DELETE
        # Two sessions: a receive that waits for messages must not hold up an ack or an extension. Postgres cuts an
        # application's name at 63 characters, with a notice for each connection.
        self._receiving = Session(dsn, f"onceward {queue} receive"[:63])
        self._settling = Session(dsn, f"onceward {queue} settle"[:63])

    def receive(self, limit: int, wait_seconds: float) -> Received:
        if limit < 1:
            return Received(())
        rows = self._receiving.fetch(_READ, self._params() | {"limit": limit})
        if not rows and wait_seconds > 0:
            # read_with_poll counts whole seconds, and with 0 it would not look even once.
            wait = {"limit": limit, "wait": max(1, round(wait_seconds)), "poll": POLL_MILLISECONDS}
            rows = self._receiving.fetch(_READ_WAITING, self._params() | wait)
        return Received([self._delivery(*row) for row in rows])

    def _params(self) -> dict[str, Any]:
        return {"queue": self._queue, "visibility": self._visibility_seconds}

    def _delivery(self, msg_id: int, read_ct: int, message: bytes | None, headers: bytes | None) -> Delivery:
        return Delivery(
            id=str(msg_id),
            source=self.name,
            headers=_headers(headers),
            body=_body(message),
            count=read_ct,
            handle=msg_id,
        )

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        acked: list[int] = []
        released: dict[float, list[int]] = {}
        settled: set[int] = set()
        for delivery, settlement in entries:
            match settlement.action:
                case "ack":
                    acked.append(delivery.handle)
                case "release":
                    released.setdefault(settlement.delay_seconds, []).append(delivery.handle)
                case "leave":
                    settled.add(delivery.handle)
                case _:
                    assert_never(settlement.action)
        if acked:
            settled |= self._changed(self._remove, acked)
        for delay_seconds, ids in released.items():
            settled |= self._hide(ids, delay_seconds)
        return [Outcome.SETTLED if delivery.handle in settled else Outcome.LOST for delivery, _ in entries]

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        hidden = self._hide([delivery.handle for delivery in deliveries], seconds)
        return [Outcome.SETTLED if delivery.handle in hidden else Outcome.LOST for delivery in deliveries]

    def _hide(self, ids: list[int], seconds: float) -> set[int]:
        """The ids that exist, hidden until `seconds` from now."""
        return self._changed(_SET_VT, ids, seconds=max(0.0, seconds))

    def _changed(self, statement: str, ids: list[int], **params: float) -> set[int]:
        """The ids for which the statement found a message."""
        return {row[0] for row in self._settling.fetch(statement, {"queue": self._queue, "ids": ids, **params})}

    def close(self) -> None:
        self._receiving.close()
        self._settling.close()


class Sink:
    """pgmq queues as a sink. `queues` says where each message type goes: one queue, several, or all types to one."""

    def __init__(self, queues: str | Mapping[str, str | Sequence[str]], dsn: str) -> None:
        """Raises `UsageError` for what names no queue: later, each message would look unsendable."""
        if not queues or not isinstance(queues, str | Mapping):
            raise UsageError(
                "queues is the name of one queue for all types, or a mapping of types to queues, like "
                f"{{'order.paid': ['ledger', 'emails']}}; not {queues!r}"
            )
        self.traits = _TRAITS
        self._queues = queues
        self._session = Session(dsn, "onceward publish")

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """Stored together, in one transaction over all queues; when the queues refuse that, one by one.

        Together in parts of at most `SEND_BYTES_MAX`: as base64 in JSON, a batch would otherwise outgrow what one protocol
        message holds, and the call's memory with it.
        """
        errors: list[BaseException | None] = [None] * len(messages)
        # Subjects behind an error, over all parts and queues: their later messages wait, wherever they would go.
        held: set[str] = set()
        for part in _parts(messages):
            self._publish_part(part, messages, errors, held)
        return errors

    def _publish_part(
        self, part: range, messages: Sequence[Message], errors: list[BaseException | None], held: set[str]
    ) -> None:
        good: list[int] = []
        for index in part:
            errors[index] = self._refuse(messages[index], held)
            if errors[index] is None:
                good.append(index)
        if not good or self._send([messages[index] for index in good]) is None:
            return
        for index in good:
            subject = messages[index].subject
            errors[index] = _HELD if subject in held else self._send([messages[index]])
            if errors[index] is not None and subject is not None:
                held.add(subject)

    def _send(self, messages: Sequence[Message]) -> psycopg.Error | None:
        """Why the queues did not take these messages, in one transaction; None: they did."""
        by_queue: dict[str, list[Message]] = {}
        for message in messages:
            for queue in self._targets(message.type):
                by_queue.setdefault(queue, []).append(message)
        try:
            self._session.send(by_queue)
        except psycopg.Error as error:
            return error
        return None

    def _targets(self, message_type: str) -> Sequence[str]:
        if isinstance(self._queues, str):
            return (self._queues,)
        target = self._queues.get(message_type, ())
        return (target,) if isinstance(target, str) else target

    def _refuse(self, message: Message, held: set[str]) -> BaseException | None:
        """Why this message cannot be sent, now or at all; its subject is held from then on. None: it can."""
        error = _HELD if message.subject in held else self._unsendable(message)
        if error is not None and message.subject is not None:
            held.add(message.subject)
        return error

    def _unsendable(self, message: Message) -> BaseException | None:
        if not self._targets(message.type):
            return UsageError(f"no queue is named for messages of type {message.type!r}")
        if len(message.body) > BODY_BYTES_MAX:
            return UsageError(
                f"a body of {len(message.body)} bytes is more than the {BODY_BYTES_MAX} that this queue takes"
            )
        return None

    def close(self) -> None:
        self._session.close()


def _parts(messages: Sequence[Message]) -> Iterator[range]:
    """The messages' indexes, in order, in parts of at most `SEND_BYTES_MAX`; a larger message is a part of its own."""
    begin, body_bytes = 0, 0
    for index, message in enumerate(messages):
        body_bytes += len(message.body)
        if index > begin and body_bytes > SEND_BYTES_MAX:
            yield range(begin, index)
            begin, body_bytes = index, len(message.body)
    yield range(begin, len(messages))


def _wire(messages: Sequence[Message]) -> dict[str, list[Jsonb]]:
    wires = [message.to_wire() for message in messages]
    return {
        "messages": [Jsonb({"data_base64": base64.b64encode(body).decode()}) for _, body in wires],
        "headers": [Jsonb(headers) for headers, _ in wires],
    }


def _undecoded(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def _headers(headers: bytes | None) -> dict[str, str]:
    """Headers as text to text; what another producer wrote as numbers or objects is kept as its JSON text."""
    value = _read(headers) if headers else {}
    if not isinstance(value, dict):
        return {}
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in value.items() if v is not None}


def _body(message: bytes | None) -> bytes:
    """Our own messages travel as base64; another producer's JSON is the body as it stands."""
    value = _read(message) if message else None
    if value is _UNREADABLE and message is not None:
        return message
    # This one key and no other: another producer's object may have a field of the same name.
    if isinstance(value, dict) and set(value) == {"data_base64"} and isinstance(value["data_base64"], str):
        try:
            return base64.b64decode(value["data_base64"], validate=True)
        except ValueError:
            pass
    try:
        return encode_json(value)
    except ValueError:
        # A number that is larger than a float can be: what was read as infinity is not JSON.
        return message or b"null"


def _read(text: bytes) -> Any:
    """The JSON value; `_UNREADABLE` for what Postgres takes and Python does not (numbers too long, arrays too deep)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _UNREADABLE


# No limit on idling: after a quiet hour, the first message must not find its connection closed.
_SETTINGS: Final = (
    "SET statement_timeout TO '30s'; SET lock_timeout TO '5s'; SET synchronous_commit TO on; SET idle_session_timeout TO 0"
)
_QUEUE: Final = (
    "SELECT c.oid::regclass::text, c.relpersistence FROM pgmq.meta AS m"
    " JOIN pg_class AS c ON c.relnamespace = 'pgmq'::regnamespace AND c.relname = 'q_' || lower(m.queue_name)"
    " WHERE m.queue_name = %s"
)
_QUEUES: Final = (
    "SELECT x.queue_name, x.queue_length, x.oldest_msg_age_sec, c.relpersistence <> 'u'"
    " FROM pgmq.metrics_all() AS x"
    " JOIN pg_class AS c ON c.relnamespace = 'pgmq'::regnamespace AND c.relname = 'q_' || lower(x.queue_name)"
    " ORDER BY x.queue_name"
)
_LOCK_INSTALL: Final = "SELECT pg_advisory_xact_lock(hashtext('onceward pgmq install'))"
_SEND: Final = "SELECT pgmq.send_batch(%(queue)s, %(messages)s::jsonb[], %(headers)s::jsonb[])"
_READ: Final = "SELECT msg_id, read_ct, message, headers FROM pgmq.read(%(queue)s, %(visibility)s, %(limit)s)"
_READ_WAITING: Final = (
    "SELECT msg_id, read_ct, message, headers FROM pgmq.read_with_poll(%(queue)s, %(visibility)s, %(limit)s,"
    " %(wait)s::integer, %(poll)s::integer)"
)
_DELETE: Final = "SELECT pgmq.delete(%(queue)s, %(ids)s::bigint[])"
_ARCHIVE: Final = "SELECT pgmq.archive(%(queue)s, %(ids)s::bigint[])"
# By a timestamp: the form of set_vt with an integer knows whole seconds only.
_SET_VT: Final = (
    "SELECT msg_id FROM pgmq.set_vt(%(queue)s, %(ids)s::bigint[], clock_timestamp() + make_interval(secs => %(seconds)s))"
)
