"""One HTTP request and its connection: parsed once, answered once, or cut without a byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl
from uuid import uuid4

from starlette.requests import Request

CONNECTION: Final = "connection"  # where server.CuttableProtocol puts itself in the ASGI state


class Gone(Exception):
    """The client left, or the request is to be cut: there is no one to answer."""


class Fingerprint(NamedTuple):
    """What a key may be used for again: the endpoint and the parameters of its first request."""

    endpoint: str
    parameters: str


@dataclass(slots=True)
class Call:
    """One request, as a hook, the idempotency layer and the ledger see it.

    `parameters` are the form's, or the query's on a GET; headers are never part of them. `status` and `charge` are None
    until the answer is known, at the hook's `response`.
    """

    method: str
    path: str
    account: str
    worker: str | None
    idempotency_key: str | None
    parameters: Mapping[str, str]
    request_id: str = field(default_factory=lambda: f"req_{uuid4().hex[:14]}")
    replayed: bool = False  # the key has its answer already: this request can have no effect
    status: int | None = None
    charge: str | None = None  # the id of the charge that this very request has committed

    @property
    def transfer_group(self) -> str | None:
        """What the service names its order by."""
        return self.parameters.get("transfer_group")

    @property
    def fingerprint(self) -> Fingerprint:
        """What is compared when the key is met again: endpoint and parameters, whatever their order."""
        text = json.dumps(sorted(self.parameters.items()))
        return Fingerprint(self.path, hashlib.sha256(text.encode()).hexdigest())


class Exchange(Request):
    """The connection of one request."""

    async def call(self) -> Call:
        """Parse the request: form-encoded body on a POST, query on a GET, Bearer credentials."""
        posted = self.method == "POST"
        form = await self.body() if posted else self.scope["query_string"]
        return Call(
            self.method,
            self.scope["path"],
            self.headers.get("authorization", "").removeprefix("Bearer ").strip(),
            self.headers.get("x-onceward-worker"),
            # A GET's key counts for nothing.
            (self.headers.get("idempotency-key") or None) if posted else None,
            dict(parse_qsl(form.decode(errors="replace"), keep_blank_values=True)),
        )

    async def disconnected(self) -> None:
        """Return once the client has left."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def cut(self) -> None:
        """Close the connection at once; bytes not sent yet never will be."""
        connection: Any = self.scope.get("state", {}).get(CONNECTION)
        if connection is None:
            raise RuntimeError("connections can only be cut under onceward_proof.provider.server")
        connection.transport.abort()
        await self.disconnected()

    async def wait(self, release: asyncio.Event) -> None:
        """Return once `release` is set; Gone if the client leaves first."""
        waits = [asyncio.ensure_future(each) for each in (release.wait(), self.disconnected())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if not release.is_set():
            raise Gone
