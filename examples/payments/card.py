"""The card payment, by the official stripe SDK. Both variants call it; only the idempotency key differs."""

from __future__ import annotations

from typing import Any

import stripe

Order = dict[str, Any]
TIMEOUT_SECONDS = 10.0


class Card:
    """Charges cards at one provider."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client

    @staticmethod
    def request(order: Order) -> dict[str, Any]:
        """The same for every attempt: nothing in it may depend on time, chance or the worker."""
        return {
            "amount": order["amount"],
            "currency": "usd",
            "source": "tok_visa",
            "transfer_group": order["id"],  # lets a look-up find the charge of an order
            "metadata": {"order_id": order["id"]},
        }

    def create(self, request: dict[str, Any], key: str | None) -> dict[str, Any]:
        """Charge the card. Without a key, the SDK makes one up for each call: every call is a new charge."""
        options: Any = {"idempotency_key": key} if key is not None else {}
        charge = self._client.v1.charges.create(params=request, options=options)  # type: ignore[arg-type]
        return {"id": charge.id, "amount": charge.amount}

    def find(self, request: dict[str, Any], _key: str) -> dict[str, Any] | None:
        """The charge of this order, if there is one: asked when the provider's own answer is not to be had."""
        for charge in self._client.v1.charges.list(params={"transfer_group": request["transfer_group"]}).data:
            if charge.paid:
                return {"id": charge.id, "amount": charge.amount}
        return None
