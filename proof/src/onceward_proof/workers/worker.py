"""One worker, from the inside: its line and its connections.

And what is imported before any worker is forked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import psycopg
import requests
import stripe
from psycopg_pool import ConnectionPool

from onceward.events import Event
from onceward.provider import ProviderProfile
from onceward.statements import statements
from onceward_proof.brokers.find import find_broker
from onceward_proof.prove.variants import import_all
from onceward_proof.workers.line import Line
from onceward_proof.workers.reports import Note, Point, Report
from onceward_proof.workers.setting import Setting
from onceward_proof.workers.watched import LoopSource, WatchedCard, WatchedSink, WatchedSource
from payments.card import TIMEOUT_SECONDS, Card
from payments.hardened import PROVIDER

POINTS: Final = {str(point): point for point in Point}
# Of thousands of deliveries, only what the controller counts: each report is a system call of both ends.
COUNTED: Final = frozenset({Point.CLAIMED, Point.TAKEN, Point.DUPLICATE, Point.PARKED, Point.IN_FLIGHT})
FIELDS: Final = ("token", "reason", "delivery")
SomeSource = TypeVar("SomeSource", bound=WatchedSource)


class Worker:
    """What a role works with.

    `orders`: what a producer is to place; of a schedule without a file, it asks for them. `member`: its name at the queue,
    which the worker that follows it has, too.
    """

    def __init__(
        self, setting: Setting, line: Line, name: str, orders: Sequence[dict[str, Any]] = (), member: str = ""
    ) -> None:
        self.setting = setting
        self.line = line
        self.name = name
        self.orders = orders
        self._member = member or name
        self._broker = find_broker(setting.queue)

    def source(self, message_type: str) -> WatchedSource:
        return self._source(WatchedSource, message_type)

    def loop_source(self, message_type: str) -> LoopSource:
        return self._source(LoopSource, message_type)

    def _source(self, kind: type[SomeSource], message_type: str) -> SomeSource:
        return kind(self._broker.source(self.setting, message_type, self._member), self.line, self.setting)

    def sink(self) -> WatchedSink:
        setting = self.setting
        return WatchedSink(self._broker.sink(setting.queue_address, setting.queues), self.line)

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.setting.database, autocommit=True, connect_timeout=5)

    def card(self, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        setting = self.setting
        card, _ = make_card(setting.provider_url, self.name, setting.account, timeout_seconds)
        return WatchedCard(card, self.line, lookup=setting.lookup) if setting.is_demo else card

    def watch(self, event: Event) -> None:
        """A listener: the library's own points are reported too."""
        point = POINTS.get(event.point)
        if point in COUNTED or (point is not None and self.setting.is_demo):
            fields = {name: event.fields[name] for name in FIELDS if name in event.fields}
            self.line.report(Report(point, message_id=event.message_id, **fields))
        # The source is told of every settlement but this one.
        if event.point == "consumer.settling" and event.fields["action"] == "leave":
            self.line.report(Report(Note.HANDLED, message_id=event.message_id))


def make_card(
    url: str, name: str, account: str = "sk_test_proof", timeout_seconds: float = TIMEOUT_SECONDS
) -> tuple[Card, requests.Session]:
    """The service's card client by the official SDK, and the session that it calls with.

    The SDK's own retries are off, so that each request is one. The worker is named in a header of the connection: in the
    request itself it would change what a key is compared with.
    """
    session = requests.Session()
    session.headers["X-Onceward-Worker"] = name
    # The environment may name a proxy; the provider is on this machine.
    session.trust_env = False
    http = stripe.RequestsClient(timeout=timeout_seconds, session=session)
    addresses: Any = {"api": url}
    return Card(stripe.StripeClient(account, base_addresses=addresses, max_network_retries=0, http_client=http)), session


def profile(window_seconds: float | None) -> ProviderProfile:
    """The provider's promise; scaled, half of the window is margin: a late call on a busy machine is still inside it."""
    if window_seconds is None:
        return PROVIDER
    margin, timeout = window_seconds / 2, window_seconds * 0.4
    return replace(PROVIDER, window_seconds=window_seconds, margin_seconds=margin, call_timeout_seconds=timeout)


def warm_up(provider_url: str, *dsns: str) -> None:
    """Import, once, what every worker would import after its fork. No thread and no connection is left of it.

    The SDK imports half of itself at its first call: 50 ms of every restart, ten times what the worker itself needs.
    """
    import_all()
    card, session = make_card(provider_url, "warm-up")
    card.find({"transfer_group": "warm-up"}, "")
    stripe.Charge.construct_from({"id": "ch_0", "object": "charge", "amount": 1}, None)
    session.close()
    for dsn in dsns:
        ConnectionPool(dsn, min_size=1, open=False).close()
        psycopg.connect(dsn).close()
    statements()
