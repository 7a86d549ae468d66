"""Onceward: effectively-once message processing. A decision is a row in a Postgres transaction.

inbox    "this consumer has taken this message"      `Consumer`, or `Inbox` in your own loop
intent   "this consumer is about to touch outside"   `once.effect`, or `Intents` in your own loop
outbox   "this message is to be sent"                `publish`, and a relay that sends it

Each name is imported when it is first used: `import onceward` alone costs next to nothing, and needs no database driver.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from onceward.consumer import Consumer
    from onceward.consumer_loop import run
    from onceward.errors import (
        ConflictError,
        Defer,
        EffectRefused,
        LeaseLost,
        NotInTransaction,
        OncewardError,
        Reject,
        SchemaMismatch,
        TransportError,
        UnknownOutcome,
        UsageError,
    )
    from onceward.inbox import Inbox, Take, TakeResult
    from onceward.intents import Intents
    from onceward.message import Message
    from onceward.outbox import publish
    from onceward.perform import Once
    from onceward.provider import NO_KEYS, STRIPE_V1, ProviderProfile
    from onceward.relay_loop import relay
    from onceward.retry import Backoff
    from onceward.schema import migrate
    from onceward.transport import ACK, LEAVE, Delivery, Settlement, release

__version__ = "0.1.0"

__all__ = [
    "ACK",
    "LEAVE",
    "NO_KEYS",
    "STRIPE_V1",
    "Backoff",
    "ConflictError",
    "Consumer",
    "Defer",
    "Delivery",
    "EffectRefused",
    "Inbox",
    "Intents",
    "LeaseLost",
    "Message",
    "NotInTransaction",
    "Once",
    "OncewardError",
    "ProviderProfile",
    "Reject",
    "SchemaMismatch",
    "Settlement",
    "Take",
    "TakeResult",
    "TransportError",
    "UnknownOutcome",
    "UsageError",
    "__version__",
    "migrate",
    "publish",
    "relay",
    "release",
    "run",
]

_HOMES = {
    "consumer": "Consumer",
    "errors": "ConflictError Defer EffectRefused LeaseLost NotInTransaction OncewardError Reject SchemaMismatch"
    " TransportError UnknownOutcome UsageError",
    "inbox": "Inbox TakeResult Take",
    "intents": "Intents",
    "consumer_loop": "run",
    "message": "Message",
    "outbox": "publish",
    "perform": "Once",
    "provider": "NO_KEYS STRIPE_V1 ProviderProfile",
    "relay_loop": "relay",
    "retry": "Backoff",
    "schema": "migrate",
    "transport": "ACK LEAVE Delivery Settlement release",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
