"""What the package brings along, and a checkout has at its root: the reference service, the benchmarks, the write-up."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from onceward.errors import UsageError

PACKAGE: Final = Path(__file__).resolve().parent


def find_bundled(path: str) -> Path:
    """`path` from the checkout's root, where it is: `examples/payments` is `_examples/payments` in an installed package.

    Raises `UsageError` when it is in neither place.
    """
    for candidate in (PACKAGE / f"_{path}", PACKAGE.parents[2] / path):
        if candidate.exists():
            return candidate
    raise UsageError(f"{path} is not installed with this package: run this from a checkout")


def payments_folder() -> Path:
    """The folder that holds the package `payments`, to be imported from."""
    return find_bundled("examples/payments").parent
