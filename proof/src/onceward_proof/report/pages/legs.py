"""The three legs of a message's way and the four gaps between them, as docs/guarantees.md explains them.

A report links each fault to the leg or gap that it strikes, and calls either its leg. The text has one source: the file in
the checkout, which travels with the wheel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from onceward_proof.bundled import find_bundled
from onceward_proof.prove.faults import Leg
from onceward_proof.prove.run import ProofError
from onceward_proof.report.pages.sequence import draw_sequence, parse

# The heading in docs/guarantees.md under which a leg or a gap is explained.
HEADINGS: Final[dict[Leg, str]] = {
    "dual write": "Dual write",
    "leg 1": "Leg 1: the producer and the queue",
    "leg 2": "Leg 2: inside the queue",
    "leg 3": "Leg 3: the queue and the consumer",
    "timeout": "Timeout: two workers at once",
    "outside effect": "Outside effects",
    "past the window": "Past the window",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One leg or gap: its name in reports, its anchor (here and in the file), heading and text."""

    leg: Leg
    anchor: str
    heading: str
    text: Markup


def anchor(leg: str) -> str:
    """The id of the leg's section, as code forges make it; empty for what is not a leg."""
    heading = HEADINGS.get(leg, "")  # type: ignore[call-overload]
    return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def read_sections(file: Path | None = None) -> list[Section]:
    """Every leg's section, in order. Raises `ProofError` when one is missing."""
    text = (file or find_bundled("docs/guarantees.md")).read_text(encoding="utf-8")
    split = [part.partition("\n") for part in re.split(r"^#{2,3} ", text, flags=re.MULTILINE)]
    parts = {heading.strip(): rest for heading, _, rest in split}
    missing = [heading for heading in HEADINGS.values() if heading not in parts]
    if missing:
        raise ProofError(f"docs/guarantees.md has no section {', '.join(missing)}")
    return [Section(leg, anchor(leg), heading, _render(parts[heading])) for leg, heading in HEADINGS.items()]


def _render(text: str) -> Markup:
    """The section as HTML: its diagrams drawn, its links as plain text, no HTML of its own let through."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = [_drawn(token) if token.info == "mermaid" else token for token in markdown.parse(text)]
    for token in tokens:
        # A report stands alone: it leads nowhere outside, and has no files beside it.
        token.children = [child for child in token.children or () if child.type not in ("link_open", "link_close")]
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 - rendered with escapes


def _drawn(diagram: Token) -> Token:
    return Token("html_block", "", 0, content=f"<figure>{draw_sequence(parse(diagram.content))}</figure>\n")
