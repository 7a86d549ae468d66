"""Onceward: effectively-once message processing. A decision is a row in a Postgres transaction.

inbox    "this consumer has taken this message"      `Consumer`, or `Inbox` in your own loop
intent   "this consumer is about to touch outside"   `once.effect`, or `Intents` in your own loop
outbox   "this message is to be sent"                `publish`, and a relay that sends it

Each name is imported when it is first used: `import onceward` alone costs next to nothing, and needs no database driver.
"""

import sys as _sys
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from onceward.consumer import Consumer
    from onceward.errors import (
        ConflictError,
        Defer,
        LeaseLost,
        NotInTransaction,
        OncewardError,
        Refused,
        Reject,
        SchemaMismatch,
        TransportError,
        UnknownOutcome,
        UsageError,
    )
    from onceward.inbox import Inbox, TakeResult, Taking
    from onceward.intent import Intents
    from onceward.loop import run
    from onceward.message import Message
    from onceward.once import Once
    from onceward.outbox import publish
    from onceward.provider import NO_KEYS, STRIPE_V1, ProviderProfile
    from onceward.relay import relay
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
    "Inbox",
    "Intents",
    "LeaseLost",
    "Message",
    "NotInTransaction",
    "Once",
    "OncewardError",
    "ProviderProfile",
    "Refused",
    "Reject",
    "SchemaMismatch",
    "Settlement",
    "TakeResult",
    "Taking",
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
    "errors": "ConflictError Defer LeaseLost NotInTransaction OncewardError Refused Reject SchemaMismatch TransportError"
    " UnknownOutcome UsageError",
    "inbox": "Inbox TakeResult Taking",
    "intent": "Intents",
    "loop": "run",
    "message": "Message",
    "once": "Once",
    "outbox": "publish",
    "provider": "NO_KEYS STRIPE_V1 ProviderProfile",
    "relay": "relay",
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


class _Package(_ModuleType):
    """`onceward.relay` is the function, whoever imports the module of the same name, and whenever."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME_OF or not isinstance(value, _ModuleType):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
