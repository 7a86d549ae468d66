"""`Consumer`: a registry of handlers by message type. It connects to nothing until it is opened or run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

import psycopg
from psycopg import Connection
from psycopg.types.json import Json

from onceward.callables import check_plain
from onceward.database import HANDLER_SECONDS_MAX, Database, DatabaseSource, is_broken, tuples
from onceward.day_partitions import WINDOW_DEFAULT, make_partition_for
from onceward.endpoints import SourceOrFactory, opened_source
from onceward.errors import UsageError
from onceward.events import Listener, Listeners
from onceward.foreign import Foreign, read_message
from onceward.handler_times import HandlerClock, LeaseWatch
from onceward.inbox import LEASE_SECONDS_DEFAULT, InboxTable, check_identity
from onceward.intents import Intents
from onceward.lease import LeaseKeeper
from onceward.message import MalformedMessage, Message, row_key
from onceward.outbox import Nudge
from onceward.parked import parked_id
from onceward.perform import NoHandler, Once, Performer
from onceward.protocol.delivery import Limits
from onceward.protocol.reasons import ParkReason
from onceward.protocol.words import Shape
from onceward.retry import Backoff
from onceward.rights import check_rights
from onceward.runtime import Runtime
from onceward.schema import check_schema
from onceward.statements import SCHEMA_DEFAULT, check_schema_name, storable
from onceward.transport import ACK, LEAVE, Delivery, Settlement, Source

logger = logging.getLogger("onceward")

Transactional = Callable[[Message, Connection[Any]], None]
Effectful = Callable[[Message, Once], None]
OtherTypes = Literal["park", "ignore"]
# Besides one for each thread: one for the heartbeat, one for nudges, one for upkeep.
CONNECTIONS_BESIDE_THREADS: Final = 3
WRITE_TIMES_SECONDS_MAX: Final = 2.0


class Handler(NamedTuple):
    """One registered handler and its shape."""

    shape: Shape
    call: Callable[..., None]


@dataclass(eq=False, repr=False)
class Consumer:
    """The handlers of one consumer, by message type, and the limits of their tries.

    `name` is part of every key: it must be stable; renaming it is a migration.
    `window`: how far back a duplicate is recognised; longer than the queue keeps messages, dead letters included.
    `lease_seconds`: how long a claim of an effectful message is a worker's after its last heartbeat.
    `attempts_max`: a message that failed so often is parked; `backoff` is the wait before each retry.
    `deliveries_max`: a message that came so often without any outcome (its worker died each time) is parked.
    `other_types`: what becomes of a message whose type has no handler here.
    `handler_seconds_max`: how long one statement of a handler may take, and how long it may idle in its transaction.
    `untimed_ids`: ids that are not UUIDv7 are taken, too; a duplicate that comes after its row was pruned is taken as new.
    `foreign`: where the id and the type of a message stand whose producer is not ours.
    `schema`: where our tables are.

    Raises `UsageError` for values that cannot work.
    """

    name: str
    _: KW_ONLY
    window: timedelta = WINDOW_DEFAULT
    lease_seconds: float = LEASE_SECONDS_DEFAULT
    attempts_max: int = 10
    deliveries_max: int = 50
    backoff: Backoff = Backoff()  # noqa: RUF009 - immutable
    other_types: OtherTypes = "park"
    handler_seconds_max: float = HANDLER_SECONDS_MAX
    untimed_ids: bool = False
    foreign: Foreign | None = None
    schema: str = SCHEMA_DEFAULT

    def __post_init__(self) -> None:
        check_identity(self.name, window=self.window, lease_seconds=self.lease_seconds)
        check_schema_name(self.schema)
        if self.attempts_max < 1 or self.deliveries_max < 1:
            raise UsageError("attempts_max and deliveries_max must be at least 1")
        if not isinstance(self.backoff, Backoff):
            raise UsageError(f"backoff is a Backoff(first_seconds=..., seconds_max=...), not {self.backoff!r}")
        if self.handler_seconds_max <= 0:
            raise UsageError("handler_seconds_max must be more than 0")
        if self.other_types not in ("park", "ignore"):
            raise UsageError(f"other_types is 'park' or 'ignore', not {self.other_types!r}")
        if self.foreign is not None and not isinstance(self.foreign, Foreign):
            raise UsageError(f"foreign is a Foreign(id=..., type=...), not {self.foreign!r}")
        self.limits = Limits(self.attempts_max, self.deliveries_max)
        self.handlers: dict[str, Handler] = {}
        self._opened: OpenConsumer | None = None

    def transactional(self, message_type: str) -> Callable[[Transactional], Transactional]:
        """Register `(message, tx)`: its writes and the inbox row are one transaction, opened before it runs.

        `tx` is the handler's own, on its own thread, until it returns. Raises `UsageError` for what is not a plain function
        of two arguments.
        """
        return self._register("transactional", message_type)

    def effectful(self, message_type: str) -> Callable[[Effectful], Effectful]:
        """Register `(message, once)`: it touches the outside by `once.effect`, and writes in `once.transaction()`.

        Raises `UsageError` for what is not a plain function of two arguments.
        """
        return self._register("effectful", message_type)

    def _register(self, shape: Shape, message_type: str) -> Callable[[Any], Any]:
        if not isinstance(message_type, str) or not message_type:
            raise UsageError(f"register a handler for a message type, like 'order.placed', not {message_type!r}")

        def register(call: Any) -> Any:
            check_plain(call, f"the handler of {message_type!r}", 2)
            if message_type in self.handlers:
                raise UsageError(f"consumer {self.name!r} has a handler for {message_type!r} already")
            self.handlers[message_type] = Handler(shape, call)
            return call

        return register

    def open(
        self,
        database: DatabaseSource,
        *,
        threads: int = 1,
        listeners: Sequence[Listener] = (),
        source: SourceOrFactory | None = None,
        upkeep: bool = True,
        allow_short_window: bool = False,
    ) -> OpenConsumer:
        """Connect: checks the schema, the rights and the window, starts the heartbeat. Close what it returns.

        `source`, whose leases are kept, is a Source, or a function that makes one: that is closed with what this returns.
        `upkeep=False`: this role may not make and drop partitions; `onceward upkeep` does it daily as their owner.
        `allow_short_window`: start although the queue keeps messages for longer than the window; a warning says each time
        what can happen.
        Raises `SchemaMismatch`, `UsageError`, or psycopg's own error when the database does not answer.
        """
        self._opened = OpenConsumer(
            self, database, threads=threads, listeners=listeners, source=source, upkeep=upkeep,
            allow_short_window=allow_short_window,
        )  # fmt: skip
        return self._opened

    def deliver(self, delivery: Delivery) -> Settlement:
        """One delivery, without the loop: what the queue is to be told. `open` must have been called in this process."""
        # Not opened here by itself: after a fork, or in a Lambda, only the caller knows when a process is ready to connect.
        if self._opened is None:
            raise UsageError("call consumer.open(database) once in this process before consumer.deliver(...)")
        return self._opened.deliver(delivery)


class OpenConsumer:
    """A consumer with its database in this process. A context manager; `deliver` may be called from many threads."""

    def __init__(
        self,
        consumer: Consumer,
        database: DatabaseSource,
        *,
        threads: int = 1,
        listeners: Sequence[Listener] = (),
        source: SourceOrFactory | None = None,
        upkeep: bool = True,
        allow_short_window: bool = False,
    ) -> None:
        if not consumer.handlers:
            raise UsageError(f"consumer {consumer.name!r} has no handler: register one with @consumer.transactional(...)")
        self.consumer = consumer
        self.listeners = Listeners(listeners)
        with ExitStack() as opening:
            made = None if source is None else opening.enter_context(opened_source(source))
            self.database = Database(
                database,
                size=threads + CONNECTIONS_BESIDE_THREADS,
                schema=consumer.schema,
                handler_seconds_max=consumer.handler_seconds_max,
                application_name=f"onceward {consumer.name}"[:63],
            )
            opening.callback(self.database.close)
            self._start(made, upkeep=upkeep, allow_short_window=allow_short_window)
            self._closing = opening.pop_all()

    def _start(self, source: Source | None, *, upkeep: bool, allow_short_window: bool) -> None:
        consumer = self.consumer
        inbox = InboxTable(
            consumer.name,
            window=consumer.window,
            lease_seconds=consumer.lease_seconds,
            untimed_ids=consumer.untimed_ids,
            schema=consumer.schema,
        )
        self._clock = HandlerClock(consumer.name, schema=consumer.schema)
        lease_seconds = None if source is None else source.traits.lease_seconds
        self._lease_watch = LeaseWatch(consumer.name, lease_seconds, schema=consumer.schema)
        with self.database.connection() as conn:
            check_rights(conn, schema=consumer.schema, upkeep=upkeep)
            check_schema(conn, schema=consumer.schema)
            check_window(conn, inbox, source, allow_short=allow_short_window)
            say_window(conn, inbox)
            self._lease_watch.look(conn)
        say_dead_letters(consumer, source)
        inbox.warn_of_pruning()
        self.nudge = Nudge(self.database)
        self.keeper = LeaseKeeper(self.database, inbox, source, self.listeners)
        self.runtime = Runtime(
            inbox=inbox,
            intents=Intents(consumer.name, schema=consumer.schema),
            database=self.database,
            limits=consumer.limits,
            backoff=consumer.backoff,
            listeners=self.listeners,
            keeper=self.keeper,
            nudge=self.nudge,
            partition_late=self._make_partition,
        )

    def deliver(self, delivery: Delivery) -> Settlement:
        """Take, handle, finish or park; what the queue is to be told. The lease is kept until this returns."""
        try:
            return self._deliver(delivery)
        finally:
            # Also after an error of ours: a claim that nobody works on any more must lapse, not be extended for ever.
            self.keeper.done(delivery)

    def _deliver(self, delivery: Delivery) -> Settlement:
        try:
            message = read_message(delivery, self.consumer.foreign)
        except MalformedMessage as error:
            return self._park_malformed(delivery, str(error))
        handler = self.consumer.handlers.get(message.type)
        if handler is not None:
            return Performer(self.runtime, handler.shape, self._clock.timed(handler.call), message, delivery).run()
        if self.consumer.other_types == "ignore":
            return ACK
        # Through the inbox, as any other: a redelivery of what was parked must be a duplicate, and a redrive needs its row.
        return Performer(self.runtime, "transactional", self._refuse_type, message, delivery).run()

    def excuse(self, delivery: Delivery, why: str) -> None:
        """This delivery, which its queue has counted, is given back before its handler began: it counts as no crash.

        Crash before it, or no database: it counts as one.
        """
        if not delivery.count:
            return
        try:
            message = read_message(delivery, self.consumer.foreign)
        except MalformedMessage:
            return
        handler = self.consumer.handlers.get(message.type)
        if handler is not None and handler.shape == "effectful":
            return  # its takes are counted in its row
        inbox = self.runtime.inbox
        try:
            with self.database.connection() as conn:
                conn.execute(
                    inbox.statements["excuse"],
                    {"consumer": inbox.consumer, "message_id": row_key(message.id), "error": why},
                )
        except psycopg.Error as error:
            logger.warning("delivery %s was not begun, but counts as a crash: %s", delivery.id, error)

    def _refuse_type(self, message: Message, _tx: object) -> None:
        """The handler of a type that has none: the message is parked under its own id, for newer code and a redrive."""
        known = ", ".join(sorted(self.consumer.handlers))
        raise NoHandler(f"no handler for {message.type!r} here (there are: {known})")

    def _park_malformed(self, delivery: Delivery, detail: str) -> Settlement:
        """Parked under its source and delivery id: what arrived is not a message that could be taken.

        Crash before it: the delivery comes again. Crash after it: it comes again and is parked again, the same row.
        """
        inbox, reason = self.runtime.inbox, ParkReason.MALFORMED
        headers = {storable(str(name)): storable(str(value)) for name, value in delivery.headers.items()}
        stand_in = Message(type="malformed", body=delivery.body)
        params = inbox.park_params(stand_in, delivery.source, reason, storable(detail))
        params |= {"parked_id": parked_id(f"{delivery.source}#{delivery.id}"), "headers": Json(headers)}
        try:
            with self.database.connection() as conn:
                conn.execute(inbox.statements["park_beside"], params)
        except psycopg.Error as error:
            logger.warning("delivery %s not parked, the queue will deliver it again: %s", delivery.id, error)
            return LEAVE
        logger.error(
            "%s: delivery %s of %s is parked for a person to look at: %s: %s",
            inbox.consumer, delivery.id, delivery.source, reason.value, detail,
            extra={"onceward": {"consumer": inbox.consumer, "reason": reason.value, "next": "parked"}},
        )  # fmt: skip
        self.listeners.emit("consumer.parked", inbox.consumer, reason=reason.value)
        return ACK

    def _make_partition(self, message: Message) -> None:
        try:
            with self.database.connection() as conn:
                make_partition_for(conn, message.id, schema=self.consumer.schema)
        except psycopg.OperationalError as error:
            logger.error("missing partition not made; the message comes again, and the next take tries it: %s", error)
        except psycopg.errors.InsufficientPrivilege:
            logger.error(
                "missing partition not made: this role may not; the message comes again. Run `onceward upkeep --schema %s` "
                "as the owner of the tables, now and daily", self.consumer.schema,
            )  # fmt: skip
            raise

    def seen(self, conn: Connection[Any]) -> None:
        """The database knows that this consumer is here, with its window, and how long its handlers take.

        For each turn of upkeep. A warning says where the queue's lease is short for them.
        """
        self.runtime.inbox.seen(conn)
        try:
            self._clock.write(conn)
            self._lease_watch.look(conn)
        except psycopg.Error as error:
            if is_broken(conn, error):
                raise
            # Upkeep comes after this, and must not wait for a statistic: without the next day's partition nothing is taken.
            logger.warning("how long handlers take was not written; the next turn of upkeep tries again: %s", error)

    def close(self) -> None:
        """Stop the heartbeat and give the connections back. Claims that are still held lapse by themselves."""
        self.keeper.stop()
        self.nudge.stop()
        self._write_times()
        self._closing.close()

    def _write_times(self) -> None:
        if not self._clock.has_unwritten:
            return
        try:
            with self.database.connection(wait_seconds=WRITE_TIMES_SECONDS_MAX) as conn:
                self._clock.write(conn)
        except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; a stop must not fail
            logger.info("how long the handlers took was not written; what earlier turns wrote stays: %s", error)

    def __enter__(self) -> OpenConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_window(conn: Connection[Any], inbox: InboxTable, source: Source | None, *, allow_short: bool = False) -> None:
    """Raises `UsageError` when the window is shorter than the time for which the queue keeps messages.

    With `allow_short`, a warning says instead what can happen.

    A duplicate that comes later than the window would be new to the inbox. An outbox row that is older than the window is
    only logged: its message alone is parked when it arrives, and that must not stop all the others.
    """
    window = inbox.window.total_seconds()
    retention = source.traits.retention_seconds if source is not None else None
    if retention is not None and retention > window:
        if not allow_short:
            raise UsageError(
                f"the dedup window of {inbox.consumer!r} is {window:g} s, but its queue keeps messages for {retention:g} "
                f"s: a duplicate could come after its message is forgotten; make the window longer (or accept it with "
                f"allow_short_window=True, or `onceward run --allow-short-window`)"
            )
        logger.warning(
            "the dedup window of %r is %g s, shorter than the %g s for which its queue keeps messages; allow_short_window "
            "accepts that. A message that waits for longer than the window is parked instead of handled, and an untimed id "
            "whose row was pruned is handled again",
            inbox.consumer, window, retention,
        )  # fmt: skip
    oldest = tuples(conn, inbox.statements["outbox_oldest_seconds"])
    if oldest and oldest[0][0] > window:
        logger.error(
            "the outbox holds a message that is %.0f s old, longer than the dedup window of %r (%.0f s): when it arrives "
            "it is parked as outside the window, and its handler does not run. Find out why no relay sends it; to have "
            "such messages handled, make the window longer before they are sent",
            oldest[0][0], inbox.consumer, window,
        )  # fmt: skip


def say_dead_letters(consumer: Consumer, source: Source | None) -> None:
    """That the queue sets messages aside before this consumer has made all its attempts is logged."""
    deliveries = None if source is None else source.traits.dead_letters_after
    if deliveries is not None and deliveries < consumer.attempts_max:
        logger.warning(
            "the queue of %r sets a message aside after %d deliveries, and the consumer parks it after %d failed attempts: "
            "it will be in the queue's dead letters instead of `onceward parked list`, without a reason. Make the queue's "
            "limit higher, or attempts_max lower",
            consumer.name, deliveries, consumer.attempts_max,
        )  # fmt: skip


def say_window(conn: Connection[Any], inbox: InboxTable) -> None:
    """Upkeep knows this process's window; that a longer one of the same consumer is kept is logged."""
    longest = inbox.seen(conn)
    if longest > inbox.window.total_seconds():
        logger.warning(
            "consumer %r has a window of %.0f s here, and one of %.0f s in another process: upkeep keeps the longer one "
            "until no process with it has been seen for a day",
            inbox.consumer, inbox.window.total_seconds(), longest,
        )  # fmt: skip
