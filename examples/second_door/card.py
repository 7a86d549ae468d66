"""A payment provider in a few lines, with the one thing that counts: it knows a key again, and charges once for it."""

from __future__ import annotations

from typing import Any


class CardDeclined(Exception):
    """The provider said no, definitely."""


class CardProvider:
    """Charges once per idempotency key. `requests`: how often it was asked."""

    def __init__(self) -> None:
        self.charges: dict[str, dict[str, Any]] = {}
        self.requests = 0

    def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        """The charge under this key, made if there was none. Raises `CardDeclined`."""
        self.requests += 1
        if request["amount"] > 10_000:
            raise CardDeclined("insufficient funds")
        return self.charges.setdefault(key, {"id": f"ch_{len(self.charges) + 1}", "amount": request["amount"]})

    def find(self, key: str) -> dict[str, Any] | None:
        """The charge that was made under this key, if there is one."""
        return self.charges.get(key)
