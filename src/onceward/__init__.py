"""Onceward: effectively-once message processing. A decision is a row in a Postgres transaction.

inbox    "this consumer has taken this message"      `Consumer`, or `Inbox` in your own loop
intent   "this consumer is about to touch outside"   `once.effect`, or `Intents` in your own loop
outbox   "this message is to be sent"                `publish`, and a relay that sends it
"""

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
