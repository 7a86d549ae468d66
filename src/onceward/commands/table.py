"""A table for people."""

from __future__ import annotations

from collections.abc import Sequence

from onceward.commands.arguments import printable, say


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell."""
    # What others wrote must not steer the terminal, nor break the table.
    clean = [tuple(printable(cell).replace("\n", " ") for cell in line) for line in lines]
    widths = [max(len(line[column]) for line in (titles, *clean)) for column in range(len(titles))]
    for line in (titles, *clean):
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def shortened(text: str, chars_max: int = 100) -> str:
    """The text, or as much of it as fits into a cell."""
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"


def duration(seconds: float) -> str:
    """About how long that is, in its largest unit and the next."""
    whole = max(0, round(seconds))
    for unit, unit_seconds, next_unit, next_seconds in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= unit_seconds:
            return f"{whole // unit_seconds}{unit} {whole % unit_seconds // next_seconds}{next_unit}"
    return f"{whole}s"
