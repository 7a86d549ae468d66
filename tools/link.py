#!/usr/bin/env python3
"""Makes both distributions of this checkout importable by the Python that runs this.

They have their metadata and their entry points.

What `pip install --editable . ./proof` would do, but without a build backend, which would have to be downloaded: a .pth
line each, and a dist-info folder, from which `importlib.metadata` (and so `onceward prove`) knows them.
"""

from __future__ import annotations

import sysconfig
import tomllib
from pathlib import Path
from shutil import rmtree
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    site_packages = Path(sysconfig.get_path("purelib"))
    for project_folder in (ROOT, ROOT / "proof"):
        link(project_folder, site_packages)


def link(project_folder: Path, site_packages: Path) -> None:
    """The distribution in this folder is importable.

    It is known by its name, its version and its entry points.
    """
    project = tomllib.loads((project_folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    stem = name.replace("-", "_")
    # Of another version, say: two dist-info folders of one name would leave it open which is meant.
    for earlier in site_packages.glob(f"{stem}-*.dist-info"):
        rmtree(earlier)
    info = f"{stem}-{version}.dist-info"
    files = {
        f"{stem}.pth": f"{project_folder / 'src'}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/entry_points.txt": entry_points(project),
    }
    # Without a RECORD an installer that brings this environment up to date could not remove what stands here.
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    (site_packages / info).mkdir()
    for file, text in files.items():
        (site_packages / file).write_text(text, encoding="utf-8")


def entry_points(project: dict[str, Any]) -> str:
    """The groups of `[project.entry-points]`, as a dist-info folder has them."""
    groups: dict[str, dict[str, str]] = project.get("entry-points", {})
    lines = [line for group, names in groups.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in names.items()))]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
