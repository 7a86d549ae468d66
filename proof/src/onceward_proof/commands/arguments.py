"""The types of arguments that only the proof's commands take: a file to write, and a time with its unit."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path


def written_file(text: str) -> Path:
    """An argument type: a file that can be written.

    It is tried before the run whose result goes into it.
    A file that exists stays as it is; one that did not exist is removed again.
    """
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder: name a file in it")
    if not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"there is no folder {path.parent} to write {path.name} in")
    if path.exists() and not path.is_file():
        return path  # a pipe, or /dev/stdout: to open and close it would end it for its reader
    try:
        _try_to_write(path)
    except OSError as error:
        raise ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _try_to_write(path: Path) -> None:
    """Raises `OSError` as the writing would.

    Permissions are not looked up but tried: disks and mounts refuse as well.
    """
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        return
    # This try made the file: a run that is refused for another reason must not leave an empty one.
    os.close(made)
    path.unlink()


def duration(text: str) -> float:
    """An argument type: seconds, from a number with its unit."""
    # A bare 90 may be meant as minutes.
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text.strip())
    if match is None or not float(match[1]):
        raise ArgumentTypeError(f"{text!r}: a number with its unit, for example 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
