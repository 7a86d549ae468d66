"""What each worker does.

A role is the service's own code, with its edges watched; it ends only for a producer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import psycopg

from onceward.consumer import Consumer
from onceward.consumer_loop import run
from onceward.relay_loop import relay
from onceward.retry import Backoff
from onceward_proof.ablation.layer_removal import report_handler
from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.prove.variants import MODULES, TUTORIAL, module_of
from onceward_proof.workers.pool import ThreadSource, consume_in_threads
from onceward_proof.workers.reports import Note, Report
from onceward_proof.workers.setting import CONSUMED, Role
from onceward_proof.workers.tutorial import open_clients
from onceward_proof.workers.worker import Worker, profile
from payments import hardened, naive

PlaceOrder = Callable[[psycopg.Connection, dict[str, Any]], None]
# Small: a kill of the relay hits few orders, so that each order meets its own faults.
RELAY_BATCH: Final = 5
SOON: Final = Backoff(first_seconds=0.3, seconds_max=0.5)  # a reader is watching


def _produce(worker: Worker, place: PlaceOrder) -> None:
    """Place all orders, or what the controller gives for as long as it gives any."""
    with worker.connect() as conn:
        if worker.orders or worker.setting.schedule:
            _place_missing(worker, conn, place, worker.orders)
        else:
            while orders := worker.line.ask(Report(Note.WANTED)).orders:
                _place_missing(worker, conn, place, orders)
    worker.line.report(Report(Note.DONE))


def _place_missing(worker: Worker, conn: psycopg.Connection, place: PlaceOrder, orders: Sequence[dict[str, Any]]) -> None:
    """What a killed predecessor has placed, and perhaps not reported, is in the database already."""
    # A producer that was killed reads its own past from the database, as a restarted job would.
    ids = [order["id"] for order in orders]
    placed = {row[0] for row in conn.execute("SELECT id FROM orders WHERE id = ANY(%s)", [ids])}
    for order in orders:
        is_placed = order["id"] in placed
        answer = Answer.GO
        if not is_placed:
            answer = worker.line.report(Report(Boundary.PLACING, message_type="order.placed", order=order["id"]))
            place(conn, order)
        worker.line.report(Report(Note.PLACED, order=order["id"], replayed=is_placed))
        if answer is Answer.GO_TO_THE_END:
            signal.pause()  # the kill is this order's: a producer that went on would let it hit another


def _plain_producer(worker: Worker) -> None:
    # Most variants repair only the consumer: their orders are placed as in naive.
    sink, place = worker.sink(), getattr(_module(worker), "place", naive.place)
    _produce(worker, lambda conn, order: place(conn, sink, order))


def _plain_charge(worker: Worker) -> None:
    def consume(source: ThreadSource) -> None:
        with worker.connect() as conn, closing(worker.sink()) as sink:
            _module(worker).consume_charges(source, conn, sink, worker.card())

    consume_in_threads(worker, CONSUMED["charge"], consume)


def _plain_ledger(worker: Worker) -> None:
    def consume(source: ThreadSource) -> None:
        with worker.connect() as conn:
            _module(worker).consume_bookings(source, conn)

    consume_in_threads(worker, CONSUMED["ledger"], consume)


def _tutorial_producer(worker: Worker) -> None:
    with open_clients(worker.setting, "producer") as (clients, queues):
        _produce(worker, lambda conn, order: _module(worker).place(conn, *clients, queues, order))


def _tutorial_charge(worker: Worker) -> None:
    with worker.connect() as conn, open_clients(worker.setting, "charge") as (clients, queues):
        _module(worker).consume_charges(conn, *clients, queues, worker.card())


def _tutorial_ledger(worker: Worker) -> None:
    with worker.connect() as conn, open_clients(worker.setting, "ledger") as (clients, queues):
        _module(worker).consume_bookings(conn, *clients, queues)


def _module(worker: Worker) -> ModuleType:
    return import_module(module_of(worker.setting.variant, worker.setting.queue))


def _hardened_producer(worker: Worker) -> None:
    # Looked up when it runs: where the outbox is removed, `place` is another function by then.
    _produce(worker, hardened.place)


def _hardened_charge(worker: Worker) -> None:
    provider = profile(worker.setting.window_seconds)
    card = worker.card(provider.call_timeout_seconds)
    _consume(worker, "charge", hardened.charges(card, lease_seconds=worker.setting.lease_seconds, provider=provider))


def _hardened_ledger(worker: Worker) -> None:
    consumer = hardened.ledger(lease_seconds=worker.setting.lease_seconds)
    if worker.setting.is_ablation:
        report_handler(consumer, "order.paid", worker.line)
    _consume(worker, "ledger", consumer)


def _consume(worker: Worker, role: Role, consumer: Consumer) -> None:
    """Run the consumer on the role's queue."""
    setting = worker.setting
    run(
        consumer,
        source=lambda: worker.loop_source(CONSUMED[role]),
        database=setting.database,
        threads=setting.threads,
        prefetch=setting.prefetch,
        drain_seconds=1.0,
        listeners=[worker.watch],
    )


def _hardened_relay(worker: Worker) -> None:
    setting = worker.setting
    poll_seconds, backoff = (0.1, SOON) if setting.is_demo else (0.5, Backoff())
    relay(
        sink=worker.sink, database=setting.database, batch=RELAY_BATCH, lanes=1, poll_seconds=poll_seconds, backoff=backoff,
        listeners=[worker.watch], until_empty=setting.until_empty,
    )  # fmt: skip


Work = Callable[[Worker], None]
PLAIN: Final[Mapping[Role, Work]] = {"producer": _plain_producer, "charge": _plain_charge, "ledger": _plain_ledger}
TUTORIALS: Final[Mapping[Role, Work]] = {
    "producer": _tutorial_producer,
    "charge": _tutorial_charge,
    "ledger": _tutorial_ledger,
}
HARDENED: Final[Mapping[Role, Work]] = {
    "producer": _hardened_producer,
    "charge": _hardened_charge,
    "ledger": _hardened_ledger,
    "relay": _hardened_relay,
}


def work_of(variant: str, role: Role) -> Work:
    """What this variant's worker of this role does."""
    if variant == TUTORIAL:
        return TUTORIALS[role]
    return (PLAIN if variant in MODULES else HARDENED)[role]
