"""What a loop logs: a line for people, or one JSON object for programs; and a log that cannot be written ends nothing."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from onceward.commands.logs import JsonLines, TextLines, Tolerant


def record(text: str, *values: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("onceward", logging.WARNING, "loop.py", 1, text, values, None)
    made.__dict__.update({"created": 1_700_000_000.25, **more})
    return made


def raised() -> Any:
    try:
        raise KeyError("amount")
    except KeyError:
        return sys.exc_info()


def test_a_json_line_has_the_time_the_level_and_every_field_of_its_record() -> None:
    fields = {"consumer": "payments", "message_id": "01a1", "attempt": 3, "reason": "two\nlines", "next": "retried"}
    line = JsonLines().format(record("message %s failed", "01a1", onceward=fields))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "onceward",
        "message": "message 01a1 failed",
        **fields,
    }


def test_a_json_line_is_one_line_with_its_traceback_in_it() -> None:
    line = JsonLines().format(record("failed", exc_info=raised()))
    assert "\n" not in line
    traceback = json.loads(line)["traceback"]
    assert traceback.startswith("Traceback (most recent call last):")
    assert traceback.endswith("KeyError: 'amount'")


def test_a_field_never_replaces_what_every_line_has() -> None:
    line = json.loads(JsonLines().format(record("failed", onceward={"message": "forged", "level": "debug", "n": {1}})))
    assert (line["message"], line["level"], line["n"]) == ("failed", "warning", "{1}")


@pytest.mark.parametrize("fields", [None, "text", 42])
def test_fields_that_are_not_a_mapping_are_left_out(fields: Any) -> None:
    assert set(json.loads(JsonLines().format(record("failed", onceward=fields)))) == {"time", "level", "logger", "message"}


def test_a_text_line_is_time_level_message_and_the_traceback_below() -> None:
    lines = TextLines().format(record("message %s failed", "01a1", exc_info=raised())).splitlines()
    assert lines[0] == "2023-11-14T22:13:20.250Z WARNING message 01a1 failed"
    assert (lines[1], lines[-1]) == ("Traceback (most recent call last):", "KeyError: 'amount'")


def test_what_would_steer_a_terminal_is_shown_and_not_obeyed() -> None:
    assert TextLines().format(record("reason: \x1b[2J")).endswith("WARNING reason: \\x1b[2J")


class Gone:
    """A stream whose reader has gone, or that is closed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, _: str) -> None:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")], ids=repr)
def test_a_log_that_cannot_be_written_ends_nothing(error: Exception) -> None:
    for stream in (Gone(error), None):  # None: standard error was closed before Python started
        handler = Tolerant()
        handler.stream = stream
        handler.handle(record("failed"))
