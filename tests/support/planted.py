"""A module with one planted bug, beside the good one: shows that the tests of a judge can fail."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType


def with_bug(module: ModuleType, was: str, becomes: str) -> ModuleType:
    """A copy of `module` in which the one piece `was` of its source is `becomes`; the module itself is untouched."""
    source = inspect.getsource(module)
    assert source.count(was) == 1, f"{module.__name__} has changed: {was!r} is in it {source.count(was)} times"
    copy = ModuleType(f"{module.__name__}_planted")
    # Its dataclasses look their own module up by its name.
    sys.modules[copy.__name__] = copy
    try:
        exec(compile(source.replace(was, becomes), copy.__name__, "exec"), vars(copy))  # noqa: S102 - our own source, with one piece of it changed
    finally:
        del sys.modules[copy.__name__]
    return copy
