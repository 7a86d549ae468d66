"""Whether a broker's programs are here."""

from __future__ import annotations

from onceward.errors import UsageError
from onceward.testing.servers import Server


def need_installed(kind: type[Server], name: str) -> None:
    """Raises `UsageError` when a start would first have to fetch the server's programs."""
    if not kind.is_installed():
        raise UsageError(f"{kind.title} is not installed: `onceward servers install {name}` fetches it")
