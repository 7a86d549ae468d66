"""Tells what happens, when it happens: to a reader, or into a list for programs."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from onceward_proof.report.lines import print_beside

PAUSE_SECONDS: Final = 1.0


class Narrator:
    """Keeps every step; prints it at once. Times on the terminal run from the beginning of a side.

    `fast`: without pauses for reading. `steps`: for programs, with real seconds since the demonstration began.
    """

    def __init__(self, console: Console, *, fast: bool) -> None:
        self.fast = fast
        self.steps: list[dict[str, Any]] = []
        self.console = console
        self._began = time.monotonic()
        self.start_clock()

    def heading(self, title: str, *explanation: str) -> None:
        """One side begins; the reader gets time to read what it is about."""
        self.console.print(f"\n[bold]{title}[/bold]")
        for line in explanation:
            print_beside(self.console, "  ", Text(line, style="dim"))
        self.console.print()
        # Here no lease runs out meanwhile.
        if not (self.fast or self.console.quiet):
            time.sleep(PAUSE_SECONDS + 0.4 * len(explanation))
        self.start_clock()

    def start_clock(self, *, scale: float = 1.0, at: float | None = None) -> None:
        """T=0 is now, or was `at`; from here on one real second is told as `scale` seconds."""
        self._side_began = time.monotonic() if at is None else at
        self._scale = scale

    def tell(self, who: str, what: str, at: float | None = None) -> None:
        """One step. `at` (monotonic) is when it happened, if that was not just now."""
        moment = time.monotonic() if at is None else at
        self.steps.append({"seconds": round(max(0.0, moment - self._began), 3), "who": who, "what": what})
        seconds = max(0.0, moment - self._side_began) * self._scale
        print_beside(self.console, Text.assemble(f"  T={seconds:<5.1f}s  ", (f"{who:<11}", "cyan"), " "), what)

    def verdict(self, what: str, held: bool) -> None:
        mark = ("as claimed", "green") if held else ("NOT SO", "red")
        print_beside(self.console, Text.assemble("  ", mark, "  "), what)

    def evidence(self, naive: dict[str, Any], hardened: dict[str, Any]) -> None:
        """Both sides' counts, side by side."""
        sides = (Column(name, overflow="fold") for name in ("naive", "hardened"))
        table = Table("counted", *sides, box=None, pad_edge=False)  # two charge ids fit beside each other in 80
        for name in dict.fromkeys((*naive, *hardened)):
            table.add_row(name.replace("_", " "), _cell(naive.get(name)), _cell(hardened.get(name)))
        self.console.print()
        self.console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    return "\n".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
