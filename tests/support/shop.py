"""Consumers of both shapes, whose handlers do the least idempotent thing there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from psycopg import Connection
from tests.support.deliveries import Provider
from tests.support.rows import CONSUMER, write_effect

from onceward.consumer import Consumer
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1, ProviderProfile
from onceward.retry import Backoff

SHAPES: Final = ("transactional", "effectful")
AT_ONCE: Final = Backoff(first_seconds=0.001, seconds_max=0.001)
Handler = Callable[[Message, Any], None]


def transactional(handler: Handler | None = None, **options: Any) -> Consumer:
    """A consumer of `order.placed`; without a handler of its own, it writes one effect."""
    consumer = Consumer(CONSUMER, **{"backoff": AT_ONCE, **options})
    consumer.transactional("order.placed")(handler or _write)
    return consumer


def effectful(handler: Handler | None = None, **options: Any) -> Consumer:
    """The same in the other shape; it writes in `once.transaction()`."""
    consumer = Consumer(CONSUMER, **{"backoff": AT_ONCE, **options})
    consumer.effectful("order.placed")(handler or _finish)
    return consumer


def of_shape(shape: str, note: Callable[[Message], object] = lambda _: None, **options: Any) -> Consumer:
    """A consumer of this shape that writes one effect; `note` runs in its handler, before the write."""

    def write(message: Message, tx: Connection[Any]) -> None:
        note(message)
        write_effect(tx, message)

    def finish(message: Message, once: Once) -> None:
        note(message)
        with once.transaction() as tx:
            write_effect(tx, message)

    return transactional(write, **options) if shape == "transactional" else effectful(finish, **options)


def charging(
    provider: Provider, *, profile: ProviderProfile = STRIPE_V1, lookup: bool = False, note: str = "", **options: Any
) -> Consumer:
    """An effectful consumer that charges once and writes one effect."""

    def charge(message: Message, once: Once) -> None:
        answer = once.effect(
            "charge",
            provider.charge,
            request=message.json(),
            provider=profile,
            lookup=provider.find if lookup else None,
        )
        with once.transaction() as tx:
            write_effect(tx, message, note or answer["id"])

    return effectful(charge, **options)


def _write(message: Message, tx: Connection[Any]) -> None:
    write_effect(tx, message)


def _finish(message: Message, once: Once) -> None:
    with once.transaction() as tx:
        write_effect(tx, message)
