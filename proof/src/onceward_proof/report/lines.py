"""Lines that fit the terminal, broken between words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from rich.console import Console
from rich.text import Text

ROOM_MIN: Final = 20


def print_beside(console: Console, head: str | Text, body: str | Text) -> None:
    """`head`, and beside it `body` in as many lines as it takes.

    Only a word that is wider than all the room is cut.
    """
    head, body = Text.assemble(head), Text.assemble(body)
    room = max(console.width - head.cell_len, ROOM_MIN)
    for number, line in enumerate(body.wrap(console, room)):
        line.rstrip()
        start = head if number == 0 else Text(" " * head.cell_len)
        console.print(Text.assemble(start, line), highlight=False, soft_wrap=True)


def print_verdict(console: Console, word: str, style: str, sentence: str, reasons: Iterable[str] = ()) -> None:
    """The line that everybody reads, and below it the reasons."""
    # One text: of two prints, the second would not know where in the line the first ended, and break in a word.
    console.print(Text.assemble((word, f"bold {style}"), " ", sentence), highlight=False)
    for reason in reasons:
        print_beside(console, "  - ", reason)


def count_of(number: int, one: str) -> str:
    """`1 kill`, `2 kills`."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def some_of(names: Collection[str], most: int = 5) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more
