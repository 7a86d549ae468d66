"""The log of a loop on standard error, for people or for programs.

It is lines of text, or one JSON object a line.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import printable

if TYPE_CHECKING:
    from threading import ExceptHookArgs

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")
LEVEL_DEFAULT: Final = "warning"
# What a record may carry beside its message: `logger.warning(text, extra={FIELDS: {"consumer": ..., "attempt": ...}})`.
FIELDS: Final = "onceward"


def add_log(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--log-level", choices=LEVELS,
        help="the least that is logged (default: warning: what failed, what happens next, and what was parked)",
    )  # fmt: skip
    parser.add_argument("--log-format", choices=FORMATS, help="lines for people, or a JSON object each (default: text)")


def log_to_stderr(level: str | None, form: str | None) -> None:
    """Everything that is logged in this process goes to standard error.

    Where the user's own module has configured logging already, that stands, unless one of the two is asked for.
    """
    root = logging.getLogger()
    if root.handlers and level is None and form is None:
        return
    handler = Tolerant()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root.handlers[:] = [handler]
    root.setLevel((level or LEVEL_DEFAULT).upper())
    logging.captureWarnings(True)
    threading.excepthook = log_dead_thread


def announce(text: str) -> None:
    """A line that is logged at any level: that the loop starts."""
    record = logging.LogRecord("onceward", logging.INFO, __file__, 0, text, None, None)
    for handler in logging.getLogger().handlers:
        handler.handle(record)


def log_dead_thread(died: ExceptHookArgs) -> None:
    """A thread that dies, ours or a handler's, is logged like everything else.

    Python's own hook would write a bare traceback.
    """
    error = died.exc_value or died.exc_type()
    name = died.thread.name if died.thread is not None else "a thread"
    logging.getLogger("onceward").error("the thread %s died: %s: %s", name, type(error).__name__, error, exc_info=error)


class Tolerant(logging.StreamHandler[Any]):
    """Standard error, which may be closed, or a pipe whose reader has gone.

    A lost line must not end a consumer.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Does nothing: where a line cannot be written, a second one about it cannot either."""


class TextLines(logging.Formatter):
    """`time level message`, and a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{moment(record)} {record.levelname} {printable(super().format(record))}"


class JsonLines(logging.Formatter):
    """One JSON object a line.

    Time, level, logger, message, the record's own fields, and `traceback` where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        traceback = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        if traceback:
            line["traceback"] = traceback
        fields = getattr(record, FIELDS, None)
        if isinstance(fields, dict):
            line |= {str(name): value for name, value in fields.items() if name not in line}
        return json.dumps(line, default=str)


def moment(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, in milliseconds."""
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
