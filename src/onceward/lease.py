"""The heartbeat: keeps every delivery that this process holds, from receive on, through drain, until it is settled.

It makes two workers on one message rare; it is not what makes them harmless (that is the fence). On the database's clock,
from a thread of its own: a handler that waits, computes or holds its transaction does not block it. A database that is away
does not keep it from the queue for longer than a beat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg

from onceward.database import Database, tuples
from onceward.events import Listeners
from onceward.inbox import InboxTable
from onceward.message import Message
from onceward.transport import Delivery, Outcome, Source

logger = logging.getLogger("onceward")
BEATS_PER_LEASE: Final = 3.5  # "at most a third", with room for a late beat


@dataclass(slots=True)
class Claim:
    """A claim that this process holds. `good_until` is by this process's clock: a hint, for its handler alone."""

    delivery: Delivery
    message_id: UUID
    token: int
    good_until: float


class LeaseKeeper:
    """Extends, at least three times a lease, the queue's lease of all deliveries held and the inbox's of all claims."""

    def __init__(self, database: Database, inbox: InboxTable, source: Source | None, listeners: Listeners) -> None:
        self._database = database
        self._inbox = inbox
        self._source = source
        self._listeners = listeners
        # By the arrival itself, not by its id: a message that comes again while its first delivery is still in hand may
        # come under the same id (pgmq), and settling the one must not end the heartbeat of the other.
        self._held: dict[int, Delivery] = {}
        self._claims: dict[int, Claim] = {}
        self._lost: set[int] = set()
        self._beating: set[int] = set()  # their extension at the queue is in flight
        self._extending: set[int] = set()  # their claim's extension in the database is in flight
        self._changed = threading.Condition()
        self._stop = False
        leases = [inbox.lease_seconds] + ([source.traits.lease_seconds] if source is not None else [])
        self._every_seconds = min(leases) / BEATS_PER_LEASE
        self._thread: threading.Thread | None = None

    # ---- what is held ------------------------------------------------------------------------------------------------

    def received(self, deliveries: Sequence[Delivery]) -> None:
        """These are ours from now on: also while they only wait in this process."""
        with self._changed:
            self._held.update((id(delivery), delivery) for delivery in deliveries)
            self._ensure_thread()

    def claimed(self, delivery: Delivery, message: Message, token: int) -> None:
        with self._changed:
            good_until = time.monotonic() + self._inbox.lease_seconds
            self._claims[id(delivery)] = Claim(delivery, UUID(message.id), token, good_until)
            self._ensure_thread()

    def done(self, delivery: Delivery) -> None:
        """The claim is over (finished, failed, parked or lost); the queue's lease goes on until `drop`.

        Returns once no extension of it is in flight any more: it would take back a lease that is about to be given up. It
        waits for a beat at the most: a database that hangs must not hold up whoever has a claim to end. May be called
        before the handler has returned, and more than once.
        """
        arrival = id(delivery)
        with self._changed:
            self._claims.pop(arrival, None)
            if arrival not in self._held:
                self._lost.discard(arrival)
            self._changed.wait_for(lambda: arrival not in self._extending, timeout=self._every_seconds)

    def drop(self, deliveries: Sequence[Delivery]) -> None:
        """These are about to be settled: returns once no extension of them is in flight any more."""
        arrivals = {id(delivery) for delivery in deliveries}
        with self._changed:
            for arrival in arrivals:
                self._held.pop(arrival, None)
                self._claims.pop(arrival, None)
                self._lost.discard(arrival)
            self._changed.wait_for(lambda: not (arrivals & self._beating))

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """The queue took these away."""
        ids = {delivery.id for delivery in deliveries}
        with self._changed:
            gone = [delivery for delivery in self._held.values() if delivery.id in ids]
        self._mark_lost(gone)

    def is_lost(self, delivery: Delivery) -> bool:
        """Another has it, or may have: no heartbeat reached the database for a whole lease. What decides is the fence."""
        claim = self._claims.get(id(delivery))
        return id(delivery) in self._lost or (claim is not None and time.monotonic() > claim.good_until)

    # ---- the beat ----------------------------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if not self._stop and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="onceward-heartbeat", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._stop, timeout=self._every_seconds):
                    return
            try:
                self._beat()
            except BaseException:
                # Whatever a source or a listener raises: without this thread, every lease of this process would lapse.
                logger.exception("a heartbeat failed, the next is tried in %.1f s", self._every_seconds)

    def _beat(self) -> None:
        self._extend_held()  # first: it must not wait for a database that is away
        self._extend_claims()

    def _extend_held(self) -> None:
        with self._changed:
            held = list(self._held.values())
            self._beating = set(self._held)
        try:
            gone = self._extended_at_queue(held) if held else []
        finally:
            with self._changed:
                self._beating = set()
                self._changed.notify_all()
        self._mark_lost(gone)

    def _extended_at_queue(self, held: list[Delivery]) -> list[Delivery]:
        """Each is ours for another lease; those that are not any more."""
        if self._source is None:
            return []
        try:
            outcomes = self._source.extend(held, self._source.traits.lease_seconds)
            return [delivery for delivery, outcome in zip(held, outcomes, strict=True) if outcome is Outcome.LOST]
        except Exception as error:  # noqa: BLE001 - the next beat tries again; if none succeeds, redelivery decides
            logger.warning(
                "the leases of %d deliveries could not be extended, tried again in %.1f s: %s",
                len(held), self._every_seconds, error,
            )  # fmt: skip
            return []

    def _extend_claims(self) -> None:
        with self._changed:
            claims = list(self._claims.values())
            self._extending = set(self._claims)
        try:
            gone = self._extended_in_database(claims) if claims else []
        finally:
            with self._changed:
                self._extending = set()
                self._changed.notify_all()
        self._mark_lost(gone)

    def _extended_in_database(self, claims: list[Claim]) -> list[Delivery]:
        """Each claim is ours for another lease; those that are another's now."""
        params = {
            "consumer": self._inbox.consumer,
            "message_ids": [claim.message_id for claim in claims],
            "tokens": [claim.token for claim in claims],
            "lease_seconds": self._inbox.lease_seconds,
        }
        asked = time.monotonic()
        try:
            with self._database.connection(wait_seconds=self._every_seconds) as conn:
                extended = {row[0] for row in tuples(conn, self._inbox.statements["inbox_extend"], params)}
                gone = self._truly_lost(conn, claims, extended)
        except Exception as error:  # noqa: BLE001 - a caller's `database` may raise what it likes; as for the queue
            logger.warning(
                "the leases of %d claims could not be extended, tried again in %.1f s: %s",
                len(claims), self._every_seconds, error,
            )  # fmt: skip
            return []
        for claim in claims:
            claim.good_until = asked + self._inbox.lease_seconds
        return gone

    def _truly_lost(self, conn: psycopg.Connection, claims: list[Claim], extended: set[UUID]) -> list[Delivery]:
        """Of the claims that were not extended, those that are another's now; the others are being finished."""
        missed = [claim for claim in claims if claim.message_id not in extended]
        if not missed:
            return []
        params = {
            "consumer": self._inbox.consumer,
            "message_ids": [claim.message_id for claim in missed],
            "tokens": [claim.token for claim in missed],
        }
        gone = {row[0] for row in tuples(conn, self._inbox.statements["inbox_lost"], params)}
        return [claim.delivery for claim in missed if claim.message_id in gone]

    def _mark_lost(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            known = self._held.keys() | self._claims.keys()
            fresh = [delivery for delivery in deliveries if id(delivery) in known and id(delivery) not in self._lost]
            self._lost.update(id(delivery) for delivery in fresh)
        for delivery in fresh:
            logger.warning("the lease of delivery %s is lost: another worker has its message, or soon will", delivery.id)
            self._listeners.emit("consumer.lease_lost", self._inbox.consumer, delivery=delivery.id)

    def stop(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
