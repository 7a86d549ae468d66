"""Tells what happens, when it happens: to a reader, or into a list for programs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from onceward_proof.lines import print_beside

PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the story: real seconds since the demonstration began."""

    seconds: float
    who: str
    what: str

    def to_json(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 3), "who": self.who, "what": self.what}


@dataclass(slots=True)
class Narrator:
    """Keeps every step; prints it at once unless it is `quiet`.

    Times on the terminal run from the beginning of a side.
    """

    quiet: bool
    fast: bool
    steps: list[Step] = field(default_factory=list)
    _console: Console = field(default_factory=lambda: Console(highlight=False))
    _began: float = field(default_factory=time.monotonic)
    _side_began: float = field(default_factory=time.monotonic)
    _scale: float = 1.0

    def heading(self, title: str, *explanation: str) -> None:
        """One side begins; the reader gets time to read what it is about."""
        self._print("")
        self._print(f"[bold]{title}[/bold]")
        for line in explanation:
            self._print_beside("  ", Text(line, style="dim"))
        self._print("")
        self.pause(PAUSE_SECONDS + 0.4 * len(explanation))
        self.start_clock()

    def start_clock(self, *, scale: float = 1.0, at: float | None = None) -> None:
        """T=0 is now, or was `at`; from here on one real second is told as `scale` seconds."""
        self._side_began = time.monotonic() if at is None else at
        self._scale = scale

    def tell(self, who: str, what: str, at: float | None = None) -> None:
        """One step. `at` (monotonic) is when it happened, if that was not just now."""
        moment = time.monotonic() if at is None else at
        self.steps.append(Step(max(0.0, moment - self._began), who, what))
        seconds = max(0.0, moment - self._side_began) * self._scale
        self._print_beside(Text.assemble(f"  T={seconds:<5.1f}s  ", (f"{who:<11}", "cyan"), " "), what)

    def verdict(self, what: str, held: bool) -> None:
        mark = ("as claimed", "green") if held else ("NOT SO", "red")
        self._print_beside(Text.assemble("  ", mark, "  "), what)

    def evidence(self, naive: dict[str, Any], hardened: dict[str, Any]) -> None:
        """Both sides' counts, side by side."""
        sides = (Column(name, overflow="fold") for name in ("naive", "hardened"))
        table = Table("counted", *sides, box=None, pad_edge=False)  # two charge ids fit beside each other in 80
        for name in dict.fromkeys((*naive, *hardened)):
            table.add_row(name.replace("_", " "), _cell(naive.get(name)), _cell(hardened.get(name)))
        self._print("")
        if not self.quiet:
            self._console.print(table)

    def say(self, text: str) -> None:
        self._print(text)

    def pause(self, seconds: float) -> None:
        """Time to read; only where no lease runs out meanwhile."""
        if not (self.quiet or self.fast):
            time.sleep(seconds)

    def _print(self, text: str) -> None:
        if not self.quiet:
            self._console.print(text)

    def _print_beside(self, head: str | Text, body: str | Text) -> None:
        if not self.quiet:
            print_beside(self._console, head, body)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    return "\n".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
