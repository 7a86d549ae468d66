"""The path of one request: parse, authenticate, ask the hook, idempotency layer, effect, ask the hook, answer.

The rules of the idempotency layer, and where each comes from (docs.stripe.com/api/idempotent_requests):

* the first answer of a key is stored once endpoint execution has begun, success or failure, and replayed;
* stored under no key: 401, 429, 404 of an unknown path, parameters that are wrong in themselves, and 409;
* keys belong to the account: other parameters under the same key are a 400;
* a key is *in flight* until its answer is stored, that is, until the effect is committed: an answer that is late or
  held after that is replayed to the next request with this key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from onceward_proof.provider import admin, answers, endpoints
from onceward_proof.provider.answers import Answer, Invalid
from onceward_proof.provider.call import Call, Exchange, Gone
from onceward_proof.provider.faults import Faults
from onceward_proof.provider.hook import EFFECT_ONLY, Hook, Hooks, Kind, Verdict
from onceward_proof.provider.ledger import Ledger, Stored

KEY_LENGTH_MAX: Final = 255
NEVER_STORED: Final = frozenset({Kind.UNSAVED_ERROR, Kind.RATE_LIMIT})
CUTS: Final = frozenset({Kind.CUT_AFTER, Kind.DROP_REQUEST})


def create_app(ledger: Ledger, hook: Hook | None = None) -> Starlette:
    """Make the provider over an open ledger.

    `hook` sees every request, and decides before the faults on demand.

    Run it under server.py: cutting a connection needs its protocol class.
    """
    faults = Faults()
    gateway = Gateway(ledger, Hooks(faults) if hook is None else Hooks(hook, faults))
    app = Starlette(routes=[Mount("/_admin", routes=admin.routes(ledger, faults, gateway)), Mount("/", app=gateway)])
    app.state.gateway = gateway
    return app


class Gateway:
    """The ASGI application behind every path but /_admin/.

    One event loop: nothing awaits inside a transaction.
    """

    def __init__(self, ledger: Ledger, hook: Hook) -> None:
        self.ledger = ledger
        self.hook = hook
        self.open_requests = 0
        self.held: dict[asyncio.Event, Call] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self._closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and count it as open until it is answered or cut."""
        exchange = Exchange(scope, receive)
        self.open_requests += 1
        try:
            call = await exchange.call()
            answer = _refusal(call) or await self._serve(call, exchange)
            await _response(answer, call)(scope, receive, send)
        except (Gone, ClientDisconnect):
            await exchange.cut()
        finally:
            self.open_requests -= 1

    def close(self) -> None:
        """End all waiting: whatever is slow or held is cut."""
        self._closing = True
        for release in self.held:
            release.set()

    async def _serve(self, call: Call, exchange: Exchange) -> Answer:
        call.replayed = self._stored(call) is not None
        before = await self.hook.request(call)
        if before.kind is Kind.DROP_REQUEST:
            raise Gone
        answer = _unsaved(before) or await self._answer(call, before)
        call.status, call.charge = answer.status, None if answer.original_request else answer.charge
        after = await self.hook.response(call)
        # The effect is committed: what was asked for at the request, and what at the response, may now strike.
        for verdict in (before, after):
            await self._delay(verdict, exchange, call)
        return _unsaved(after) or answer

    def _stored(self, call: Call) -> Stored | None:
        return None if call.idempotency_key is None else self.ledger.find(call.account, call.idempotency_key)

    async def _answer(self, call: Call, before: Verdict) -> Answer:
        try:
            return await (self._once(call, before) if call.method == "POST" else self._read(call, before))
        except Invalid as error:
            return error.answer

    async def _read(self, call: Call, before: Verdict) -> Answer:
        await self._slow(before, call)
        return endpoints.read(self.ledger, call) or answers.unrecognized(call.method, call.path)

    async def _once(self, call: Call, before: Verdict) -> Answer:
        """Let the first request of a key through, and give every other what the rules say."""
        key = call.idempotency_key
        if key is None:
            await self._slow(before, call)
            return self._execute(call, before)
        flight = (call.account, key)
        if len(key) > KEY_LENGTH_MAX:
            return answers.key_too_long()
        if flight in self._in_flight:
            return answers.key_in_use(key)
        # Until the answer is stored. Nothing awaits between the look and this line: no two requests can pass together.
        self._in_flight.add(flight)
        try:
            await self._slow(before, call)
            stored = self._stored(call)
            if stored is None:
                return self._execute(call, before)
            return stored.answer if stored.first == call.fingerprint else answers.other_parameters(key)
        finally:
            self._in_flight.discard(flight)

    async def _slow(self, before: Verdict, call: Call) -> None:
        if before.kind is Kind.SLOW:
            await self._wait(before, call)

    def _execute(self, call: Call, before: Verdict) -> Answer:
        """Check, then commit the effect and the key's answer as one; `Invalid` leaves no trace.

        Crash before the commit: no charge, and the key is free. Crash after it: the charge, and its answer is replayed.
        """
        # Before the transaction: parameters that are wrong in themselves leave the key free.
        endpoints.check(call.parameters)
        with self.ledger.transaction():
            charged = None if before.kind is Kind.ERROR_BEFORE else endpoints.execute(self.ledger, call)
            answer = charged or answers.server_error()
            if before.kind is Kind.ERROR_AFTER:
                answer = replace(answers.server_error(), charge=answer.charge)
            if before.kind in EFFECT_ONLY:
                self.ledger.add_fault(before.kind.value, call)
            if call.idempotency_key is not None:
                self.ledger.store(call, answer)
        return answer

    async def _delay(self, verdict: Verdict, exchange: Exchange, call: Call) -> None:
        """Bring about what a verdict wants between the commit and the answer."""
        if verdict.kind in CUTS:
            self.ledger.add_fault(verdict.kind.value, call)
            raise Gone
        if verdict.kind is Kind.SLOW_RESPONSE:
            await self._wait(verdict, call)
            self.ledger.add_fault(verdict.kind.value, call)
        if verdict.kind is Kind.HOLD:
            async with self._held(call) as release:
                await exchange.wait(release)

    async def _wait(self, verdict: Verdict, call: Call) -> None:
        """Let the verdict's seconds pass; a client that leaves does not end it, as it would not end it at Stripe."""
        async with self._held(call) as release:
            with suppress(TimeoutError):
                await asyncio.wait_for(release.wait(), verdict.seconds)

    @asynccontextmanager
    async def _held(self, call: Call) -> AsyncIterator[asyncio.Event]:
        """Show the request as held while inside; Gone if the provider closes meanwhile."""
        release = asyncio.Event()
        self.held[release] = call
        try:
            yield release
        finally:
            del self.held[release]
        if self._closing:
            raise Gone


def _refusal(call: Call) -> Answer | None:
    """Refuse what reaches neither the hook nor the idempotency layer: a bad API key, a POST to an unknown path."""
    if not call.account.startswith("sk_test_"):
        return answers.unauthorized(call.account)
    if call.method == "GET" or (call.method == "POST" and call.path == endpoints.CHARGES):
        return None
    return answers.unrecognized(call.method, call.path)


def _unsaved(verdict: Verdict) -> Answer | None:
    if verdict.kind not in NEVER_STORED:
        return None
    return answers.rate_limited() if verdict.kind is Kind.RATE_LIMIT else answers.server_error(verdict.status)


def _response(answer: Answer, call: Call) -> Response:
    """The answer with the headers that Stripe sends."""
    headers = {"request-id": call.request_id}
    if call.idempotency_key is not None:
        headers["idempotency-key"] = call.idempotency_key
    if answer.original_request is not None:
        headers |= {"idempotent-replayed": "true", "original-request": answer.original_request}
    return Response(answer.body, answer.status, headers, "application/json")
