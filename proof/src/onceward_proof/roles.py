"""What each worker process of a variant does. Runs in a child that was forked from the nursery."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

import psycopg
import requests
import stripe
from psycopg_pool import ConnectionPool

from onceward.consumer_loop import run
from onceward.events import Event
from onceward.provider import ProviderProfile
from onceward.relay_loop import relay
from onceward.statements import statements
from onceward.transports import pgmq
from onceward_proof.layers import report_handler, take_away
from onceward_proof.passage import Everywhere, Line, Place, WatchedSink, WatchedSource, armed_places
from onceward_proof.schedule import read_schedule
from onceward_proof.variants import MODULES, import_all

VISIBILITY_SECONDS: Final = 2
LEASE_SECONDS: Final = 1.5
QUEUES: Final = {"order.placed": "charges", "order.paid": "bookings"}
RELAY_BATCH: Final = 5
TOLD_POINTS: Final = frozenset({"consumer.duplicate", "consumer.parked", "consumer.in_flight"})
DEDUP_POINTS: Final = frozenset({"consumer.claimed", "consumer.taken", "consumer.duplicate"})


@dataclass(frozen=True, slots=True)
class Setting:
    """What every worker of one variant's run needs to know."""

    variant: str
    database: str
    queue_database: str
    provider_url: str
    control_socket: str
    schedule: str  # its file; "": it goes on, and the controller is asked
    service: str  # the folder that holds the package `payments`
    row: bool = False  # a row of the ablation: handlers report, and may be made to fail
    without: tuple[str, ...] = ()  # the layers that are taken away
    window_seconds: float | None = None  # the scaled window of the provider's keys; None: the real one, a day

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setting:
        return cls(**json.loads(text))


class Worker:
    """One forked worker: its line to the controller and its connections."""

    def __init__(
        self, setting: Setting, armed: frozenset[Place], orders: list[dict[str, Any]], role: str, slot: int
    ) -> None:
        self.setting = setting
        self.orders = orders
        self.name = f"{role}-{slot}-{os.getpid()}"
        who = {"role": role, "slot": slot, "pid": os.getpid()}
        self.line = Line(Path(setting.control_socket), who, armed)

    def source(self, queue: str) -> WatchedSource:
        inner = pgmq.Source(queue, self.setting.queue_database, visibility_seconds=VISIBILITY_SECONDS)
        return WatchedSource(inner, self.line)

    def sink(self) -> WatchedSink:
        return WatchedSink(pgmq.Sink(QUEUES, self.setting.queue_database), self.line)

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.setting.database, autocommit=True, connect_timeout=5)

    def card(self) -> Any:
        return make_card(self.setting, self.name)[0]

    def watch(self, event: Event) -> None:
        if event.point in DEDUP_POINTS:
            self.line.note(dedup=event.point == "consumer.duplicate")
        if event.point in TOLD_POINTS:
            self.line.note(outcome=event.point)


def make_card(setting: Setting, name: str) -> tuple[Any, requests.Session]:
    """The card client; the SDK's own retries are off, and the worker is named in a header of the connection."""
    from payments.card import TIMEOUT_SECONDS, Card  # noqa: PLC0415 - found on the service's own path

    session = requests.Session()
    session.headers["X-Onceward-Worker"] = name
    session.trust_env = False
    timeout = TIMEOUT_SECONDS if setting.window_seconds is None else profile(setting).call_timeout_seconds
    http = stripe.RequestsClient(timeout=timeout, session=session)
    addresses: Any = {"api": setting.provider_url}
    client = stripe.StripeClient("sk_test_proof", base_addresses=addresses, max_network_retries=0, http_client=http)
    return Card(client), session


def profile(setting: Setting) -> ProviderProfile:
    """The provider's promise; scaled, half of the window is margin: a late call on a busy machine is still inside it."""
    from payments.hardened import PROVIDER  # noqa: PLC0415 - found on the service's own path

    window = setting.window_seconds
    if window is None:
        return PROVIDER
    return replace(PROVIDER, window_seconds=window, margin_seconds=window / 2, call_timeout_seconds=window * 0.4)


def produce(worker: Worker, place: Callable[[psycopg.Connection, dict[str, Any]], None]) -> None:
    """Place all orders that are not in the database yet: what a restarted producer sees of its own past."""
    with worker.connect() as conn:
        there = {row[0] for row in conn.execute("SELECT id FROM orders")}
        for order in worker.orders:
            if order["id"] not in there:
                place(conn, order)
                worker.line.note(placed=order["id"])
    worker.line.note(done=True)


def produce_on(worker: Worker, place: Callable[[psycopg.Connection, dict[str, Any]], None]) -> None:
    """Place what the controller asks for, as long as it does; what is asked for again may be in the database already."""
    with worker.connect() as conn:
        while orders := worker.line.ask(want=True)["orders"]:
            for order in orders:
                if conn.execute("SELECT 1 FROM orders WHERE id = %s", [order["id"]]).fetchone() is None:
                    place(conn, order)
                worker.line.note(placed=order["id"])
    worker.line.note(done=True)


# ---- naive, and whatever else people write ---------------------------------------------------------------------------


def plain_producer(worker: Worker) -> None:
    from payments import naive  # noqa: PLC0415 - found on the service's own path

    sink = worker.sink()
    produce(worker, lambda conn, order: naive.place(conn, sink, order))


def plain_charge(worker: Worker) -> None:
    module = import_module(MODULES[worker.setting.variant])
    module.consume_charges(worker.source("charges"), worker.connect(), worker.sink(), worker.card())


def plain_ledger(worker: Worker) -> None:
    module = import_module(MODULES[worker.setting.variant])
    module.consume_bookings(worker.source("bookings"), worker.connect())


# ---- hardened --------------------------------------------------------------------------------------------------------


def hardened_producer(worker: Worker) -> None:
    from payments import hardened  # noqa: PLC0415 - found on the service's own path

    (produce if worker.setting.schedule else produce_on)(worker, hardened.place)


def hardened_charge(worker: Worker) -> None:
    from payments import hardened  # noqa: PLC0415 - found on the service's own path

    consumer = hardened.charges(worker.card(), lease_seconds=LEASE_SECONDS, provider=profile(worker.setting))
    _run(worker, consumer, "charges")


def hardened_ledger(worker: Worker) -> None:
    from payments import hardened  # noqa: PLC0415 - found on the service's own path

    consumer = hardened.ledger(lease_seconds=LEASE_SECONDS)
    if worker.setting.row:
        report_handler(consumer, "order.paid", worker.line)
    _run(worker, consumer, "bookings")


def _run(worker: Worker, consumer: Any, queue: str) -> None:
    run(
        consumer,
        source=lambda: worker.source(queue),
        database=worker.setting.database,
        threads=1,
        prefetch=0,
        drain_seconds=1.0,
        listeners=[worker.watch],
    )


def hardened_relay(worker: Worker) -> None:
    relay(sink=worker.sink, database=worker.setting.database, batch=RELAY_BATCH, lanes=1, poll_seconds=0.5)


PLAIN: Final[dict[str, Callable[[Worker], None]]] = {
    "producer": plain_producer,
    "charge": plain_charge,
    "ledger": plain_ledger,
}
HARDENED: Final[dict[str, Callable[[Worker], None]]] = {
    "producer": hardened_producer,
    "charge": hardened_charge,
    "ledger": hardened_ledger,
    "relay": hardened_relay,
}


def prepare(setting: Setting) -> tuple[frozenset[Place], list[dict[str, Any]]]:
    """What the nursery does once, before any fork: reads the schedule, and warms up what each worker would import anew.

    The SDK imports half of itself at its first call: 50 ms of every restart, ten times what the worker itself needs.
    """
    sys.path.insert(0, setting.service)
    import_all()
    card, session = make_card(setting, "nursery")
    card.find({"transfer_group": "warm-up"}, "")
    stripe.Charge.construct_from({"id": "ch_0", "object": "charge", "amount": 1}, None)
    session.close()
    for dsn in (setting.database, setting.queue_database):
        ConnectionPool(dsn, min_size=1, open=False).close()
        psycopg.connect(dsn).close()
    statements()
    if not setting.schedule:
        return Everywhere(), []
    schedule = read_schedule(Path(setting.schedule))
    orders = [{"id": order.id, "amount": order.amount} for order in schedule.orders]
    return frozenset(armed_places(schedule)), orders


def child(setting: Setting, armed: frozenset[Place], orders: list[dict[str, Any]], role: str, slot: int) -> NoReturn:
    """Be this worker until killed. An exception ends the process, as it does in production; it is in the log."""
    code = 1
    try:
        worker = Worker(setting, armed, orders, role, slot)
        for layer in setting.without:
            take_away(layer, worker.sink)
        (PLAIN if setting.variant in MODULES else HARDENED)[role](worker)
        code = 0
    except BaseException:  # noqa: BLE001 - told in the log; the supervisor starts the worker again
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
