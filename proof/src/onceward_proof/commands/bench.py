"""`onceward bench`: measures, side by side in one run."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

from onceward.commands.arguments import seconds
from onceward_proof.bundled import find_bundled
from onceward_proof.commands.arguments import written_file

BENCH: Final = """\
examples:
  onceward bench local
  onceward bench local --seconds 10 --json bench.json
  onceward bench broker --queue kafka      against the bare at-least-once consumer of its own client

The server is one that you name (ONCEWARD_SQS_ENDPOINT, ONCEWARD_RABBITMQ_URL, ONCEWARD_KAFKA_BOOTSTRAP), as
`onceward servers up` prints them.
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure", description="Measure Onceward on this machine.", epilog=BENCH)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    local = kinds.add_parser(
        "local",
        help="ours beside the raw psycopg loop",
        description="A transactional handler beside the raw psycopg loop of the same statements, in one run.",
        epilog=BENCH,
    )
    local.add_argument("--seconds", type=seconds, default=5.0, metavar="SECONDS", help="how long each side runs (5)")
    local.add_argument("--json", type=written_file, metavar="FILE", help="write the result, for programs")
    local.set_defaults(perform=bench_local)
    broker = kinds.add_parser(
        "broker",
        help="ours beside the bare consumer of a broker's own client",
        description="A hardened consumer beside the bare at-least-once one: rates in turn, and latency at a fixed rate.",
        epilog=BENCH,
    )
    broker.add_argument("--queue", choices=["pgmq", "sqs", "rabbitmq", "kafka"], required=True, help="which broker")
    broker.add_argument("--json", type=written_file, metavar="FILE", help="write the result, for programs")
    broker.set_defaults(perform=bench_broker)


def bench_local(arguments: Any) -> int:
    sys.path.insert(0, str(find_bundled("bench")))
    return int(import_module("local").main(arguments.json, arguments.seconds))


def bench_broker(arguments: Any) -> int:
    sys.path.insert(0, str(find_bundled("bench")))
    return int(import_module("broker").main(arguments.queue, arguments.json))
