"""Figures and tables, described once for the terminal, the page and the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from rich.box import HEAVY_HEAD, SIMPLE
from rich.table import Table as TerminalTable
from rich.text import Text

Mood = Literal["", "bad", "good", "held", "warn"]
Source = TypeVar("Source")
FRAMED_COLUMNS_MAX: Final = 4  # with more, a full frame would not fit 80 characters
_STYLES: Final[dict[Mood, str]] = {"": "", "bad": "bold red", "good": "bold green", "held": "", "warn": "yellow"}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown in one place. `heat`: the share of harmed orders, in per cent."""

    text: str
    mood: Mood = ""
    heat: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    `total`: what its cells are parts of. `part_of_above`: it counts a part of an earlier row.
    """

    name: str
    cells: tuple[Cell, ...]
    note: str = ""
    leg: str = ""
    total: int = 0
    part_of_above: bool = False
    is_harm: bool = False


@dataclass(frozen=True, slots=True)
class Figure(Generic[Source]):
    """One thing that a run comes to: its title, and how it is read.

    `key`: in the JSON; empty where the JSON does not have it. `shown`: in the tables of a run; the documentation
    shows whatever has a key.
    """

    title: str
    read: Callable[[Source], Any]
    key: str = ""
    is_harm: bool = False
    unit: str = ""
    part_of_above: bool = False
    shown: bool = True

    def show(self, value: Any) -> Cell:
        """The value as text; a harm is bad, and its absence good."""
        if isinstance(value, Cell):
            return value
        if value is None or isinstance(value, str):
            return Cell(value or "")
        return Cell(f"{value:,}{self.unit}", ("bad" if value else "good") if self.is_harm else "")

    def row(self, values: Iterable[Any]) -> Row:
        return Row(self.title, tuple(map(self.show, values)), part_of_above=self.part_of_above, is_harm=self.is_harm)


def row_of(name: str, *values: Any) -> Row:
    """A row of plain values; whole numbers get their commas."""
    return Row(name, tuple(Cell(f"{value:,}" if isinstance(value, int) else str(value)) for value in values))


def to_terminal(title: str, head: Sequence[str], rows: Sequence[Row], notes: str = "") -> TerminalTable:
    """`head`: a title per column; `notes`: the title of the rows' notes (empty: without them)."""
    framed = len(head) <= FRAMED_COLUMNS_MAX
    style: dict[str, Any] = {"box": HEAVY_HEAD} if framed else {"box": SIMPLE, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = TerminalTable(title=title, title_justify="left", **style)
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(
            name if framed else name.replace("-", "-\n").replace(" ", "\n"), justify="right", no_wrap=not framed
        )
    if notes:
        table.add_column(notes)
    for row in rows:
        cells = (Text(cell.text, _STYLES[cell.mood]) for cell in row.cells)
        table.add_row(f"{'  ' if row.part_of_above else ''}{row.name}", *cells, *([row.note] if notes else []))
    return table


def to_markdown(head: Sequence[str], rows: Sequence[Row]) -> str:
    """What may be wrong stands out: a row of harm has its name in bold."""
    names = (f"**{row.name}**" if row.is_harm else row.name for row in rows)
    lines = [
        head,
        ["---"] * len(head),
        *([name, *(c.text for c in row.cells)] for name, row in zip(names, rows, strict=True)),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
