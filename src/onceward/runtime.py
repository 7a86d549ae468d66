"""What the deliveries of one consumer in one process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from onceward.database import Database
from onceward.events import Listeners
from onceward.inbox import InboxTable
from onceward.intents import Intents
from onceward.message import Message
from onceward.protocol.delivery import Limits
from onceward.retry import Backoff
from onceward.transport import Delivery


class Keeper(Protocol):
    """Who keeps leases alive (see `onceward.lease`)."""

    def claimed(self, delivery: Delivery, message: Message, token: int) -> None: ...
    def done(self, delivery: Delivery) -> None: ...
    def is_lost(self, delivery: Delivery) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the deliveries of one consumer in one process share."""

    inbox: InboxTable
    intents: Intents
    database: Database
    limits: Limits
    backoff: Backoff
    listeners: Listeners
    keeper: Keeper
    nudge: Callable[[], None]
    partition_late: Callable[[Message], None]
