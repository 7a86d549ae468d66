"""`python -m onceward_proof.provider JSON`: the provider as the child of a `ProviderProcess`.

By hand it is `onceward provider`.
"""

from __future__ import annotations

import functools
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

from onceward_proof.provider.server import serve


def serve_for_parent(database: str, port: int, hook: str | None, hook_argument: str, **options: Any) -> None:
    """One line, the URL, once ready; then nothing more on standard output."""
    made = pkgutil.resolve_name(hook)(hook_argument) if hook else None
    serve(Path(database), port, functools.partial(print, flush=True), hook=made, **options)


if __name__ == "__main__":
    serve_for_parent(**json.loads(sys.argv[1]))
