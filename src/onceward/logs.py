"""What is said of one message in the log: one line for whoever is on call, and the same as fields for programs."""

from __future__ import annotations

import logging
from traceback import format_exception
from typing import Final

from onceward.errors import Refused, Signal
from onceward.message import Message

logger = logging.getLogger("onceward")
TRACE_CHARS_MAX: Final = 16_000


def say(
    consumer: str, message: Message, level: int, text: str, *args: object, failure: BaseException | None = None,
    **fields: object,
) -> None:  # fmt: skip
    """One line about this message. `fields` (and which message it is) travel as `record.onceward`."""
    known = {"consumer": consumer, "message_type": message.type, "message_id": message.id} | fields
    logger.log(
        level, f"%s: %s %s: {text}", consumer, message.type, message.id, *args, exc_info=traced(failure),
        extra={"onceward": known},
    )  # fmt: skip


def traced(failure: BaseException | None) -> BaseException | None:
    """The failure, if where it was raised tells anything: a signal or a refusal is how a handler steers its message."""
    return None if isinstance(failure, Signal | Refused) else failure


def with_trace(text: str, failure: BaseException | None) -> str:
    """The text, and under it where the failure was raised: a log may be gone by the time that somebody looks."""
    if traced(failure) is None or failure is None:
        return text
    trace = "".join(format_exception(failure))[-TRACE_CHARS_MAX:]
    return f"{text}\n\n{trace.rstrip()}"
