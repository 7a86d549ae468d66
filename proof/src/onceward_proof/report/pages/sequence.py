"""Sequence diagrams of the write-up, drawn for the pages.

The write-up keeps them as Mermaid, which code forges draw by themselves; a page that stands alone needs the drawing.
Only the few words of Mermaid that the write-up uses are understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from onceward_proof.report.pages.picture import environment

_PARTICIPANT: Final = re.compile(r"participant (?P<alias>\w+) as (?P<name>.+)")
_ARROW: Final = re.compile(r"(?P<source>\w+)(?P<line>--?)(?P<end>>>|x)(?P<target>\w+): (?P<text>.+)")
_NOTE: Final = re.compile(r"Note over (?P<source>\w+): (?P<text>.+)")


@dataclass(frozen=True, slots=True)
class Line:
    """One row, from the top: an arrow, or what one participant does by itself (`alone`)."""

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
    """The diagram that this text describes.

    Raises `ValueError`, which names the line that is not understood.
    """
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


def draw_sequence(diagram: Diagram) -> Markup:
    """Participants side by side, time downwards; what is lost ends in a cross."""
    pictures: Any = environment().get_template("pictures.html").module
    return Markup(pictures.sequence(diagram, list(diagram.names)))  # noqa: S704 - the template escapes what it is given
