"""What the log says of one message: a line for people, and its fields for programs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from traceback import format_exception
from typing import Final

from onceward.errors import EffectRefused, Signal
from onceward.message import Message
from onceward.protocol.words import Fail, Park

logger = logging.getLogger("onceward")
TRACE_CHARS_MAX: Final = 16_000
REASON_CHARS_MAX: Final = 2000  # in a line; the parked row has all of it


def say(
    consumer: str, message: Message, level: int, text: str, *args: object, failure: BaseException | None = None,
    **fields: object,
) -> None:  # fmt: skip
    """One line about this message.

    `fields`, and which message it is, travel as `record.onceward`.
    """
    record = {"consumer": consumer, "message_type": message.type, "message_id": message.id} | fields
    logger.log(
        level, f"%s: %s %s: {text}", consumer, message.type, message.id, *args, exc_info=traced(failure),
        extra={"onceward": record},
    )  # fmt: skip


def say_failed(tell: Callable[..., None], command: Fail, attempts: int, attempts_max: int, retry_seconds: float) -> None:
    """One line about a failed attempt, or a lost session, that is retried."""
    reason = command.error[:REASON_CHARS_MAX]
    what = "the database session was lost" if command.session_lost else f"attempt {attempts} of {attempts_max} failed"
    counts = {"attempt": attempts, "attempts_max": attempts_max, "retry_seconds": retry_seconds, "reason": reason}
    text = "%s; retrying in %.1f s: %s"
    tell(logging.WARNING, text, what, retry_seconds, reason, failed=True, next="retry", **counts)


def say_parked(tell: Callable[..., None], command: Park) -> None:
    """One line about a message that is parked, and how to see the rest."""
    text = "parked (%s); run `onceward parked show` for the rest: %s"
    reason, detail = command.reason.value, command.detail[:REASON_CHARS_MAX]
    tell(logging.ERROR, text, reason, detail, failed=True, next="parked", reason=reason)


def traced(failure: BaseException | None) -> BaseException | None:
    """The failure, if its traceback is worth showing."""
    # A signal or a refusal is how a handler steers its message: where it was raised tells nothing.
    return None if isinstance(failure, Signal | EffectRefused) else failure


def with_trace(text: str, failure: BaseException | None) -> str:
    """The text, and under it where the failure was raised."""
    # The trace is logged as well, but a log may be gone by the time that somebody looks at the parked row.
    shown = traced(failure)
    if shown is None:
        return text
    trace = "".join(format_exception(shown))[-TRACE_CHARS_MAX:]
    return f"{text}\n\n{trace.rstrip()}"
