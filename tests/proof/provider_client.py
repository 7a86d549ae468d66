"""The official SDK against one running provider, and the conditions that its tests wait on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import stripe

from onceward_proof.provider.server import ProviderProcess

WAIT_SECONDS_MAX = 10.0


@dataclass
class Account:
    """One account at a provider: an API key of its own, so that tests can share the process."""

    provider: ProviderProcess
    name: str = field(default_factory=lambda: f"sk_test_{uuid4().hex}")
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        self._http = stripe.RequestsClient(timeout=self.timeout_seconds)
        addresses: Any = {"api": self.provider.url}
        self.client = stripe.StripeClient(
            self.name, base_addresses=addresses, max_network_retries=0, http_client=self._http
        )

    def close(self) -> None:
        """Close the SDK's connection of this thread."""
        self._http.close()  # type: ignore[no-untyped-call]

    def charge(self, key: str | None = None, group: str = "O-1", worker: str | None = None, **more: Any) -> stripe.Charge:
        """Charge 5.00 through the SDK; `more` changes or adds parameters."""
        parameters: Any = {"amount": 500, "currency": "usd", "source": "tok_visa", "transfer_group": group, **more}
        options: Any = {} if key is None else {"idempotency_key": key}
        if worker is not None:
            options["headers"] = {"X-Onceward-Worker": worker}
        return self.client.v1.charges.create(parameters, options)

    def ledger(self) -> list[dict[str, Any]]:
        """Give this account's charges as the provider's evidence has them, oldest first."""
        charges: list[dict[str, Any]] = self.provider.admin("ledger")
        return [charge for charge in charges if charge["account"] == self.name]

    def fault(self, kind: str, **more: Any) -> None:
        """Add a fault on demand for this account alone."""
        match = {"account": self.name, **more.pop("match", {})}
        self.provider.admin("faults", {"fault": kind, "match": match, **more})

    def fired(self) -> list[int]:
        """Tell how often each fault of this account has fired."""
        faults = self.provider.admin("faults")
        return [fault["fired"] for fault in faults if fault["match"].get("account") == self.name]


class Background:
    """A call in a thread of its own, with its result or its error."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except stripe.StripeError as error:
            self.error = error

    @property
    def done(self) -> bool:
        """Tell whether the call has ended."""
        return not self._thread.is_alive()

    def join(self) -> Any:
        """Wait for the end; give the result, or None."""
        self._thread.join(WAIT_SECONDS_MAX)
        assert self.done
        return self.result


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"


def until_held(provider: ProviderProcess, count: int) -> None:
    """Return once so many requests are slow or held at the provider."""
    until(lambda: bool(provider.admin("open")["held"] == count))
