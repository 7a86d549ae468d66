"""`python -m onceward_proof.provider`: the provider by hand, or as the child of `ProviderProcess`."""

from __future__ import annotations

import argparse
import functools
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

from onceward_proof.provider.hook import Hook
from onceward_proof.provider.server import HookFactory, PortInUse, main, serve


def read_arguments() -> argparse.Namespace:
    """Read the command line; the three options of `ProviderProcess` are not shown."""
    parser = argparse.ArgumentParser(prog="onceward_proof.provider", description="A payment provider to test against.")
    parser.add_argument("--port", type=int, default=0, help="on loopback; 0 takes a free one")
    parser.add_argument("--database", type=Path, default=Path("provider.sqlite"), help="the ledger (SQLite)")
    parser.add_argument("--window", type=float, help="seconds after which a key is forgotten (default 86400)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hook", help=argparse.SUPPRESS)
    parser.add_argument("--hook-argument", help=argparse.SUPPRESS)
    return parser.parse_args()


def factory(name: str | None, argument: str | None) -> HookFactory | None:
    """Find the hook factory that is named, bound to its argument if there is one."""
    if name is None:
        return None
    found: Callable[..., Hook] = pkgutil.resolve_name(name)
    return found if argument is None else functools.partial(found, argument)


def child(arguments: argparse.Namespace) -> int:
    """Serve for the parent: one line, the URL, once ready; then nothing more on standard output."""
    hook_factory = factory(arguments.hook, arguments.hook_argument)
    ready = functools.partial(print, flush=True)
    try:
        serve(arguments.database, arguments.port, hook_factory, ready, window_seconds=arguments.window, with_parent=True)
    except PortInUse as error:
        print(f"provider: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    arguments = read_arguments()
    sys.exit(child(arguments) if arguments.child else main(arguments.port, arguments.database, arguments.window))
