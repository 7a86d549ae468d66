"""What every picture is drawn with: matplotlib's settings, the page's colours, and SVG that is fit to stand inside a page.

Each picture is drawn twice, for a wide page and for a phone; the page shows one. Text stays text (the reader's own font),
colours are the page's own variables, so that light and dark both work; ids are made unique, and nothing points outside.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

# Colours that stand for the page's variables: matplotlib writes them, `_for_page` puts the variables in their place.
INK: Final = "#010203"
MUTED: Final = "#010204"
LINE: Final = "#010205"
BAD: Final = "#010206"
GOOD: Final = "#010207"
WARN: Final = "#010208"
HOLD: Final = "#010209"
PAPER: Final = "#01020a"
HELD: Final = "#01020b"
_VARIABLES: Final = {
    INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", BAD: "var(--bad)", GOOD: "var(--good)",
    WARN: "var(--warn)", HOLD: "var(--hold)", PAPER: "var(--paper)", HELD: "var(--held)",
}  # fmt: skip
_SETTINGS: Final[Any] = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "onceward",
    "text.parse_math": False,  # a $ is a dollar
    "font.family": "DejaVu Sans",  # ships with matplotlib; wider than what browsers use, so that what fits here fits there
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
}
WIDE_INCHES: Final = 9.4
NARROW_INCHES: Final = 3.9


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as inline SVG, for a wide page and for a narrow one."""

    wide: str
    narrow: str

    def __html__(self) -> Markup:
        """Ours, and escaped where it was drawn."""
        return Markup(self.wide + self.narrow)  # noqa: S704


def settings() -> AbstractContextManager[None]:
    """Whatever is drawn inside it is drawn so."""
    return mpl.rc_context(_SETTINGS)


def to_svg(figure: Figure, name: str, title: str) -> str:
    """The drawing, fit for the page: `name` ends in -wide or -narrow; `title` is for screen readers."""
    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    return _for_page(out.getvalue(), name, title)


def _for_page(svg: str, name: str, title: str) -> str:
    """Only the drawing: no prologue, no metadata, no namespace addresses, no fonts; the page's colours; ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL).replace("font-family: 'DejaVu Sans'; ", "")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    kind = name.rpartition("-")[2]
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="{kind}" role="img" aria-label="{_attribute(title)}" {box[0] if box else ""}>'
    return re.sub(r"^<svg[^>]*>", lambda _: head, svg, count=1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
