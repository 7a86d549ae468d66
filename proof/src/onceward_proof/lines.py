"""Lines that fit the terminal: broken between words, and what goes on stands below what it continues."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

ROOM_MIN: Final = 20


def print_beside(console: Console, head: str | Text, body: str | Text) -> None:
    """`head`, and beside it `body` in as many lines as it takes. Only a word that is wider than all the room is cut."""
    head, body = _text(head), _text(body)
    room = max(console.width - head.cell_len, ROOM_MIN)
    for number, line in enumerate(body.wrap(console, room)):
        line.rstrip()
        start = head if number == 0 else Text(" " * head.cell_len)
        console.print(Text.assemble(start, line), highlight=False, soft_wrap=True)


def print_verdict(console: Console, word: str, style: str, said: str) -> None:
    """The line that everybody reads, as one text: printed in two parts, the second would not know where the first ended."""
    console.print(Text.assemble((word, f"bold {style}"), " ", said), highlight=False)


def count_of(number: int, one: str) -> str:
    """`1 kill`, `2 kills`."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def _text(given: str | Text) -> Text:
    return Text(given) if isinstance(given, str) else given
