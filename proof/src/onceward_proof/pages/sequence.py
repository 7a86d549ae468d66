"""Sequence diagrams of the write-up, drawn for the pages: the few words of Mermaid that it uses, and no more.

The write-up keeps the text, which code forges draw by themselves; a page that stands alone needs the drawing.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onceward_proof.pages.canvas import BAD, HOLD, INK, LINE, MUTED, NARROW_INCHES, PAPER, Picture, settings, to_svg

ROW_INCHES: Final = 0.4
LINE_INCHES: Final = 0.15  # a further line of a text
HEAD_INCHES: Final = 0.42
WIDE_INCHES: Final = 5.6
CHARS_PER_INCH: Final = 14
_PARTICIPANT: Final = re.compile(r"participant (?P<alias>\w+) as (?P<name>.+)")
_ARROW: Final = re.compile(r"(?P<source>\w+)(?P<line>--?)(?P<end>>>|x)(?P<target>\w+): (?P<text>.+)")
_NOTE: Final = re.compile(r"Note over (?P<source>\w+): (?P<text>.+)")


@dataclass(frozen=True, slots=True)
class Line:
    """One row, from the top: an arrow, or (source and target the same) what one participant does by itself."""

    source: str
    target: str
    text: str
    dashed: bool = False
    lost: bool = False  # it never arrives

    @property
    def alone(self) -> bool:
        return self.source == self.target


@dataclass(frozen=True, slots=True)
class Diagram:
    """Who takes part, by alias, from left to right; and what happens."""

    names: dict[str, str]
    lines: tuple[Line, ...]


def parse(text: str) -> Diagram:
    """The diagram that this text describes. Raises `ValueError` with the line that is not understood."""
    names: dict[str, str] = {}
    lines: list[Line] = []
    first, *rest = [line.strip() for line in text.strip().splitlines()]
    if first != "sequenceDiagram":
        raise ValueError(f"not a sequence diagram: {first!r}")
    for line in rest:
        if match := _PARTICIPANT.fullmatch(line):
            names[match["alias"]] = match["name"]
        elif match := _ARROW.fullmatch(line):
            arrow = Line(match["source"], match["target"], match["text"], match["line"] == "--", match["end"] == "x")
            lines.append(arrow)
        elif match := _NOTE.fullmatch(line):
            lines.append(Line(match["source"], match["source"], match["text"]))
        else:
            raise ValueError(f"not understood: {line!r}")
    unknown = {who for line in lines for who in (line.source, line.target)} - set(names)
    if unknown:
        raise ValueError(f"no participant is called {', '.join(sorted(unknown))}")
    return Diagram(names, tuple(lines))


def draw_sequence(diagram: Diagram, name: str, title: str) -> Picture:
    """Participants side by side, time downwards; what is lost ends in a cross."""
    with settings():
        return Picture(
            to_svg(_draw(diagram, WIDE_INCHES), f"{name}-wide", title),
            to_svg(_draw(diagram, NARROW_INCHES), f"{name}-narrow", title),
        )


def _draw(diagram: Diagram, inches: float) -> Figure:
    """All lengths are inches; y grows downwards."""
    step = inches / len(diagram.names)
    places = {alias: step * (index + 0.5) for index, alias in enumerate(diagram.names)}
    texts = [_wrapped(line, places, step) for line in diagram.lines]
    heights = [ROW_INCHES + LINE_INCHES * text.count("\n") for text in texts]
    height = HEAD_INCHES + sum(heights) + 0.15
    figure = Figure(figsize=(inches, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, inches)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for alias, x in places.items():
        axes.vlines(x, HEAD_INCHES - 0.08, height, color=LINE, linewidth=1, zorder=0)
        _boxed(axes, x, HEAD_INCHES / 2, diagram.names[alias], bold=True)
    y = HEAD_INCHES
    for line, text, row in zip(diagram.lines, texts, heights, strict=True):
        y += row
        _draw_line(axes, line, text, places, y)
    return figure


def _wrapped(line: Line, places: dict[str, float], step: float) -> str:
    room = step * 1.35 if line.alone else abs(places[line.target] - places[line.source])
    return "\n".join(textwrap.wrap(line.text, max(10, int(room * CHARS_PER_INCH)))) or line.text


def _draw_line(axes: Axes, line: Line, text: str, places: dict[str, float], y: float) -> None:
    begin, end = places[line.source], places[line.target]
    if line.alone:
        _boxed(axes, _inside(axes, begin, text), y - 0.09 - LINE_INCHES / 2 * text.count("\n"), text)
        return
    colour = BAD if line.lost else INK
    reach = begin + (end - begin) * (0.72 if line.lost else 1)
    axes.annotate(
        "", (reach, y), (begin, y),
        arrowprops={
            "arrowstyle": "-" if line.lost else "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0,
            "linestyle": "--" if line.dashed else "-", "mutation_scale": 9,
        },
    )  # fmt: skip
    if line.lost:
        axes.plot([reach], [y], marker="X", markersize=8, color=BAD, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=3)
    axes.text((begin + end) / 2, y - 0.05, text, ha="center", va="bottom", fontsize=8, color=colour, linespacing=1.1)


def _inside(axes: Axes, x: float, text: str) -> float:
    """The middle of a box that must not reach over the edge."""
    half = max(map(len, text.split("\n"))) / CHARS_PER_INCH / 2 + 0.08
    return min(max(x, half), max(half, axes.get_xlim()[1] - half))


def _boxed(axes: Axes, x: float, y: float, text: str, *, bold: bool = False) -> None:
    axes.text(
        x, y, text, ha="center", va="center", fontsize=9 if bold else 8, linespacing=1.1,
        fontweight="bold" if bold else "normal", color=INK if bold else MUTED,
        bbox={"boxstyle": "round,pad=0.3", "facecolor": HOLD if bold else PAPER, "edgecolor": LINE, "linewidth": 0.8},
    )  # fmt: skip


def tell(diagram: Diagram) -> str:
    """The diagram in words, for who cannot see it."""
    names = diagram.names
    return "; ".join(
        f"{names[line.source]}: {line.text}"
        if line.alone
        else f"{names[line.source]} to {names[line.target]}: {line.text}{' (never arrives)' if line.lost else ''}"
        for line in diagram.lines
    )
