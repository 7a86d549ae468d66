"""One HTTP request and its connection: read from ASGI, answered once, or cut without a byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import uuid4

from starlette.types import Receive, Scope, Send

from onceward_proof.provider.answers import Answer
from onceward_proof.provider.hook import Context
from onceward_proof.provider.ledger import Fingerprint, Origin

CONNECTION: Final = "connection"  # where server.CuttableProtocol puts itself in the ASGI state
WORKER_HEADER: Final = b"x-onceward-worker"


class Gone(Exception):
    """The client left, or the request is to be cut: there is no one to answer."""


@dataclass(slots=True)
class Call:
    """One parsed request.

    `parameters` are the form's, or the query's on a GET; headers are never part of them.
    """

    method: str
    path: str
    credentials: str
    key: str | None
    worker: str | None
    parameters: Mapping[str, str]
    request_id: str = field(default_factory=lambda: f"req_{uuid4().hex[:14]}")

    @property
    def origin(self) -> Origin:
        """Who asks: a GET's key counts for nothing."""
        return Origin(self.credentials, self.key, self.worker)

    @property
    def fingerprint(self) -> Fingerprint:
        """What is compared when the key is met again: endpoint and parameters, whatever their order."""
        text = json.dumps(sorted(self.parameters.items()))
        return Fingerprint(self.path, hashlib.sha256(text.encode()).hexdigest())

    def context(self) -> Context:
        """Show the request to a hook."""
        group = self.parameters.get("transfer_group")
        return Context(self.method, self.path, self.credentials, self.worker, group, self.key)

    @classmethod
    def make(cls, scope: Scope, body: bytes) -> Call:
        """Parse a request: form-encoded body on a POST, query on a GET, Bearer credentials."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        posted = scope["method"] == "POST"
        form = body if posted else scope["query_string"]
        key = headers.get(b"idempotency-key") if posted else None
        return cls(
            scope["method"],
            scope["path"],
            headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ").strip(),
            key.decode("latin-1") if key else None,
            _text(headers.get(WORKER_HEADER)),
            dict(parse_qsl(form.decode(errors="replace"), keep_blank_values=True)),
        )


class Exchange:
    """The connection of one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send

    async def read(self) -> bytes:
        """Give the whole body; Gone if the client left before its end."""
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return bytes(body)

    async def send(self, answer: Answer, call: Call) -> None:
        """Send the answer, with the headers that Stripe sends.

        To a client that has left, nothing happens.
        """
        body = answer.body.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.encode(), value.encode("latin-1")) for name, value in _headers(answer, call)]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def disconnected(self) -> None:
        """Return once the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
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
        released = asyncio.ensure_future(release.wait())
        client_left = asyncio.ensure_future(self.disconnected())
        try:
            await asyncio.wait({released, client_left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            released.cancel()
            client_left.cancel()
        if not release.is_set():
            raise Gone


def _headers(answer: Answer, call: Call) -> list[tuple[str, str]]:
    headers = [("request-id", call.request_id)]
    if call.key is not None:
        headers.append(("idempotency-key", call.key))
    if answer.original_request is not None:
        headers += [("idempotent-replayed", "true"), ("original-request", answer.original_request)]
    return headers


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
