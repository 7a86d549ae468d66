"""How a picture gets into a page: from templates/pictures.html, with the numbers of Python.

Each picture is drawn once and scales with the page. Its colours are the page's own variables, so that light, dark and print
all work.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment() -> Environment:
    """The templates, with every value escaped and every unknown name an error."""
    return Environment(
        loader=PackageLoader("onceward_proof.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_picture(macro: str, label: str, *content: Any) -> Markup:
    """A picture of templates/pictures.html; `label` says it to those who cannot see it."""
    module: Any = environment().get_template("pictures.html").module
    return Markup(getattr(module, macro)(label, *content))  # noqa: S704 - the template escapes what it is given


def ticks(least: float, most: float, count: int) -> list[float]:
    """At most `count` steps between round numbers, from `least` up to `most`."""
    steps = (digit * 10.0**power for power in range(-3, 13) for digit in (1, 2, 5))
    step = next(step for step in steps if (most - least) / step <= count)
    return [step * number for number in range(ceil(least / step), int(most / step) + 1)]
