"""The body of a message, as a person or a program is shown it."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

SHOWN_BYTES_MAX: Final = 4096


def body_json(body: bytes) -> dict[str, Any]:
    """`body` is its JSON value; of what is not JSON, or too long, `body_base64` is its beginning."""
    # Either key says how to read the body, so that no program takes base64 for a text.
    cut = len(body) > SHOWN_BYTES_MAX
    value = None if cut else decoded(body)
    if value is not None:
        return {"body_cut": cut, "body": value[0]}
    return {"body_cut": cut, "body_base64": base64.b64encode(body[:SHOWN_BYTES_MAX]).decode()}


def decoded(body: bytes) -> tuple[Any] | None:
    """The body as a JSON value, in a tuple (it may be null); None when it is not JSON."""
    try:
        return (json.loads(body.decode()),)
    except (ValueError, RecursionError):
        return None


def body_lines(body: bytes) -> list[str]:
    """The body for a terminal, cut where it is long."""
    value = decoded(body)
    try:
        text = body.decode() if value is None else json.dumps(value[0], indent=2, ensure_ascii=False)
    except UnicodeDecodeError:
        shown = body[: SHOWN_BYTES_MAX // 2]
        lines = [f"(not UTF-8, shown in hex) {shown.hex()}"]
        return lines if shown == body else [*lines, _cut(len(shown), len(body))]
    if len(text) <= SHOWN_BYTES_MAX:
        return text.splitlines()
    return [*text[:SHOWN_BYTES_MAX].splitlines(), _cut(SHOWN_BYTES_MAX, len(text))]


def whole_or_cut(text: str) -> str:
    """The text, or its beginning and how much of it is missing."""
    return text if len(text) <= SHOWN_BYTES_MAX else f"{text[:SHOWN_BYTES_MAX]} {_cut(SHOWN_BYTES_MAX, len(text))}"


def _cut(shown: int, whole_length: int) -> str:
    return f"... (cut: {shown} of {whole_length} shown)"
