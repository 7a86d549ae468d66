"""One version: of both distributions, of what each wants of the other, and of what the package says of itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.tidy.sources import ROOT

import onceward


def project(folder: Path) -> dict[str, str]:
    """The name, the version, and whatever else the table holds."""
    table: dict[str, str] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_both_distributions_and_the_package_say_one_version() -> None:
    library, proof = project(ROOT), project(ROOT / "proof")
    assert library["version"] == proof["version"] == onceward.__version__


def test_each_distribution_wants_the_very_version_of_the_other() -> None:
    """The proof takes layers of the library away at seams that are not public."""
    texts = [(folder / "pyproject.toml").read_text(encoding="utf-8") for folder in (ROOT, ROOT / "proof")]
    pins = [pin for text in texts for pin in re.findall(r'"onceward(?:-proof)?(?:\[[\w,]+\])?([=<>~!][^"]*)"', text)]
    assert pins == [f"=={onceward.__version__}"] * 2
