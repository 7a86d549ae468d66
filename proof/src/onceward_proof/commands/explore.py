"""`onceward explore`: every step of the protocol, tried in small."""

from __future__ import annotations

from typing import Any, Final

from onceward.commands.arguments import say, whole
from onceward_proof.commands.arguments import written_file

EXPLORE: Final = """\
examples:
  onceward explore                      every world within the bound: under a
                                        minute
  onceward explore --json explored.json
  onceward explore --planted list       the bugs that it must find
  onceward explore --planted fresh-key  one of them, and its shortest story

exit codes: 0 every promise is kept (--planted: the bug was found);
1 a promise is broken (--planted: it was not found)
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "explore",
        help="every step of the protocol, tried in small",
        description="Drive the production protocol through every world of a small model, nearest first.",
        epilog=EXPLORE,
    )
    parser.add_argument("--states", type=whole(1), default=0, metavar="N", help="stop after N states (default: no limit)")
    parser.add_argument("--json", type=written_file, metavar="FILE", help="write the result, for programs")
    parser.add_argument("--deep", action="store_true", help="wider bounds too: minutes, and 1 GB of memory")
    parser.add_argument("--planted", metavar="NAME", help="find this planted bug (`all`: each of them; `list`: name them)")
    parser.set_defaults(perform=explore)


def explore(arguments: Any) -> int:
    from onceward_proof.explorer import passages, report  # noqa: PLC0415 - only when it runs, as every command here

    if arguments.planted is not None:
        return report.explore_planted(arguments.planted, say, file=arguments.json)
    searched = passages.DEEPER if arguments.deep else passages.PASSAGES
    return report.explore(say, states_max=arguments.states, file=arguments.json, passages=searched)
