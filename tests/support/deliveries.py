"""Messages of a chosen age, their deliveries, and a provider to charge."""

from __future__ import annotations

import threading
from itertools import count
from typing import Any

from psycopg import Connection

from onceward.message import Message, uuid7, uuid7_at
from onceward.transport import Delivery

_deliveries = count(1)


def order(data: object = None, **attributes: Any) -> Message:
    """An `order.placed` with an id of now."""
    return Message(type="order.placed", data={"amount": 100} if data is None else data, **attributes)


def untimed(message_id: str = "evt_1", **attributes: Any) -> Message:
    """An `order.placed` under an id that is not a UUIDv7."""
    return order(id=message_id, **attributes)


def order_aged(conn: Connection[Any], seconds: float, **attributes: Any) -> Message:
    """An `order.placed` whose id was made `seconds` ago, by the database's clock (negative: in the future)."""
    row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    made = uuid7_at(round((row[0] - seconds) * 1000), uuid7().int)
    return order(id=made, **attributes)


def delivery(message: Message, *, times: int = 1, id: str | None = None) -> Delivery:  # noqa: A002 - the contract's name
    """One arrival of the message; `times` is the queue's own count."""
    headers, body = message.to_wire()
    return Delivery(id=id or f"d{next(_deliveries)}", source="test", headers=headers, body=body, count=times)


class ProviderError(Exception):
    """What an HTTP client raises."""

    def __init__(self, status: int, *, replayed: bool = False, kind: str = "api_error") -> None:
        super().__init__(f"status {status}")
        self.http_status = status
        self.headers = {"Idempotent-Replayed": "true"} if replayed else {}
        self.json_body = {"error": {"type": kind}}


class Provider:
    """Charges once per key, as Stripe does, and remembers every request. `script`: what the next calls meet instead."""

    def __init__(self) -> None:
        self.charges: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.lookups: list[str] = []
        self.before: list[BaseException] = []  # raised by the next calls, before they charge
        self.after: list[BaseException] = []  # raised by the next calls, after they have charged
        self._lock = threading.Lock()

    def charge(self, request: Any, key: str) -> Any:
        with self._lock:
            self.requests.append(key)
            if self.before:
                raise self.before.pop(0)
            answer = self.charges.setdefault(key, {"id": f"ch_{len(self.charges) + 1}", "request": request})
            if self.after:
                raise self.after.pop(0)
            return answer

    def find(self, _request: Any, key: str) -> Any:
        self.lookups.append(key)
        return self.charges.get(key)

    @property
    def calls(self) -> int:
        return len(self.requests)
