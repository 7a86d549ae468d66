"""The heartbeat: keeps the leases of every delivery that this process holds.

It does so from receive until the delivery is settled.

A heartbeat makes it rare that two workers have one message; what makes two workers harmless is the fencing token. It goes
by the database's clock, on a thread of its own: a handler that waits, computes or holds its transaction cannot block it,
and a database that is away keeps it from the queue for no longer than one beat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from onceward.database import Database, tuples
from onceward.events import Listeners
from onceward.inbox import InboxTable
from onceward.message import Message, row_key
from onceward.transport import Delivery, Outcome, Source

logger = logging.getLogger("onceward")
BEATS_PER_LEASE: Final = 3.5  # "at most a third", with room for a late beat
STOP_SECONDS_MAX: Final = 5.0


@dataclass(slots=True)
class Claim:
    """An inbox row that this process has claimed.

    `good_until` is by this process's clock: a hint for its own handler, and nothing else.
    """

    delivery: Delivery
    message_id: UUID
    token: int
    good_until: float


@dataclass(slots=True, eq=False)
class Held:
    """One delivery in this process.

    `received`: the queue's lease on it is ours to extend. `claim`: so is that of its inbox row.
    """

    delivery: Delivery
    received: bool = False
    claim: Claim | None = None
    lost: bool = False


class LeaseKeeper:
    """Keeps the leases of all deliveries and claims that are held, by a heartbeat.

    Each is extended at least three times a lease.
    """

    def __init__(self, database: Database, inbox: InboxTable, source: Source | None, listeners: Listeners) -> None:
        self._consumer = inbox.consumer
        self._claim_seconds = inbox.lease_seconds
        self._listeners = listeners
        queue_seconds = None if source is None else source.traits.lease_seconds
        self._every_seconds = min(inbox.lease_seconds, queue_seconds or inbox.lease_seconds) / BEATS_PER_LEASE
        self._queue = QueueLeases(source, queue_seconds, self._every_seconds)
        self._claims = ClaimLeases(database, inbox, self._every_seconds)
        # By the arrival itself (id() of the object), not by its delivery id: a message that comes again while its first
        # delivery is still in hand may come under the same delivery id (pgmq), and settling the one must not end the
        # heartbeat of the other. The record refers to its delivery, so Python cannot use that id() again meanwhile.
        self._held: dict[int, Held] = {}
        # What the extension is about that is under way now: at the queue, and in the database.
        self._extended_at_queue: set[Held] = set()
        self._extended_claims: set[Held] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def received(self, deliveries: Sequence[Delivery]) -> None:
        """These deliveries are ours from now on: also while they only wait in this process."""
        with self._changed:
            for delivery in deliveries:
                self._record(delivery).received = True
            self._ensure_thread()

    def claimed(self, delivery: Delivery, message: Message, token: int) -> None:
        """This delivery's inbox row is ours from now on, under this fencing token."""
        with self._changed:
            good_until = time.monotonic() + self._claim_seconds
            self._record(delivery).claim = Claim(delivery, row_key(message.id), token, good_until)
            self._ensure_thread()

    def done(self, delivery: Delivery) -> None:
        """The claim is over (finished, failed, parked or lost).

        The queue's lease goes on until `drop`.
        May be called before the handler has returned, and more than once. Returns once no extension of the claim is in
        flight.
        """
        with self._changed:
            held = self._held.get(id(delivery))
            if held is None:
                return
            held.claim = None
            if not held.received:
                del self._held[id(delivery)]
            # An extension that is carried out after this would take back a lease that is about to be given up. But this
            # waits for one beat only: a database that hangs must not hold up a handler whose claim is to end.
            self._changed.wait_for(lambda: held not in self._extended_claims, timeout=self._every_seconds)

    def drop(self, deliveries: Sequence[Delivery]) -> None:
        """These deliveries are about to be settled.

        Returns once no extension of them is in flight at the queue.
        """
        with self._changed:
            dropped = [held for delivery in deliveries if (held := self._held.pop(id(delivery), None)) is not None]
            # An extension that is carried out after a release would hide the message for another lease.
            self._changed.wait_for(lambda: self._extended_at_queue.isdisjoint(dropped))

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """The queue has taken these away."""
        # It says so with deliveries of its own making: they are known by their ids.
        ids = {delivery.id for delivery in deliveries}
        with self._changed:
            taken_away = [held.delivery for held in self._held.values() if held.received and held.delivery.id in ids]
        self._mark_lost(taken_away)

    def is_lost(self, delivery: Delivery) -> bool:
        """Another worker has the message, or may have.

        The latter is so when no heartbeat reached the database for a whole lease.
        This only spares a handler work that would be refused. What decides is the fencing token.
        """
        held = self._held.get(id(delivery))
        if held is None:
            return False
        claim = held.claim
        return held.lost or (claim is not None and time.monotonic() > claim.good_until)

    def stop(self) -> None:
        """The heartbeat ends, after the beat that is under way.

        Leases that are still held lapse by themselves.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=STOP_SECONDS_MAX)

    def _record(self, delivery: Delivery) -> Held:
        return self._held.setdefault(id(delivery), Held(delivery))

    def _ensure_thread(self) -> None:
        if not self._stopping and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="onceward-heartbeat", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, timeout=self._every_seconds):
                    return
            try:
                # The queue's first: its leases must not wait for a database that is away.
                self._extend_at_queue()
                self._extend_claims()
            except BaseException:
                # Whatever a source or a listener raises: without this thread, every lease of this process would lapse.
                logger.exception("heartbeat failed; retrying in %.1f s", self._every_seconds)

    def _extend_at_queue(self) -> None:
        with self._extension(self._extended_at_queue, lambda held: held.received) as extended:
            lost = self._queue.extend([held.delivery for held in extended]) if extended else []
        self._mark_lost(lost)

    def _extend_claims(self) -> None:
        with self._extension(self._extended_claims, lambda held: held.claim is not None) as extended:
            # Looked at again: one that has ended since must not be extended.
            claims = [claim for held in extended if (claim := held.claim) is not None]
            lost = self._claims.extend(claims) if claims else []
        self._mark_lost(lost)

    @contextmanager
    def _extension(self, under_way: set[Held], is_wanted: Callable[[Held], bool]) -> Iterator[list[Held]]:
        """Inside, an extension of these is under way, as `under_way` says to other threads."""
        with self._changed:
            extended = [held for held in self._held.values() if is_wanted(held)]
            under_way.update(extended)
        try:
            # Outside the lock: the queue may take long to answer, and deliveries come and go meanwhile.
            yield extended
        finally:
            with self._changed:
                under_way.clear()
                self._changed.notify_all()

    def _mark_lost(self, deliveries: Sequence[Delivery]) -> None:
        """Say once of each delivery that its lease is lost.

        Its handler is refused at its next step.
        """
        with self._changed:
            # The answer may be about a delivery that was settled, or whose claim has ended, while it was on its way: that
            # one is not lost. A delivery that was marked before (by the queue, then by the database) is not logged twice.
            records = [self._held.get(id(delivery)) for delivery in deliveries]
            newly_lost = [held for held in records if held is not None and not held.lost]
            for held in newly_lost:
                held.lost = True
        # A listener may take long, or come back to this keeper: it is called without the lock.
        for held in newly_lost:
            logger.warning("lease of delivery %s lost; another worker has its message, or will have it", held.delivery.id)
            self._listeners.emit("consumer.lease_lost", self._consumer, delivery=held.delivery.id)


class QueueLeases:
    """Extends the queue's leases.

    An answer that does not come is logged, and asked for again at the next beat.
    """

    def __init__(self, source: Source | None, lease_seconds: float | None, every_seconds: float) -> None:
        self._source = source
        self._lease_seconds = lease_seconds
        self._every_seconds = every_seconds

    def extend(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Each delivery is ours for another lease; returns those that are not ours any more.

        Where the queue has no lease, nothing is asked: it says by itself, in `Received.lost`, what it takes away.
        """
        if self._source is None or self._lease_seconds is None:
            return []
        try:
            outcomes = self._source.extend(deliveries, self._lease_seconds)
            return [delivery for delivery, outcome in zip(deliveries, outcomes, strict=True) if outcome is Outcome.LOST]
        except Exception as error:  # noqa: BLE001 - the next beat tries again; if none succeeds, redelivery decides
            logger.warning(
                "extending the leases of %d deliveries failed; retrying in %.1f s: %s",
                len(deliveries), self._every_seconds, error,
            )  # fmt: skip
            return []


class ClaimLeases:
    """Extends the leases of claims in the database.

    A failure is logged, and tried again at the next beat.
    """

    def __init__(self, database: Database, inbox: InboxTable, every_seconds: float) -> None:
        self._database = database
        self._inbox = inbox
        self._every_seconds = every_seconds

    def extend(self, claims: Sequence[Claim]) -> list[Delivery]:
        """Each claim is ours for another lease.

        Returns the deliveries whose claims are another worker's now.
        """
        # Taken before the statement: the lease that the database gives ends no sooner than this says.
        asked_at = time.monotonic()
        try:
            with self._database.connection(wait_seconds=self._every_seconds) as conn:
                params = self._params(claims) | {"lease_seconds": self._inbox.lease_seconds}
                extended = {row[0] for row in tuples(conn, self._inbox.statements["inbox_extend"], params)}
                lost = self._lost(conn, [claim for claim in claims if claim.message_id not in extended])
        except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; as for the queue
            logger.warning(
                "extending the leases of %d claims failed; retrying in %.1f s: %s", len(claims), self._every_seconds, error
            )
            return []
        for claim in claims:
            claim.good_until = asked_at + self._inbox.lease_seconds
        return lost

    def _lost(self, conn: Connection[Any], missed: Sequence[Claim]) -> list[Delivery]:
        """Of the claims that were not extended, those that another worker has now."""
        if not missed:
            return []
        # The extension skips a row that is locked: most often by its own handler, which is just finishing it. So a claim
        # that was not extended is lost only where its row says so.
        lost_ids = {row[0] for row in tuples(conn, self._inbox.statements["inbox_lost"], self._params(missed))}
        return [claim.delivery for claim in missed if claim.message_id in lost_ids]

    def _params(self, claims: Sequence[Claim]) -> dict[str, Any]:
        return {
            "consumer": self._inbox.consumer,
            "message_ids": [claim.message_id for claim in claims],
            "tokens": [claim.token for claim in claims],
        }
