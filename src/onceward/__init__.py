"""Onceward: effectively-once message processing. A decision is a row in a Postgres transaction.

inbox    "this consumer has taken this message"      `Consumer`, or `Inbox` in your own loop
intent   "this consumer is about to touch outside"   `once.effect`, or `Intents` in your own loop
outbox   "this message is to be sent"                `publish`, and a relay that sends it

Each name is imported when it is first used: `import onceward` alone costs next to nothing, and needs no database driver.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from onceward import former_names as _former_names

__version__ = "0.1.0"

# Two lists of one thing: type checkers follow only imports that are written out, and only the table lets `import onceward`
# run none of them. A test holds the two to each other.
if TYPE_CHECKING:
    from onceward.consumer import Consumer as Consumer
    from onceward.consumer_loop import run as run
    from onceward.decisions import Decided as Decided
    from onceward.decisions import Decider as Decider
    from onceward.decisions import Decision as Decision
    from onceward.decisions import DecisionKind as DecisionKind
    from onceward.decisions import discard_parked as discard_parked
    from onceward.decisions import list_decisions as list_decisions
    from onceward.decisions import redrive as redrive
    from onceward.decisions import settle as settle
    from onceward.decisions import settle_as_not_happened as settle_as_not_happened
    from onceward.effect_lookup import look_up_effect as look_up_effect
    from onceward.endpoints import SinkOrFactory as SinkOrFactory
    from onceward.endpoints import SourceOrFactory as SourceOrFactory
    from onceward.errors import ConflictError as ConflictError
    from onceward.errors import Defer as Defer
    from onceward.errors import EffectRefused as EffectRefused
    from onceward.errors import LeaseLost as LeaseLost
    from onceward.errors import NotInTransaction as NotInTransaction
    from onceward.errors import OncewardError as OncewardError
    from onceward.errors import Reject as Reject
    from onceward.errors import SchemaMismatch as SchemaMismatch
    from onceward.errors import TransportError as TransportError
    from onceward.errors import UnknownOutcome as UnknownOutcome
    from onceward.errors import UsageError as UsageError
    from onceward.events import POINTS as POINTS
    from onceward.events import Event as Event
    from onceward.events import Listener as Listener
    from onceward.foreign import Foreign as Foreign
    from onceward.foreign import Header as Header
    from onceward.inbox import Inbox as Inbox
    from onceward.inbox import Take as Take
    from onceward.inbox import TakeResult as TakeResult
    from onceward.intents import Intent as Intent
    from onceward.intents import IntentResult as IntentResult
    from onceward.intents import Intents as Intents
    from onceward.intents import Record as Record
    from onceward.intents import RecordResult as RecordResult
    from onceward.loops_together import run_all as run_all
    from onceward.message import MalformedMessage as MalformedMessage
    from onceward.message import Message as Message
    from onceward.outbox import publish as publish
    from onceward.outbox_rows import OutboxDecision as OutboxDecision
    from onceward.outbox_rows import OutboxMessage as OutboxMessage
    from onceward.outbox_rows import OutboxRow as OutboxRow
    from onceward.outbox_rows import OutboxState as OutboxState
    from onceward.outbox_rows import discard_outbox as discard_outbox
    from onceward.outbox_rows import list_outbox as list_outbox
    from onceward.outbox_rows import retry_outbox as retry_outbox
    from onceward.outbox_rows import show_outbox as show_outbox
    from onceward.parked import ParkedIntent as ParkedIntent
    from onceward.parked import ParkedMessage as ParkedMessage
    from onceward.parked import ParkedRow as ParkedRow
    from onceward.parked import list_parked as list_parked
    from onceward.parked import show_parked as show_parked
    from onceward.perform import Once as Once
    from onceward.protocol.reasons import ParkReason as ParkReason
    from onceward.provider import NO_KEYS as NO_KEYS
    from onceward.provider import STRIPE_V1 as STRIPE_V1
    from onceward.provider import ProviderProfile as ProviderProfile
    from onceward.relay_loop import relay as relay
    from onceward.retry import Backoff as Backoff
    from onceward.schema import migrate as migrate
    from onceward.transport import ACK as ACK
    from onceward.transport import LEAVE as LEAVE
    from onceward.transport import Delivery as Delivery
    from onceward.transport import Outcome as Outcome
    from onceward.transport import Received as Received
    from onceward.transport import Settlement as Settlement
    from onceward.transport import Sink as Sink
    from onceward.transport import Source as Source
    from onceward.transport import Traits as Traits
    from onceward.transport import release as release
else:
    _HOMES = {
        "consumer": "Consumer",
        "consumer_loop": "run",
        "decisions": "Decided Decider Decision DecisionKind discard_parked list_decisions redrive settle"
        " settle_as_not_happened",
        "effect_lookup": "look_up_effect",
        "endpoints": "SinkOrFactory SourceOrFactory",
        "errors": "ConflictError Defer EffectRefused LeaseLost NotInTransaction OncewardError Reject SchemaMismatch"
        " TransportError UnknownOutcome UsageError",
        "events": "POINTS Event Listener",
        "foreign": "Foreign Header",
        "inbox": "Inbox Take TakeResult",
        "intents": "Intent IntentResult Intents Record RecordResult",
        "loops_together": "run_all",
        "message": "MalformedMessage Message",
        "outbox": "publish",
        "outbox_rows": "OutboxDecision OutboxMessage OutboxRow OutboxState discard_outbox list_outbox retry_outbox"
        " show_outbox",
        "parked": "ParkedIntent ParkedMessage ParkedRow list_parked show_parked",
        "perform": "Once",
        "protocol.reasons": "ParkReason",
        "provider": "NO_KEYS STRIPE_V1 ProviderProfile",
        "relay_loop": "relay",
        "retry": "Backoff",
        "schema": "migrate",
        "transport": "ACK LEAVE Delivery Outcome Received Settlement Sink Source Traits release",
    }
    _HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
    __all__ = [*sorted(_HOME_OF), "__version__"]  # noqa: PLE0604 - the keys above are strings

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            sentence = _former_names.now_called(name) or f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(sentence, name=name)
        value = getattr(_import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


_former_names.install()
