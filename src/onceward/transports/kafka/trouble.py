"""What the client has said goes wrong. It mends most of that by itself, and says so on whatever thread polls it."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError

from onceward.errors import TransportError, UsageError
from onceward.transports.kafka import codes

logger = logging.getLogger("onceward.kafka")


class Trouble:
    """Kept until the next `receive` can raise it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._error: KafkaError | None = None
        self.fatal: KafkaError | None = None  # this client is of no use any more
        self.brokers_are_away = False
        self.was_assigned = False  # the configuration was right at least once

    def note(self, error: KafkaError) -> None:
        """Something went wrong in the client."""
        code = error.code()
        if codes.is_fatal(error):
            self.fatal = error
        elif code == codes.ALL_BROKERS_AWAY:
            self.brokers_are_away = True
        elif code == codes.SILENT_TOO_LONG:
            logger.warning(
                "this consumer was silent for too long, and its partitions went to others; it joins again: %s", error.str()
            )
        elif code not in codes.PASSING:
            self._error = error

    def raise_noted(self) -> None:
        """Raises what was noted last, once: `UsageError` where the configuration can never have been right."""
        error, self._error = self._error, None
        if error is not None:
            is_wrong = error.code() in codes.MISCONFIGURED and not self.was_assigned
            raise (UsageError if is_wrong else TransportError)(f"{self._name}: {error.str()}")
