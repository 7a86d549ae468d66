"""Performs one delivery: drives `step`, runs the handler, calls the provider. Every decision is `step`'s."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import psycopg
from psycopg import Connection

from onceward import protocol as p
from onceward.database import is_lost
from onceward.delivery import start, step
from onceward.errors import ConflictError, Defer, LeaseLost, Refused, Reject, UnknownOutcome, UsageError
from onceward.inbox import storable
from onceward.intent import request_fingerprint
from onceward.message import Message, canonical_json
from onceward.once import Effect, Once
from onceward.provider import read_error
from onceward.rows import Rows, Runtime
from onceward.state import Shape
from onceward.transport import Delivery, Settlement

logger = logging.getLogger("onceward")


class Performer:
    """Performs one delivery, from the take to its settlement, on the calling thread."""

    def __init__(
        self, runtime: Runtime, shape: Shape, handler: Callable[..., None], message: Message, delivery: Delivery
    ) -> None:
        self.runtime = runtime
        self.message = message
        self.delivery = delivery
        self._handler = handler
        self._rows = Rows(runtime, message, delivery)
        self._state = start(shape, runtime.limits)
        self._asked: Effect | None = None
        self._names: set[str] = set()
        self._failure: BaseException | None = None
        self._ended = False  # the handler ended our transaction by itself, and then raised

    # ---- driving the protocol ----------------------------------------------------------------------------------------

    def run(self) -> Settlement:
        """Take, handle, finish; returns what the queue is to be told. Raises only errors of the schema or of our own."""
        try:
            self._rows.emit("consumer.received", count=self.delivery.count)
            command = self._advance(p.Received(self.delivery.count))
            if isinstance(command, p.Run):
                command = self._run_handler()
        finally:
            self._rows.close()
        if not isinstance(command, p.Settle):
            raise AssertionError(f"the protocol ended with {command!r}")
        return command.settlement

    def _advance(self, event: p.Event) -> p.Command:
        """Perform commands until it is the handler's turn, or the end."""
        while True:
            self._state, command = step(self._state, event)
            outcome = self._carry_out(command)
            if outcome is None:
                return command
            event = outcome

    def _run_handler(self) -> p.Command:
        given = self._rows.conn if self._state.shape == "transactional" else Once(self)
        try:
            self._handler(self.message, given)
        except BaseException as error:
            if self._state.at == "finished":
                logger.exception("message %s is finished, but its handler raised afterwards", self.message.id)
                self._rows.emit("consumer.raised_late", error=describe(error))
            elif self._state.at != "unwinding":
                logger.warning("message %s: its handler raised %s", self.message.id, describe(error))
            return self._advance(self._raised(error))
        return self._advance(self._raised_after_end() if self._ended else p.Returned())

    def _raised(self, error: BaseException) -> p.Raised:
        if self._state.shape == "transactional" and not self._rows.is_ours():
            self._ended = True
        if self._ended:
            return self._raised_after_end()
        if _is_cancelled(error):
            return p.Raised("cancelled", describe(error))
        match error:
            case Refused():
                return p.Raised("refused", canonical_json(error.answer))
            case Reject():
                return p.Raised("rejected", error.reason)
            case Defer():
                return p.Raised("deferred", str(error), error.delay_seconds)
        if self._rows.connection_lost or (self._rows.conn is not None and is_lost(self._rows.conn)):
            return p.Raised("connection lost", describe(error), 1.0)
        return p.Raised("failed", describe(error))

    def _raised_after_end(self) -> p.Raised:
        """What it wrote may stand, with the row as done: a retry would be turned away, and the rest never be done."""
        return p.Raised("foreign commit", "the handler ended the transaction that was opened for it, and then raised")

    # ---- what `Once` asks for ----------------------------------------------------------------------------------------

    def effect(self, effect: Effect) -> Any:
        request_fingerprint(effect.request)  # a request that cannot be compared is refused before anything is written
        if effect.name in self._names:
            raise UsageError(f"two effects of one message are called {effect.name!r}: they would share one key, and be one")
        self._names.add(effect.name)
        self._asked = effect
        command = self._advance(p.EffectAsked())
        if not isinstance(command, p.Resume) or command.answer is None:
            self._interrupt(command)
        return json.loads(command.answer)

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        command = self._advance(p.FinishAsked())
        if not isinstance(command, p.Resume) or self._rows.conn is None:
            self._interrupt(command)
        try:
            yield self._rows.conn
        except BaseException:
            self._ended = not self._rows.is_ours()
            self._rows.roll_back()
            self._advance(p.BlockRaised())
            raise
        command = self._advance(p.BlockEnded())
        if not isinstance(command, p.Resume):
            self._interrupt(command)

    def _interrupt(self, command: p.Command) -> NoReturn:
        """Raise in the handler what the protocol says; a failed call raises the caller's own exception."""
        if not isinstance(command, p.Interrupt):
            raise AssertionError(f"the protocol answered the handler with {command!r}")
        if command.error == "call failed" and self._failure is not None:
            raise self._failure
        if command.error == "refused":
            raise Refused(json.loads(command.detail))
        raise _ERRORS.get(command.error, UnknownOutcome)(command.detail)

    @property
    def lease_lost(self) -> bool:
        return self.runtime.keeper.is_lost(self.delivery)

    # ---- carrying out commands ---------------------------------------------------------------------------------------

    def _carry_out(self, command: p.Command) -> p.Event | None:
        """What happened; None: it is the handler's turn, or the end."""
        rows, state = self._rows, self._state
        match command:
            case p.Take():
                return rows.take(state)
            case p.Begin():
                return rows.begin()
            case p.Commit():
                return rows.commit()
            case p.Fail():
                return rows.fail(state, command)
            case p.Park():
                return rows.park(state, command)
            case p.Yield():
                return rows.give_back()
        return self._carry_out_effect(command)

    def _carry_out_effect(self, command: p.Command) -> p.Event | None:
        match command:
            case p.Intend(n):
                return self._intend(n)
            case p.Call(n):
                return self._call(n)
            case p.LookUp(n):
                return self._look_up(n)
            case p.Record():
                return self._record(command)
        return None

    # ---- effects -----------------------------------------------------------------------------------------------------

    def _intend(self, n: int) -> p.Event:
        effect = self._effect()
        try:
            with self.runtime.database.connection() as conn:
                event = self.runtime.intents.intend(
                    conn, self.message, self._rows.taking, n=n, name=effect.name, request=effect.request,
                    provider=effect.provider,
                )  # fmt: skip
        except psycopg.Error as error:
            return self._rows.database_lost("effect not started", error)
        if isinstance(event, p.Intended):
            self._rows.emit("effect.intended", n=n, name=effect.name)
        elif isinstance(event, p.Recorded):
            self._rows.emit("effect.replayed", n=n, name=effect.name)
        elif isinstance(event, p.Lost):
            self._rows.emit("consumer.lease_lost")
        return event

    def _call(self, n: int) -> p.Event:
        effect = self._effect()
        try:
            answer = effect.call(effect.request, self.runtime.intents.key(self.message, effect.name))
        except BaseException as error:  # noqa: BLE001 - recorded as the call's outcome, and raised in the handler
            self._failure = error
            event: p.Event = read_error(effect.provider, error)
        else:
            event = _plain(answer)
        self._rows.emit("effect.answered", n=n, name=effect.name, outcome=type(event).__name__)
        return event

    def _look_up(self, n: int) -> p.Event:
        effect = self._effect()
        if effect.lookup is None:
            return p.NotFound()
        try:
            answer = effect.lookup(effect.request, self.runtime.intents.key(self.message, effect.name))
        except BaseException as error:  # noqa: BLE001 - recorded as the look-up's outcome, and raised in the handler
            self._failure = error
            return p.Failed(f"look-up: {describe(error)}")
        self._rows.emit("effect.looked_up", n=n, name=effect.name, found=answer is not None)
        return p.NotFound() if answer is None else _plain(answer)

    def _record(self, command: p.Record) -> p.Event:
        try:
            with self.runtime.database.connection() as conn:
                event = self.runtime.intents.record(
                    conn, self.message, n=command.n, answer=command.answer, refused=command.refused
                )
        except psycopg.Error as error:
            return self._rows.database_lost("answer not recorded", error)
        self._rows.emit("effect.recorded", n=command.n, name=self._effect().name)
        return event

    def _effect(self) -> Effect:
        if self._asked is None:
            raise AssertionError("no effect was asked for")
        return self._asked


def _is_cancelled(error: BaseException) -> bool:
    """The work was taken away from the handler, as on a shutdown: asyncio's or concurrent.futures' CancelledError.

    By name: to import asyncio would cost every program more than all of ours.
    """
    return any(known.__name__ == "CancelledError" for known in type(error).__mro__)


def describe(error: BaseException) -> str:
    return storable(f"{type(error).__name__}: {error}")


def _plain(answer: Any) -> p.Answered:
    """The answer as canonical JSON; an answer that is none is null, and said so."""
    for name in ("to_dict_recursive", "to_dict"):
        if callable(getattr(answer, name, None)):
            answer = getattr(answer, name)()
    try:
        return p.Answered(canonical_json(answer))
    except (TypeError, ValueError, RecursionError):
        return p.Answered("null", plain=False)


_ERRORS: Final[dict[str, Callable[[str], BaseException]]] = {
    "lease lost": LeaseLost,
    "unknown": UnknownOutcome,
    "usage": UsageError,
    "two answers": ConflictError,
    "call failed": UnknownOutcome,
    "later": UnknownOutcome,
}
