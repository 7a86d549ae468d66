"""`onceward demo`: each failure leg, happening in front of the reader."""

from __future__ import annotations

import json
from shutil import get_terminal_size
from textwrap import fill
from typing import Any, Final

from onceward.commands.arguments import need, say, warn

DEMO: Final = """\
examples:
  onceward demo --list
  onceward demo double-charge           the incident, step by step; then the
                                        same on Onceward
  onceward demo key-expired --fast      without pauses for reading
  onceward demo zombie --json           the steps and the counts, for programs

exit codes: 0 all that it claims was seen, 1 something of it did not happen,
2 usage or environment
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="one failure at a time, step by step, then closed",
        description="One failure, step by step: first the naive way, then on Onceward; ends in counted evidence.",
        epilog=DEMO,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one (see --list)")
    parser.add_argument("--list", action="store_true", help="the demonstrations, and what each shows")
    parser.add_argument("--fast", action="store_true", help="no pauses for reading")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(perform=demo)


def demo(arguments: Any) -> int:
    from onceward_proof.demos import DEMOS, FORMER_NAMES  # noqa: PLC0415

    if arguments.list:
        shown = [{"name": name, "shows": title} for name, (_, title) in DEMOS.items()]
        say(json.dumps(shown, indent=2) if arguments.json else _as_lines(DEMOS, get_terminal_size().columns))
        return 0
    name = FORMER_NAMES.get(arguments.name, arguments.name)
    if name not in DEMOS:
        warn(f"there is no demo {arguments.name!r}; there are:" if arguments.name else "which one? There are:")
        for line in _as_lines(DEMOS, get_terminal_size().columns - len("onceward: ")).splitlines():
            warn(line)
        return 2
    need("prove", "psutil", "pgmq", "rich", "starlette", "uvicorn", "stripe")
    from onceward_proof.demos.command import run_demo  # noqa: PLC0415 - only when it runs

    return run_demo(name, fast=arguments.fast, as_json=arguments.json)


def _as_lines(demos: dict[str, tuple[str, str]], columns: int) -> str:
    """A line for each, and more below its title where the terminal is too narrow for one."""
    width = max(map(len, demos))
    below = " " * (width + 4)
    return "\n".join(
        fill(title, columns, initial_indent=f"  {name:<{width}}  ", subsequent_indent=below, break_long_words=False)
        for name, (_, title) in demos.items()
    )
