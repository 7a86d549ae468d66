"""`python -m onceward_proof.provider JSON`: the provider as the child of a `ProviderProcess`.

By hand it is `onceward provider`.
"""

from __future__ import annotations

import functools
import json
import pkgutil
import sys
from pathlib import Path

from onceward_proof.provider.server import PortInUse, serve


def serve_for_parent(database: str, port: int, window_seconds: float | None, hook: str | None, hook_argument: str) -> int:
    """One line, the URL, once ready; then nothing more on standard output."""
    make_hook = functools.partial(pkgutil.resolve_name(hook), hook_argument) if hook else None
    ready = functools.partial(print, flush=True)
    try:
        serve(Path(database), port, make_hook, ready, window_seconds=window_seconds, with_parent=True)
    except PortInUse as error:
        print(f"provider: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(serve_for_parent(**json.loads(sys.argv[1])))
