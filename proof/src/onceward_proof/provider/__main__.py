"""`python -m onceward_proof.provider JSON`: the provider as the child of a `ProviderProcess`.

By hand it is `onceward provider`.
"""

from __future__ import annotations

import json
import pkgutil
import socket
import sys
from contextlib import closing
from pathlib import Path

from onceward_proof.provider.ledger import Ledger
from onceward_proof.provider.server import serve


def serve_for_parent(
    fd: int, parent: int, database: str, window_seconds: float | None, hook: str | None, hook_argument: str
) -> None:
    """On the listening socket that is `fd`, until the parent ends it or has ended."""
    made = pkgutil.resolve_name(hook)(hook_argument) if hook else None
    with closing(Ledger(Path(database), window_seconds)) as ledger, socket.socket(fileno=fd) as listener:
        serve(listener, ledger, made, parent)


if __name__ == "__main__":
    serve_for_parent(**json.loads(sys.argv[1]))
