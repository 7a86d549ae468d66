"""`onceward prove`: the payment service under a schedule of faults, and the counts."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from onceward.commands.arguments import need, seconds, whole
from onceward.errors import UsageError
from onceward_proof.commands.arguments import duration, written_file

QUEUES: Final = ("pgmq", "sqs", "sqs-fifo", "rabbitmq", "kafka")
# Of each queue, the client that its workers use, which is in the extra of that name.
CLIENTS: Final = {"sqs": "boto3", "sqs-fifo": "boto3", "rabbitmq": "pika", "kafka": "confluent_kafka"}
PROVE: Final = """\
examples:
  onceward prove                        1,000 orders, a fresh seed, naive and
                                        hardened: about a minute
  onceward prove --orders 200 --seed 7 --html report.html
  onceward prove --schedule FILE.json   the very same faults again (each run
                                        names its file)
  onceward prove --orders-from orders.csv --json result.json
  onceward prove --resolve              then everything held is ended, by people
                                        at the command line: 0 held
  onceward prove --every-syscall        killed at each system call of one
                                        delivery and one relay pass
  onceward prove --for 30m              orders and faults without end; Ctrl-C
                                        ends it with a report
  onceward prove --queue sqs            on another queue: its server is started, and
                                        killed; sqs-fifo, rabbitmq, kafka
  onceward prove --queue sqs --variants tutorial,hardened
                                        the naive service as the client's own
                                        tutorials write it; struck
                                        from outside only
  onceward prove --variants naive,resend,hardened,textbook,no-key
  onceward prove --threads 8 --prefetch 8
                                        as `onceward run` does by default: one
                                        SIGKILL hits several deliveries
  onceward prove --ablate --orders 300  hardened less one layer at a time:
                                        which layer holds what
  onceward prove --queue-settings       naive and hardened under other leases
                                        of the queue, with its archive, ...
  onceward prove --queue-settings --queue sqs
                                        the same on another queue, with its own
                                        settings made better

exit codes: 0 proven; 1 hardened broke; 2 usage or environment;
3 inconclusive (a planned fault did not fire or had no effect that was seen,
naive did not break, or naive was left out: nothing was proven);
130 interrupted.
--ablate, --queue-settings: 0 every row as expected, else 1.
--every-syscall: 0 held, 1 doubled or lost, 3 incomplete: a call was missed.
--for: 0 held, 1 doubled, lost or grown, 3 nothing was killed.
"""


def add_commands(commands: Any) -> None:
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
        help="of naive,resend,hardened,ack-first,select-then-act,textbook,no-key; tutorial with --queue"
        " (default: naive,hardened)",
    )  # fmt: skip
    parser.add_argument(
        "--ablate", type=_names, nargs="?", const=(), metavar="A,B",
        help="hardened less one layer at a time: all of them, or these",
    )  # fmt: skip
    parser.add_argument(
        "--queue-settings", action="store_true",
        help="naive and hardened under each setting of the queue (default: 100 orders; on pgmq about eight minutes)",
    )  # fmt: skip
    parser.add_argument(
        "--every-syscall", action="store_true",
        help="the thread of one delivery, and of one relay pass, killed at each call by which it writes, sends, receives or"
        " syncs (needs strace)",
    )  # fmt: skip
    parser.add_argument(
        "--for", type=duration, dest="soak_seconds", metavar="TIME", help="soak: orders and faults without end, for 30m"
    )
    parser.add_argument("--rate", type=seconds, metavar="N", help="soak: orders per second (default: 30)")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="of each consumer process (default: 1)")
    parser.add_argument(
        "--prefetch", type=whole(0), metavar="N", help="so many more deliveries wait in each consumer process (default: 0)"
    )
    parser.add_argument(
        "--resolve", action="store_true", help="play the people, too: what is held at the end is settled, and goes on"
    )
    parser.add_argument("--queue", choices=QUEUES, help="the queue between the hops (default: pgmq)")
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="replay this schedule of faults")
    parser.add_argument("--json", type=written_file, metavar="FILE", help="write the result, for programs")
    parser.add_argument("--html", type=written_file, metavar="FILE", help="write the report, for people")
    parser.add_argument("--keep", action="store_true", help="keep the cluster, the ledger and the logs")
    parser.set_defaults(perform=prove)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ArgumentTypeError(f"{text!r} is not a list of names with commas")
    return names


def prove(arguments: Any) -> int:
    for path in (arguments.orders_from, arguments.schedule):
        if path is not None and not path.is_file():
            raise UsageError(f"there is no file {path}")
    if arguments.schedule is not None and arguments.orders is not None:
        raise UsageError("--schedule brings its own orders: leave out --orders")
    if arguments.ablate is not None:
        _check_ablation(arguments)
    _check_modes(arguments)
    need("prove", "psutil", "pgmq", "rich", "starlette", "uvicorn", "stripe", "jinja2", "markdown_it")
    if arguments.queue in CLIENTS:
        need(arguments.queue.partition("-")[0], CLIENTS[arguments.queue], "psutil")
    from onceward_proof.prove.command import run_proof  # noqa: PLC0415 - only when it runs, as all below
    from onceward_proof.prove.options import ProveOptions  # noqa: PLC0415

    if arguments.queue_settings:
        from onceward_proof.queue_settings.command import ORDERS, prove_queue_settings  # noqa: PLC0415

        arguments.orders = arguments.orders or ORDERS
    names = {option.name for option in fields(ProveOptions)}
    options = ProveOptions(
        **{name: value for name, value in vars(arguments).items() if name in names and value is not None}
    )
    if arguments.queue_settings:
        return prove_queue_settings(options)
    if arguments.every_syscall:
        from onceward_proof.sweep.run import prove_syscalls  # noqa: PLC0415

        return prove_syscalls(options)
    if arguments.soak_seconds is not None:
        from onceward_proof.soak.run import prove_soak  # noqa: PLC0415

        return prove_soak(options, arguments.soak_seconds)
    return run_proof(options)


def _check_ablation(arguments: Any) -> None:
    if arguments.variants is not None:
        raise UsageError("--ablate runs hardened, less one layer at a time: leave out --variants")
    # Each row shows what one delivery lacks; some layers are removed in a way that knows only one thread.
    if arguments.threads is not None or arguments.prefetch is not None:
        raise UsageError("--ablate runs one delivery at a time: leave out --threads and --prefetch")
    if arguments.resolve:
        raise UsageError("--ablate compares what each layer holds: leave out --resolve")


def _check_modes(arguments: Any) -> None:
    """Raises `UsageError` for what the chosen mode would silently not do."""
    if arguments.queue_settings:
        refused = {
            "--variants": arguments.variants, "--ablate": arguments.ablate, "--for": arguments.soak_seconds,
            "--every-syscall": arguments.every_syscall or None, "--keep": arguments.keep or None,
            "--threads": arguments.threads, "--prefetch": arguments.prefetch, "--resolve": arguments.resolve or None,
        }  # fmt: skip
        named = [name for name, value in refused.items() if value is not None]
        if named:
            raise UsageError(f"--queue-settings runs naive and hardened: leave out {', '.join(named)}")
    others = {
        "--orders": arguments.orders, "--orders-from": arguments.orders_from, "--variants": arguments.variants,
        "--ablate": arguments.ablate, "--schedule": arguments.schedule, "--keep": arguments.keep or None,
        "--threads": arguments.threads, "--prefetch": arguments.prefetch,
        "--resolve": arguments.resolve or None,
    }  # fmt: skip
    mode = "--every-syscall" if arguments.every_syscall else "--for" if arguments.soak_seconds is not None else ""
    if arguments.every_syscall:
        others |= {"--for": arguments.soak_seconds, "--seed": arguments.seed, "--html": arguments.html}
    if arguments.rate is not None and mode != "--for":
        raise UsageError("--rate is for a soak: prove --for 30m --rate 30")
    on_pgmq = {
        "--ablate": arguments.ablate is not None, "--every-syscall": arguments.every_syscall,
        "--for": arguments.soak_seconds is not None,
    }  # fmt: skip
    named = [name for name, is_asked in on_pgmq.items() if is_asked]
    if arguments.queue not in (None, "pgmq") and named:
        raise UsageError(f"{', '.join(named)} runs on pgmq: leave out --queue {arguments.queue}")
    superfluous = [name for name, value in others.items() if value is not None]
    if mode and superfluous:
        raise UsageError(f"{mode} has its own orders and faults: leave out {', '.join(superfluous)}")
