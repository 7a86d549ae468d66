"""What a page tells its reader to type, typed: its files written, its lines run by one shell, word for word."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.support.waiting import until

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"# ([\w/]+\.py)\n")
LINE_SECONDS_MAX: Final = 120.0


class Block(NamedTuple):
    """One block of a page: its language, and its text."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a reader saves it as: its first line says so."""
        named = _FILE.match(self.text) if self.language == "python" else None
        return named[1] if named else None

    def lines(self) -> Iterator[Line]:
        """The lines after a prompt, each with what the page shows below it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            line, *shown = part.rstrip("\n").split("\n")
            yield Line(line, tuple(shown))


class Line(NamedTuple):
    """A line that is typed, and the lines that the page shows below it."""

    typed: str
    shown: tuple[str, ...]


class Typed(NamedTuple):
    """What became of a line: its exit code, and what the terminal said meanwhile."""

    code: int
    said: str


def blocks(page: Path, section: str = "") -> list[Block]:
    """The blocks of a page, or of the one section of it with this heading."""
    text = page.read_text(encoding="utf-8")
    if section:
        _, heading, rest = text.partition(f"\n## {section}\n")
        assert heading, f"{page.name} has no section {section!r}"
        text = rest.partition("\n## ")[0]
    return [Block(*found) for found in _BLOCK.findall(text)]


class Shell:
    """One bash, as in a terminal: what is exported stays, and jobs go on in the background until it is closed."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, instead: Mapping[str, str] | None = None) -> None:
        """`instead`: what stands on the page for something of the reader's own (a port, a DSN), and what it is here."""
        self._instead = instead or {}
        self._said = folder.with_name(f"{folder.name}.terminal")
        self._codes, codes = os.pipe()
        with self._said.open("w") as said:
            self._bash = subprocess.Popen(
                ["bash", "--norc"], cwd=folder, env={**environment}, text=True, pass_fds=[codes],
                stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self._codes_written_to = codes
        os.close(codes)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def run(self, line: str) -> Typed:
        """The line has been run; one that goes on in the background has said something."""
        for here, there in self._instead.items():
            line = line.replace(here, there)
        before = len(self.said)
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\necho $? >&{self._codes_written_to}\n")
        self._bash.stdin.flush()
        code = int(self._read_code())
        if line.partition(" #")[0].rstrip().endswith("&"):
            until(lambda: len(self.said) > before, f"`{line}` saying something", LINE_SECONDS_MAX)
        return Typed(code, self.said[before:])

    def _read_code(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            read = os.read(self._codes, 100)
            assert read, f"the shell has ended: {self.said}"
            text += read
        return text.decode()

    def follow(self, line: Line) -> Typed:
        """The line is typed, again and again until the terminal shows what the page shows below it."""
        shown = [text.strip() for text in line.shown if text.strip()]
        typed = self.run(line.typed)

        def is_shown() -> bool:
            nonlocal typed
            if {*shown} <= {text.strip() for text in typed.said.splitlines()}:
                return True
            typed = self.run(line.typed)
            return False

        until(is_shown, f"`{line.typed}` showing {shown}", LINE_SECONDS_MAX)
        return typed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"the terminal:\n{self.said}")
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()
        os.close(self._codes)
