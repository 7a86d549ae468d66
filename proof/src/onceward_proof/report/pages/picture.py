"""The templates. Sentences, tables and pictures are theirs; Python brings the numbers.

A picture scales with its page. Its colours are the page's own variables, so that light, dark and print all work.
"""

from __future__ import annotations

from math import ceil

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """The templates, with every value escaped and every unknown name an error."""
    templates = Environment(
        loader=PackageLoader("onceward_proof.report.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["ticks"] = ticks
    return templates


def ticks(least: float, most: float, count: int) -> list[float]:
    """At most `count` steps between round numbers, from `least` up to `most`."""
    steps = (digit * 10.0**power for power in range(-3, 13) for digit in (1, 2, 5))
    step = next(step for step in steps if (most - least) / step <= count)
    return [step * number for number in range(ceil(least / step), int(most / step) + 1)]
