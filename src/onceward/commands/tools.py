"""`onceward prove`, `dev`, `provider` and `bench`: the proof and what is needed to play."""

from __future__ import annotations

import importlib.util
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from onceward.commands.environment import duration, need, seconds, whole, written_file
from onceward.errors import UsageError
from onceward.proof.alongside import alongside

PROVE: Final = """\
examples:
  onceward prove                        1,000 orders, a fresh seed, naive and
                                        hardened: about a minute
  onceward prove --orders 200 --seed 7 --html report.html
  onceward prove --schedule FILE.json   the very same faults again (each run
                                        names its file)
  onceward prove --orders-from orders.csv --json result.json
  onceward prove --every-syscall        killed at each system call of one
                                        delivery and one relay pass
  onceward prove --for 30m              orders and faults without end; Ctrl-C
                                        ends it with a report
  onceward prove --variants naive,hardened,textbook,no-key
  onceward prove --ablate --orders 300  hardened less one layer at a time:
                                        which layer holds what

exit codes: 0 proven; 1 hardened broke; 2 usage or environment;
3 inconclusive (a planned fault did not fire, naive did not break, or naive
was left out: nothing was proven); 130 interrupted.
--ablate: 0 every row as expected, else 1.
--every-syscall: 0 held, 1 doubled or lost, 3 not every call was reached.
--for: 0 held, 1 doubled, lost or grown, 3 nothing was killed.
"""
DEV: Final = """\
examples:
  onceward dev                    our tables and pgmq in ./.onceward/pg;
                                  prints the DSN
  onceward dev --port 5433 --folder /tmp/pg

Ctrl-C stops it and keeps the folder. A folder that holds something else is
left alone.
"""
PROVIDER: Final = """\
examples:
  onceward provider --port 8420
  onceward provider --window 5    keys are forgotten after 5 s: watch a late
                                  retry charge twice
"""
BENCH: Final = """\
examples:
  onceward bench local
  onceward bench local --seconds 10 --json bench.json
"""


def add_commands(commands: Any) -> None:
    _add_prove(commands)
    _add_dev(commands)
    _add_provider(commands)
    _add_bench(commands)


def _add_prove(commands: Any) -> None:
    parser = commands.add_parser(
        "prove",
        help="break a payment service under a schedule of faults, and count",
        description="Run the payment service, naive and hardened, under one schedule of faults, and count the difference.",
        epilog=PROVE,
    )
    orders = parser.add_mutually_exclusive_group()
    orders.add_argument("--orders", type=whole(1), metavar="N", help="how many orders (default: 1000)")
    orders.add_argument("--orders-from", type=Path, metavar="FILE.csv", help="your own orders")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), metavar="N", help="makes the schedule (default: a fresh one)")
    parser.add_argument(
        "--variants", type=_names, metavar="A,B",
        help="of naive,hardened,ack-first,select-then-act,textbook,no-key (default: naive,hardened)",
    )  # fmt: skip
    parser.add_argument(
        "--ablate", type=_names, nargs="?", const=(), metavar="A,B",
        help="hardened less one layer at a time: all of them, or these",
    )  # fmt: skip
    parser.add_argument(
        "--every-syscall", action="store_true",
        help="one delivery and one relay pass, killed at each of its system calls (needs strace)",
    )  # fmt: skip
    parser.add_argument(
        "--for", type=duration, dest="soak_seconds", metavar="TIME", help="soak: orders and faults without end, for 30m"
    )
    parser.add_argument("--rate", type=seconds, metavar="N", help="soak: orders per second (default: 30)")
    parser.add_argument("--queue", choices=("pgmq",), default="pgmq", help="the queue between the hops (default: pgmq)")
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="replay this schedule of faults")
    parser.add_argument("--json", type=written_file, metavar="FILE", help="write the result, for programs")
    parser.add_argument("--html", type=written_file, metavar="FILE", help="write the report, for people")
    parser.add_argument("--keep", action="store_true", help="keep the cluster, the ledger and the logs")
    parser.set_defaults(perform=prove)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ArgumentTypeError(f"{text!r} is no list of names with commas")
    return names


def prove(given: Any) -> int:
    for path in (given.orders_from, given.schedule):
        if path is not None and not path.is_file():
            raise UsageError(f"there is no file {path}")
    if given.schedule is not None and given.orders is not None:
        raise UsageError("--schedule brings its own orders: leave out --orders")

    if given.ablate is not None and given.variants is not None:
        raise UsageError("--ablate runs hardened, less one layer at a time: leave out --variants")

    _check_modes(given)
    need("prove", "psutil", "pgmq", "rich", "starlette", "uvicorn", "stripe", "matplotlib", "jinja2", "markdown_it")
    from onceward.proof.command import prove as perform  # noqa: PLC0415
    from onceward.proof.options import ProveOptions  # noqa: PLC0415

    options = ProveOptions(
        orders=given.orders or 1000, seed=given.seed, variants=given.variants or ("naive", "hardened"), queue=given.queue,
        orders_from=given.orders_from, schedule=given.schedule, json=given.json, html=given.html, keep=given.keep,
        ablate=given.ablate, rate=given.rate or 30.0,
    )  # fmt: skip
    if given.every_syscall:
        from onceward.proof.sweep.run import prove_syscalls  # noqa: PLC0415

        return prove_syscalls(options)
    if given.soak_seconds is not None:
        from onceward.proof.soak.run import prove_soak  # noqa: PLC0415

        return prove_soak(options, given.soak_seconds)
    return int(perform(options))


def _check_modes(given: Any) -> None:
    """Raises `UsageError` for what the chosen mode would silently not do."""
    others = {
        "--orders": given.orders, "--orders-from": given.orders_from, "--variants": given.variants,
        "--ablate": given.ablate, "--schedule": given.schedule, "--keep": given.keep or None,
    }  # fmt: skip
    mode = "--every-syscall" if given.every_syscall else "--for" if given.soak_seconds is not None else ""
    if given.every_syscall:
        others |= {"--for": given.soak_seconds, "--seed": given.seed, "--html": given.html}
    if given.rate is not None and mode != "--for":
        raise UsageError("--rate is for a soak: prove --for 30m --rate 30")
    refused = [name for name, value in others.items() if value is not None]
    if mode and refused:
        raise UsageError(f"{mode} has its own orders and faults: leave out {', '.join(refused)}")


def _add_dev(commands: Any) -> None:
    parser = commands.add_parser(
        "dev", help="a Postgres to develop against", description="A Postgres of your own until Ctrl-C.", epilog=DEV
    )
    parser.add_argument("--port", type=whole(1, 65535), metavar="N", help="on loopback (default: a free one, kept)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where its data is kept (default: ./.onceward/pg)")
    parser.set_defaults(perform=dev)


def dev(given: Any) -> int:
    need("embedded,pgmq", "psutil", "pgmq")
    from onceward.embedded import dev as keep  # noqa: PLC0415

    return keep(port=given.port, folder=given.folder, prepare=prepare)


def prepare(dsn: str) -> None:
    """Our tables and pgmq are in this database."""
    import psycopg  # noqa: PLC0415

    from onceward.schema import migrate  # noqa: PLC0415
    from onceward.transports import pgmq  # noqa: PLC0415

    with psycopg.connect(dsn, autocommit=True) as conn:
        migrate(conn)
        pgmq.install(conn)


def _add_provider(commands: Any) -> None:
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


def provider(given: Any) -> int:
    need("provider", "starlette", "uvicorn")
    from onceward.proof.provider import main  # noqa: PLC0415

    return int(main(given.port, given.database, given.window))


def _add_bench(commands: Any) -> None:
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


def bench_local(given: Any) -> int:
    return int(_load(alongside("bench") / "local.py").main(given.json, given.seconds))


def _load(file: Path) -> ModuleType:
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(f"onceward_bench_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
