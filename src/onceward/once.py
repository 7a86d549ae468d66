"""`Once`: what an effectful handler does its work with, so that all of it happens once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import Connection

from onceward.provider import ProviderProfile

if TYPE_CHECKING:
    from onceward.perform import Performer

Call = Callable[[Any, str], Any]


class Effect(NamedTuple):
    """One `once.effect(...)` as it was asked for."""

    name: str
    call: Call
    request: Any
    provider: ProviderProfile
    lookup: Call | None


class Once:
    """One message's effects and its one transaction. Lives as long as the handler's call, on the handler's thread."""

    def __init__(self, performer: Performer) -> None:
        self._performer = performer

    def effect(self, name: str, call: Call, *, request: Any, provider: ProviderProfile, lookup: Call | None = None) -> Any:
        """The effect `name` has happened once, and its recorded answer is returned: plain JSON, the same on every replay.

        `call(request, key)` must send `key` as the provider's idempotency key; it runs with no transaction and no
        connection held. `lookup(request, key)` returns the answer of an effect that happened, or None.
        Effects are told apart by their order, name and request: these must not depend on time or chance.

        Raises `Refused` when the provider said no definitely; `LeaseLost`, `UnknownOutcome`, or the call's own exception
        when the outcome is not known (after these `once` refuses everything: let them pass); `UsageError` for an answer
        that is no JSON, or an effect in or after the transaction.

        Crash anywhere in it: the intent is pending, and the redelivery asks again with the same key.
        """
        return self._performer.effect(Effect(name, call, request, provider, lookup))

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """The inbox row becomes done here, in one transaction with these writes, or none of it.

        Raises `LeaseLost` when another worker has taken the message over.

        Crash before COMMIT: nothing is written; the redelivery runs the handler again, its effects answer from their rows.
        Crash after COMMIT: the redelivery is turned away as a duplicate.
        """
        with self._performer.transaction() as conn:
            yield conn

    @property
    def lease_lost(self) -> bool:
        """True once a heartbeat has seen that another worker owns this message: stop early, nothing you do can count."""
        return self._performer.lease_lost
