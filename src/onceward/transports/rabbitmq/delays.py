"""Releases with a delay: a copy of the message waits in a delay queue, and comes back from there."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from copy import copy
from typing import Any, Final

from pika import BasicProperties

from onceward.errors import TransportError
from onceward.transport import Delivery
from onceward.transports.rabbitmq.envelope import COUNT_HEADER
from onceward.transports.rabbitmq.link import Link, ParametersOrFactory, Refused, Unroutable
from onceward.transports.rabbitmq.publisher import Letter, Publisher
from onceward.transports.rabbitmq.queues import DELAY_LEVELS_SECONDS, Declaration, declare, delay_queue, delay_queues

logger = logging.getLogger("onceward")
# A quorum queue that was declared a moment ago does not survive a kill of its node, with whatever it has confirmed.
YOUNG_SECONDS: Final = 10.0
# What the broker writes about one stay in one queue, and what would send a copy to other queues.
_NOT_COPIED: Final = ("x-delivery-count", "x-acquired-count", "x-death", "CC", "BCC")
_NOT_COPIED_PREFIXES: Final = ("x-first-death-", "x-last-death-")


class _Young(TransportError):
    """Queues that a crash of their node would take away with all that they hold."""


class Delays(Publisher):
    """The delay queues of one queue, on a connection of their own.

    A broker that is short of memory or disk reads nothing more from a connection that publishes: acks on it would not come
    through.
    """

    def __init__(self, parameters: ParametersOrFactory, queue: str) -> None:
        super().__init__(parameters, f"{queue} delays")
        self._queue = queue
        self._exist = False
        self._usable_at = -math.inf  # on the monotonic clock

    def send(self, delayed: Sequence[tuple[Delivery, float]]) -> list[Exception | None]:
        """A copy of each waits for its seconds, and comes back to the queue; one entry each: None = confirmed.

        What cannot be sent is logged.
        """
        if not delayed:
            return []
        errors: list[Exception | None]
        try:
            errors = self._send_all([self._copy(delivery, seconds) for delivery, seconds in delayed])
        except Exception as error:  # noqa: BLE001 - whatever a caller's function of parameters raises; the delivery waits
            errors = [error] * len(delayed)
        if failed := [error for error in errors if error is not None]:
            # A queue that somebody has deleted is made again, at the next call.
            self._exist = self._exist and not any(isinstance(error, Unroutable | Refused) for error in failed)
            logger.log(
                logging.INFO if isinstance(failed[0], _Young) else logging.WARNING,
                "%d deliveries of %s wait in this process for their next try, because no delay queue took them: %s",
                len(failed), self._queue, failed[0],
            )  # fmt: skip
        return errors

    def _send_all(self, copies: Sequence[Letter | Exception]) -> list[Exception | None]:
        letters = [letter for letter in copies if isinstance(letter, Letter)]
        answers = iter(self.publish(letters) if letters else ())
        return [next(answers) if isinstance(letter, Letter) else letter for letter in copies]

    def _copy(self, delivery: Delivery, seconds: float) -> Letter | Exception:
        given: BasicProperties = delivery.handle.properties
        headers = {name: value for name, value in (given.headers or {}).items() if not _is_marked(name)}
        properties = copy(given)
        properties.headers = headers | ({COUNT_HEADER: delivery.count} if delivery.count else {})
        properties.delivery_mode = 2
        properties.expiration = str(math.ceil(seconds * 1000))
        properties.user_id = None  # the broker refuses that of another user
        level = next((level for level in DELAY_LEVELS_SECONDS if level >= seconds), DELAY_LEVELS_SECONDS[-1])
        letter = Letter("", delay_queue(self._queue, level), properties, delivery.body)
        return letter.flaw() or letter

    def _connected(self) -> Link:
        if not self._exist:
            self._make_queues()
            self._exist = True
        if time.monotonic() < self._usable_at:
            raise _Young("the delay queues were made a moment ago")
        return super()._connected()

    def _make_queues(self) -> None:
        names = [delay_queue(self._queue, level) for level in DELAY_LEVELS_SECONDS]
        try:
            declare(self._parameters, [Declaration(name, passive=True) for name in names])
        except Refused:
            declare(self._parameters, delay_queues(self._queue))
            self._usable_at = time.monotonic() + YOUNG_SECONDS


def _is_marked(header: Any) -> bool:
    """This header is the broker's own, about one stay in one queue, or would send a copy to other queues as well."""
    return header in _NOT_COPIED or str(header).startswith(_NOT_COPIED_PREFIXES)
