"""What every HTML report is: a page that stands alone, without script or request."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from onceward import __version__
from onceward_proof.prove.moments import words
from onceward_proof.report.pages.legs import anchor, read_sections
from onceward_proof.report.pages.picture import environment

CONTENTS: Final = "<!-- contents -->"  # in page.html


def render_template(template: str, **content: Any) -> str:
    """The text of a page: this content, a list of its sections, the legs of the write-up, the version, the time."""
    templates = environment()
    templates.filters |= {"money": money, "breakable": breakable, "anchor": anchor, "words": words}
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = templates.get_template(template).render(**content, legs=read_sections(), made=made, version=__version__)
    # From the headings themselves, so that a list of them beside cannot leave one out.
    headings = re.findall(r'<h2 id="(\w+)">(.*?)</h2>', page)
    return page.replace(CONTENTS, "\n  ".join(f'<a href="#{name}">{heading}</a>' for name, heading in headings))


def money(cents: int) -> str:
    """Cents as dollars."""
    return f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02}"


def breakable(name: str) -> str:
    """A fault's name that a browser may break after a hyphen."""
    return name.replace("-", "-\u200b")
