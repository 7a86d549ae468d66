"""/_admin/: the movable clock, the window, faults on demand, the ledger as evidence. JSON, no key; on loopback only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from onceward_proof.provider.call import Call
from onceward_proof.provider.faults import Fault, Faults
from onceward_proof.provider.ledger import Ledger

Handler = Callable[[dict[str, Any]], Any]


class Doors(Protocol):
    """What /_admin/ needs of the gateway."""

    open_requests: int
    held: dict[asyncio.Event, Call]


def routes(ledger: Ledger, faults: Faults, doors: Doors) -> list[Route]:
    """Give the routes under /_admin/."""
    admin = Admin(ledger, faults, doors)
    return [
        _route("/clock", GET=admin.clock, POST=admin.move_clock),
        _route("/config", GET=admin.config, POST=admin.configure),
        _route("/faults", GET=admin.faults, POST=admin.add_fault, DELETE=admin.clear_faults),
        _route("/release", POST=admin.release),
        _route("/open", GET=admin.open),
        _route("/health", GET=admin.health),
        _route("/ledger", GET=admin.ledger),
    ]


class Admin:
    """What each admin path does: a JSON object in, JSON out.

    ValueError and KeyError are the caller's mistake (400).
    """

    def __init__(self, ledger: Ledger, faults: Faults, doors: Doors) -> None:
        self._ledger = ledger
        self._faults = faults
        self._doors = doors

    def clock(self, _document: dict[str, Any]) -> Any:
        """Tell the movable clock's time."""
        return {"now": self._ledger.now(), "offset_seconds": self._ledger.offset_seconds}

    def move_clock(self, document: dict[str, Any]) -> Any:
        """Move the clock by `advance_seconds`, or to `set`."""
        now = self._ledger.now()
        then = float(document["set"]) if "set" in document else now + float(document["advance_seconds"])
        self._ledger.set_offset(self._ledger.offset_seconds + then - now)
        return self.clock(document)

    def config(self, _document: dict[str, Any]) -> Any:
        """Tell the age at which keys are pruned."""
        return {"window_seconds": self._ledger.window_seconds}

    def configure(self, document: dict[str, Any]) -> Any:
        """Set the age at which keys are pruned; fractions of a second are welcome."""
        self._ledger.set_window(float(document["window_seconds"]))
        return self.config(document)

    def faults(self, _document: dict[str, Any]) -> Any:
        """List the faults on demand, with how often each has fired."""
        return [fault.write() for fault in self._faults.all]

    def add_fault(self, document: dict[str, Any]) -> Any:
        """Add a fault on demand."""
        fault = Fault.read(document)
        self._faults.all.append(fault)
        return fault.write()

    def clear_faults(self, document: dict[str, Any]) -> Any:
        """Remove all faults on demand; answers that are held stay held."""
        self._faults.all.clear()
        return self.faults(document)

    def release(self, document: dict[str, Any]) -> Any:
        """Let what is slow or held go on: the requests of `transfer_group`, or all."""
        wanted = document.get("transfer_group")
        let_go = [release for release, call in self._doors.held.items() if wanted in {None, call.transfer_group}]
        for release in let_go:
            release.set()
        return {"released": len(let_go)}

    def open(self, _document: dict[str, Any]) -> Any:
        """Count the requests that are neither answered nor cut, and those among them that are slow or held."""
        return {"open_requests": self._doors.open_requests, "held": len(self._doors.held)}

    def health(self, _document: dict[str, Any]) -> Any:
        """Say that the provider answers."""
        return {"status": "ok"}

    def ledger(self, _document: dict[str, Any]) -> Any:
        """Give every charge that moved money, oldest first; a declined one moved none."""
        return self._ledger.money()


def _route(path: str, **handlers: Handler) -> Route:
    async def answer(request: Request) -> JSONResponse:
        document = await request.json() if await request.body() else {}
        try:
            return JSONResponse(handlers[request.method](document))
        except (ValueError, KeyError, TypeError) as mistake:
            return JSONResponse({"error": f"{type(mistake).__name__}: {mistake}"}, 400)

    return Route(path, answer, methods=sorted(handlers))
