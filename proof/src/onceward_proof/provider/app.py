"""The path of one request: parse, authenticate, ask the hook, idempotency layer, effect, ask the hook, answer.

The rules of the idempotency layer, and where each comes from (docs.stripe.com/api/idempotent_requests):

* the first answer of a key is stored once endpoint execution has begun, success or failure, and replayed;
* stored under no key: 401, 429, 404 of an unknown path, parameters that are wrong in themselves, and 409;
* keys belong to the account: other parameters under the same key are a 400;
* a key is *in flight* until its answer is stored, that is, until the effect is committed: an answer that is late or
  held after that is replayed to the next request with that key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from onceward_proof.provider import admin, answers, endpoints
from onceward_proof.provider.answers import Answer, Invalid
from onceward_proof.provider.call import Call, Exchange, Gone
from onceward_proof.provider.faults import Faults
from onceward_proof.provider.hook import Context, Hook, Hooks, Kind, Verdict
from onceward_proof.provider.ledger import Ledger

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
        self.held: dict[asyncio.Event, Context] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self._closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and count it as open until it is answered or cut."""
        exchange = Exchange(scope, receive, send)
        self.open_requests += 1
        try:
            await self._serve(exchange)
        except Gone:
            await exchange.cut()
        finally:
            self.open_requests -= 1

    def close(self) -> None:
        """End all waiting: whatever is slow or held is cut."""
        self._closing = True
        for release in self.held:
            release.set()

    async def _serve(self, exchange: Exchange) -> None:
        call = Call.make(exchange.scope, await exchange.read())
        refusal = _refusal(call)
        if refusal is not None:
            return await exchange.send(refusal, call)
        context = call.context()
        context.replayed = call.key is not None and self.ledger.find(call.credentials, call.key) is not None
        before = await self.hook.request(context)
        if before.kind is Kind.DROP_REQUEST:
            raise Gone
        answer = await self._answer(call, before, context)
        context.status, context.charge = answer.status, None if answer.original_request else answer.charge
        after = await self.hook.response(context)
        # The effect is committed: what was asked for at the request, and what at the response, may now strike.
        for verdict in (before, after):
            await self._delay(verdict, exchange, context)
        return await exchange.send(_unsaved(after) or answer, call)

    async def _answer(self, call: Call, before: Verdict, context: Context) -> Answer:
        unsaved = _unsaved(before)
        if unsaved is not None:
            return unsaved
        try:
            serve = self._once if call.method == "POST" else self._read
            return await serve(call, before, context)
        except Invalid as error:
            return error.answer

    async def _read(self, call: Call, before: Verdict, context: Context) -> Answer:
        await self._slow(before, context)
        answer = endpoints.read(self.ledger, call.credentials, call.path, call.parameters)
        return answer or answers.unrecognized(call.method, call.path)

    async def _once(self, call: Call, before: Verdict, context: Context) -> Answer:
        """Let the first request of a key through, and give every other what the rules say."""
        if call.key is None:
            await self._slow(before, context)
            return self._execute(call, before)
        flight = (call.credentials, call.key)
        if len(call.key) > KEY_LENGTH_MAX:
            return answers.key_too_long()
        if flight in self._in_flight:
            return answers.key_in_use(call.key)
        # Until the answer is stored. Nothing awaits between the look and this line: no two requests can pass together.
        self._in_flight.add(flight)
        try:
            await self._slow(before, context)
            return self._replay(call, call.key) or self._execute(call, before)
        finally:
            self._in_flight.discard(flight)

    async def _slow(self, before: Verdict, context: Context) -> None:
        if before.kind is Kind.SLOW:
            await self._wait(before, context)

    def _replay(self, call: Call, key: str) -> Answer | None:
        stored = self.ledger.find(call.credentials, key)
        if stored is None:
            return None
        return stored.answer if stored.first == call.fingerprint else answers.other_parameters(key)

    def _execute(self, call: Call, before: Verdict) -> Answer:
        """Check, then commit the effect and the key's answer as one; `Invalid` leaves no trace.

        Crash before the commit: no charge, and the key is free. Crash after it: the charge, and its answer is replayed.
        """
        # Before the transaction: parameters that are wrong in themselves leave the key free.
        endpoints.check(call.parameters)
        origin = call.origin
        with self.ledger.transaction():
            if before.kind is Kind.ERROR_BEFORE:
                answer = answers.server_error()
            else:
                answer = endpoints.execute(self.ledger, call.parameters, origin)
            if before.kind is Kind.ERROR_AFTER:
                answer = Answer(500, answers.server_error().body, answer.charge)
            if call.key is not None:
                self.ledger.store(origin, call.fingerprint, call.request_id, answer)
        return answer

    async def _delay(self, verdict: Verdict, exchange: Exchange, context: Context) -> None:
        """Bring about what a verdict wants between the commit and the answer."""
        if verdict.kind in CUTS:
            raise Gone
        if verdict.kind is Kind.SLOW_RESPONSE:
            await self._wait(verdict, context)
        if verdict.kind is Kind.HOLD:
            async with self._held(context) as release:
                await exchange.wait(release)

    async def _wait(self, verdict: Verdict, context: Context) -> None:
        """Let the verdict's seconds pass.

        A client that leaves does not end it, as it would not end it at Stripe.
        """
        async with self._held(context) as release:
            with suppress(TimeoutError):
                await asyncio.wait_for(release.wait(), verdict.seconds)

    @asynccontextmanager
    async def _held(self, context: Context) -> AsyncIterator[asyncio.Event]:
        """Show the request as held while inside; Gone if the provider closes meanwhile."""
        release = asyncio.Event()
        self.held[release] = context
        try:
            yield release
        finally:
            del self.held[release]
        if self._closing:
            raise Gone


def _refusal(call: Call) -> Answer | None:
    """Refuse what reaches neither the hook nor the idempotency layer: a bad API key, a POST to an unknown path."""
    if not call.credentials.startswith("sk_test_"):
        return answers.unauthorized(call.credentials)
    if call.method == "GET" or (call.method == "POST" and call.path == endpoints.CHARGES):
        return None
    return answers.unrecognized(call.method, call.path)


def _unsaved(verdict: Verdict) -> Answer | None:
    if verdict.kind not in NEVER_STORED:
        return None
    return answers.rate_limited() if verdict.kind is Kind.RATE_LIMIT else answers.server_error(verdict.status)
