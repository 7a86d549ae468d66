"""What the players do: the payment service's own code, with its edges watched."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from psycopg import Connection

from onceward.consumer import Consumer
from onceward.consumer_loop import run
from onceward.message import Message
from onceward.provider import ProviderProfile
from onceward.relay_loop import relay
from onceward.retry import Backoff
from onceward.transport import ACK, Sink
from onceward_proof.demos.player import Player
from payments import hardened, naive
from payments.card import Card, Order

# The provider's promise, an hour told as 0.2 s: the database's clock, which judges an intent's age, is never faked.
HOUR_SECONDS: Final = 0.2
SCALED: Final = ProviderProfile(
    name="stripe-v1, scaled", window_seconds=24 * HOUR_SECONDS, margin_seconds=3.2, call_timeout_seconds=3.0
)
SOON: Final = Backoff(first_seconds=0.3, seconds_max=0.5)


# ---- the naive side --------------------------------------------------------------------------------------------------


def plain_charge(player: Player) -> None:
    """The charge consumer of one of the service's plain modules: naive, select_then_act, textbook."""
    module = import_module(f"payments.{player.setting.more.get('module', 'naive')}")
    module.consume_charges(player.source(), player.connect(), player.sink(), player.card())


def plain_book(player: Player) -> None:
    naive.consume_bookings(player.source(), player.connect())


def plain_place(player: Player) -> None:
    conn, sink = player.connect(), player.sink()
    for order in player.setting.more["orders"]:
        naive.place(conn, sink, order)


def blind_charge(player: Player) -> None:
    """Sends the message's id as the key, as it should, and retries for as long as it takes, as it should not."""
    source, conn, sink, card = player.source(), player.connect(), player.sink(), player.card()
    while True:
        for delivery in source.receive(1, wait_seconds=1.0).deliveries:
            _charge_with_key(conn, sink, card, delivery.headers["id"], json.loads(delivery.body))
            source.settle([(delivery, ACK)])


def _charge_with_key(conn: Connection, sink: Sink, card: Any, message_id: str, order: Order) -> None:
    paid = card.create(Card.request(order), key=message_id)
    conn.execute("UPDATE orders SET status = 'paid', charge_id = %s WHERE id = %s", (paid["id"], order["id"]))
    naive.announce(sink, "order.paid", order)


def resending_place(player: Player) -> None:
    """Sends again until the queue confirms, each time a new message: the id is made per attempt."""
    conn, sink = player.connect(), player.sink()
    for order in player.setting.more["orders"]:
        with conn.transaction():
            conn.execute("INSERT INTO orders (id, amount) VALUES (%s, %s)", (order["id"], order["amount"]))
            conn.execute("INSERT INTO accounts (order_id) VALUES (%s)", (order["id"],))
        while sink.publish([Message(type="order.placed", subject=order["id"], data=order)])[0] is not None:
            pass


# ---- the hardened side -----------------------------------------------------------------------------------------------


def hardened_charge(player: Player) -> None:
    _run(player, hardened.charges(player.card(), lease_seconds=player.setting.lease_seconds))


def scaled_charge(player: Player) -> None:
    _run(player, hardened.charges(player.card(), lease_seconds=player.setting.lease_seconds, provider=SCALED))


def hardened_book(player: Player) -> None:
    _run(player, hardened.ledger(lease_seconds=player.setting.lease_seconds))


def _run(player: Player, consumer: Consumer) -> None:
    run(
        consumer, source=player.source, database=player.setting.dsn, threads=1, prefetch=0, drain_seconds=1.0,
        listeners=[player.watch],
    )  # fmt: skip


def hardened_place(player: Player) -> None:
    conn = player.connect()
    for order in player.setting.more["orders"]:
        hardened.place(conn, order)
        player.cue("placed", order=order["id"])


def hardened_relay(player: Player) -> None:
    relay(
        sink=player.sink, database=player.setting.dsn, lanes=1, poll_seconds=0.1, backoff=SOON, listeners=[player.watch],
        until_empty=bool(player.setting.more.get("until_empty")),
    )  # fmt: skip


PARTS: Final[dict[str, Callable[[Player], None]]] = {
    part.__name__.replace("_", "-"): part
    for part in (
        plain_charge, plain_book, plain_place, blind_charge, resending_place,
        hardened_charge, scaled_charge, hardened_book, hardened_place, hardened_relay,
    )
}  # fmt: skip
