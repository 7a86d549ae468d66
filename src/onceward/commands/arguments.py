"""What every command needs from its arguments.

The database that it was pointed at, the user's own objects, and lines for people.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Final

from onceward.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

DATABASE_HELP: Final = (
    "where Postgres is (without it, or empty: $ONCEWARD_DATABASE, else the standard PGHOST, PGUSER, ... or libpq's own)"
)
CONNECT_SECONDS_MAX: Final = 5


def add_database(parser: ArgumentParser) -> None:
    parser.add_argument("--database", metavar="DSN", help=DATABASE_HELP)


def add_schema(parser: ArgumentParser) -> None:
    parser.add_argument("--schema", default="onceward", metavar="NAME", help="the schema of our tables (default: onceward)")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_by(parser: ArgumentParser) -> None:
    parser.add_argument("--by", metavar="NAME", help="who decides (default: the user of the operating system)")


def decided_by(arguments: Any) -> str:
    """Who decides, for the row in `decisions`. Raises `UsageError` for an empty name."""
    if arguments.by is not None:
        if not arguments.by.strip():
            raise UsageError("--by: name who decides")
        return str(arguments.by)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"uid {os.getuid()}"


def confirmed(what: str, word: str, *, yes: bool) -> bool:
    """Whether a person typed `word` after reading `what` will be so; with `yes`, nobody is asked.

    Raises `UsageError` where there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{what}: if that is right, say --yes (there is no terminal to ask at)")
    # Not input(): that would write the question to standard output, where a program may read JSON.
    sys.stderr.write(f"{what}\ntype {word!r} to go on: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == word


def dsn_of(value: str | None, *, option: str = "--database") -> str:
    """The DSN that `value` or the environment names, with a limit on waiting for it.

    An empty `value` counts as none: `--database "$DSN"` with a variable that is not set must not reach another database
    than no flag at all.
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415 - lazy, as every driver here

    dsn = value or os.environ.get("ONCEWARD_DATABASE", "")
    try:
        known = conninfo_to_dict(dsn)
        if "connect_timeout" not in known and "PGCONNECT_TIMEOUT" not in os.environ:
            dsn = make_conninfo(dsn, connect_timeout=CONNECT_SECONDS_MAX)
    except Exception as error:
        raise UsageError(f"the DSN cannot be read ({named_by(value, option)}): {one_line(error)}") from error
    return dsn


def named_by(value: str | None, option: str) -> str:
    """What has named the database, and is to be corrected when it does not answer."""
    if value:
        return option
    return (
        "$ONCEWARD_DATABASE" if os.environ.get("ONCEWARD_DATABASE") else "neither --database nor $ONCEWARD_DATABASE is set"
    )


@contextmanager
def connected(value: str | None, *, schema: str | None = None, option: str = "--database") -> Iterator[Connection[Any]]:
    """A connection in autocommit mode, with a limit on every wait.

    With `schema`, only if that is as this code needs it.
    Where a command knows two databases, `option` is what this one was named by; psycopg's error carries it as a note.
    """
    import psycopg  # noqa: PLC0415

    from onceward.database import check_keeps_session  # noqa: PLC0415
    from onceward.schema import check_schema  # noqa: PLC0415

    dsn = dsn_of(value, option=option)
    try:
        opened = psycopg.connect(dsn, autocommit=True, application_name="onceward")
    except psycopg.OperationalError as error:
        error.add_note(named_by(value, option))
        raise
    with opened as conn:
        check_keeps_session(conn, dsn, what=named_by(value, option))
        # Times are read and shown the same wherever the database or the role says otherwise: psycopg reads ISO only.
        conn.execute(
            "SET lock_timeout TO '10s'; SET statement_timeout TO '60s'; SET datestyle TO ISO; SET timezone TO 'UTC'"
        )
        if schema is not None:
            check_schema(conn, schema=schema)
        yield conn


def answering(value: str | None, *, schema: str | None = None, option: str = "--database") -> str:
    """The DSN, once a database has answered on it."""
    # A pool would wait, and log again and again, where one line is enough.
    with connected(value, schema=schema, option=option):
        return dsn_of(value, option=option)


def find(target: str, what: str) -> Any:
    """The object that `MODULE:NAME` means, the current folder first.

    Raises `UsageError` when there is none.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"{target!r}: name {what} as MODULE:NAME, for example payments.consumers:charges")
    try:
        return attrgetter(name)(_module(module_name))
    except AttributeError:
        raise UsageError(f"the module {module_name} has no {name!r}: name {what} there") from None


def _module(name: str) -> Any:
    # As `python -m` does, and an installed command does not: the user's module is most often in this folder.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The named module itself is missing, or one that it imports: the user mends these in different places.
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"there is no module {name!r} (looked in {here} and where Python looks)") from error
        raise UsageError(f"the module {name!r} needs {error.name!r}, which is not installed") from error
    except Exception as error:
        at = extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"the module {name!r} cannot be imported: {one_line(error)} ({at.filename}:{at.lineno})"
        ) from error


def need(extra: str, *modules: str) -> None:
    """Raises `UsageError`, with all that is missing, when the extra is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this command needs {', '.join(missing)}: pip install 'onceward[{extra}]'")


def whole(minimum: int, maximum: int = 1_000_000_000) -> Callable[[str], int]:
    """An argument type: a whole number from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not minimum <= value <= maximum:
            raise ArgumentTypeError(f"{value} is not between {minimum} and {maximum}")
        return value

    return parse


def seconds(text: str) -> float:
    """An argument type: a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text} s: use more than 0")
    return value


def one_line(error: BaseException) -> str:
    """The error as one line that a terminal shows as it is."""
    text = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def printable(text: str) -> str:
    """The text without what would steer a terminal: bodies and reasons come from outside."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")


def say_json(value: object) -> None:
    say(json.dumps(value, indent=2, default=str))


def warn(text: str) -> None:
    sys.stderr.write(f"onceward: {text}\n")
