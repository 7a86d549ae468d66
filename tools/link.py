#!/usr/bin/env python3
"""Makes both distributions of this checkout importable in the Python that runs this, with their metadata and entry points.

What `pip install --editable` would do, without a build backend to download: a .pth line each, and a dist-info folder.
"""

from __future__ import annotations

import sysconfig
import tomllib
from pathlib import Path
from shutil import rmtree

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    for folder in (ROOT, ROOT / "proof"):
        link(folder, site)


def link(folder: Path, site: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    stem = name.replace("-", "_")
    for old in site.glob(f"{stem}-*.dist-info"):
        rmtree(old)
    (site / f"{stem}.pth").write_text(f"{folder / 'src'}\n", encoding="utf-8")
    info = site / f"{stem}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points(project), encoding="utf-8")


def entry_points(project: dict[str, dict[str, dict[str, str]]]) -> str:
    groups = dict(project.get("entry-points", {}))
    return "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items())


if __name__ == "__main__":
    main()
