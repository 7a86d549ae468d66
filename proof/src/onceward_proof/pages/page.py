"""What every HTML report is: one page that stands alone (no script, no request), with the write-up's legs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from onceward import __version__
from onceward_proof.pages.legs import anchor, read_sections


def render_template(template: str, **content: Any) -> str:
    """The text of a page: the template with this content, the legs of the write-up, the version, the time."""
    environment = Environment(
        loader=PackageLoader("onceward_proof.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["money"] = money
    environment.filters["breakable"] = breakable
    environment.filters["anchor"] = anchor
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return environment.get_template(template).render(**content, legs=read_sections(), made=made, version=__version__)


def money(cents: int) -> str:
    """Cents as dollars."""
    return f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02}"


def breakable(name: str) -> str:
    """A fault's name, that may go on in the next line after a hyphen."""
    return name.replace("-", "-\u200b")
