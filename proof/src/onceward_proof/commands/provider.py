"""`onceward provider`: a payment provider to test against."""

from __future__ import annotations

from typing import Any, Final

from onceward.commands.arguments import need, seconds, whole
from onceward_proof.commands.arguments import written_file

PROVIDER: Final = """\
examples:
  onceward provider --port 8420
  onceward provider --window 5    keys are forgotten after 5 s: watch a late
                                  retry charge twice
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "provider",
        help="a payment provider to test against",
        description="A payment provider with Stripe's idempotency rules and faults on demand, until Ctrl-C.",
        epilog=PROVIDER,
    )
    parser.add_argument("--port", type=whole(0, 65535), default=0, metavar="N", help="on loopback (default: a free one)")
    parser.add_argument(
        "--database",
        type=written_file,
        default="provider.sqlite",
        metavar="FILE",
        help="its ledger, SQLite (./provider.sqlite)",
    )
    parser.add_argument("--window", type=seconds, metavar="SECONDS", help="keys are forgotten after that (86400)")
    parser.set_defaults(perform=provider)


def provider(arguments: Any) -> int:
    need("provider", "starlette", "uvicorn")
    from onceward_proof.provider.server import main  # noqa: PLC0415 - only when it runs

    return int(main(arguments.port, arguments.database, arguments.window))
