"""`onceward dev`: a Postgres of your own, with our tables and pgmq in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import need, whole

if TYPE_CHECKING:
    from argparse import Namespace

DEV: Final = """\
examples:
  onceward dev                    our tables and pgmq in ./.onceward/pg;
                                  prints the DSN
  onceward dev --port 5433 --folder /tmp/pg

Ctrl-C stops it and keeps the folder. A folder that holds something else is
left alone.
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "dev", help="a Postgres to develop against", description="A Postgres of your own until Ctrl-C.", epilog=DEV
    )
    parser.add_argument("--port", type=whole(1, 65535), metavar="N", help="on loopback (default: a free one, kept)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where its data is kept (default: ./.onceward/pg)")
    parser.set_defaults(perform=dev_command)


def dev_command(arguments: Namespace) -> int:
    need("testing,pgmq", "psutil", "pgmq")
    from onceward.testing.postgres import dev  # noqa: PLC0415

    return dev(port=arguments.port, folder=arguments.folder, prepare=prepare)


def prepare(dsn: str) -> None:
    """Our tables and pgmq are in this database."""
    import psycopg  # noqa: PLC0415

    from onceward.schema import migrate  # noqa: PLC0415
    from onceward.transports import pgmq  # noqa: PLC0415

    with psycopg.connect(dsn, autocommit=True) as conn:
        migrate(conn)
        pgmq.install(conn)
