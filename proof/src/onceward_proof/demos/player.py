"""A worker process from the inside: it tells its director what it does, and waits where it was asked to.

What it does it does with the service's own code: only the edges (queue, card, events) are watched.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import requests
import stripe

from onceward.errors import TransportError
from onceward.events import Event
from onceward.message import Message
from onceward.transport import Delivery, Outcome, Received, Settlement, Sink, Source
from onceward.transports import pgmq
from onceward_proof.around import SinkAround, SourceAround
from payments.card import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a player needs to know. `gates`: the events at which it waits for its director."""

    dsn: str
    provider_url: str
    account: str
    gates: frozenset[str] = frozenset()
    queue: str = "charges"
    visibility_seconds: int = 1
    lease_seconds: float = 1.0
    heartbeats: bool = True  # False: those to the queue are lost on the way
    lookup: bool = True  # False: the provider cannot be asked afterwards
    more: dict[str, Any] = field(default_factory=dict)


class Player:
    """One worker's line to its director, and what it works with."""

    def __init__(self, setting: Setting, line: socket.socket) -> None:
        self.setting = setting
        self._line = line
        self._answers = line.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()

    def cue(self, event: str, **fields: Any) -> str:
        """Tell it; where a gate is, wait for what the director says. Here the process may be killed, or stopped."""
        with self._sending:
            self._line.sendall(json.dumps({"event": event, "at": time.monotonic()} | fields).encode() + b"\n")
        if event not in self.setting.gates:
            return "go"
        answer = self._answers.readline()
        if not answer:
            raise SystemExit("the director is gone")
        return str(json.loads(answer))

    def watch(self, event: Event) -> None:
        """A listener: the consumer's and the relay's own points are events too."""
        self.cue(event.point, **{name: value for name, value in event.fields.items() if isinstance(value, str | int)})

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.setting.dsn, autocommit=True)

    def source(self) -> Source:
        setting = self.setting
        return CuedSource(pgmq.Source(setting.queue, setting.dsn, visibility_seconds=setting.visibility_seconds), self)

    def sink(self) -> Sink:
        queues = {"order.placed": self.setting.queue, "order.paid": "bookings"}
        return CuedSink(pgmq.Sink(queues, self.setting.dsn), self)

    def card(self) -> Any:
        return CuedCard(self, make_card(self.setting.provider_url, self.setting.account))


def make_card(url: str, account: str) -> Card:
    """The service's card client, by the official SDK; its own retries are off, so that each request is one."""
    session = requests.Session()
    session.trust_env = False
    http = stripe.RequestsClient(timeout=2.5, session=session)
    addresses: Any = {"api": url}
    return Card(stripe.StripeClient(account, base_addresses=addresses, max_network_retries=0, http_client=http))


class CuedCard:
    """The card client: `charging` before the call, `charged` once the provider has answered."""

    def __init__(self, player: Player, card: Card) -> None:
        self._player = player
        self._card = card
        self.find = self._find if player.setting.lookup else None

    def create(self, request: dict[str, Any], key: str | None) -> dict[str, Any]:
        self._player.cue("charging", key=key)
        charge = self._card.create(request, key)
        self._player.cue("charged", charge=charge["id"])
        return charge

    def _find(self, request: dict[str, Any], key: str) -> dict[str, Any] | None:
        found = self._card.find(request, key)
        self._player.cue("found" if found else "not found", charge=found and found["id"])
        return found


class CuedSource(SourceAround):
    """A source: `received`, `acking` before an ack, `acked` after it, `released`."""

    def __init__(self, inner: Source, player: Player) -> None:
        super().__init__(inner)
        self._player = player

    def receive(self, limit: int, wait_seconds: float) -> Received:
        received = super().receive(limit, wait_seconds)
        for delivery in received.deliveries:
            self._player.cue("received", id=delivery.headers.get("id", ""), count=delivery.count)
        return received

    def settle_one(self, delivery: Delivery, settlement: Settlement) -> Outcome:
        acks = settlement.action == "ack"
        if acks:
            self._player.cue("acking")
        outcome = super().settle_one(delivery, settlement)
        self._player.cue("acked" if acks else "released", seconds=settlement.delay_seconds)
        return outcome

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if not self._player.setting.heartbeats:
            raise TransportError("the heartbeat was lost on its way to the queue")
        return super().extend(deliveries, seconds)


class CuedSink(SinkAround):
    """A sink: `publishing` (the answer `drop` drops it), `published` (`lose` loses the confirmation)."""

    def __init__(self, inner: Sink, player: Player) -> None:
        super().__init__(inner)
        self._player = player

    def before(self, message: Message) -> str:
        return self._cue("publishing", message)

    def after(self, message: Message) -> str:
        return self._cue("published", message)

    def _cue(self, event: str, message: Message) -> str:
        return self._player.cue(event, type=message.type, subject=message.subject, id=message.id)
