"""Performs one delivery: drives `step`, runs the handler, calls the provider. Every decision is `step`'s."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn, assert_never

import psycopg
from psycopg import Connection

from onceward.callables import check_done, check_plain, is_awaitable
from onceward.database import is_broken
from onceward.errors import ConflictError, Defer, EffectRefused, LeaseLost, Reject, Signal, UnknownOutcome, UsageError
from onceward.intents import IntentResult, RecordResult, request_fingerprint
from onceward.message import Message, canonical_json
from onceward.protocol import words as p
from onceward.protocol.delivery import Shape, start, step
from onceward.provider import ProviderProfile, read_error
from onceward.runtime import Runtime
from onceward.session import left_open
from onceward.statements import storable
from onceward.transactions import Transactions
from onceward.transport import Delivery, Settlement

ANSWER_CHARS_MAX: Final = 100_000


class NoHandler(Signal):
    """The message's type has no handler in this process: another version of the code may have one."""


Call = Callable[[Any, str], Any]


class Effect(NamedTuple):
    """One `once.effect(...)` as it was asked for."""

    name: str
    call: Call
    request: Any
    provider: ProviderProfile
    lookup: Call | None


class Once:
    """One message's effects and its one transaction. Lives as long as the handler's call, on the handler's thread."""

    def __init__(self, performer: Performer) -> None:
        self._performer = performer

    def effect(self, name: str, call: Call, *, request: Any, provider: ProviderProfile, lookup: Call | None = None) -> Any:
        """The effect `name` has happened once, and its recorded answer is returned: plain JSON, the same on every replay.

        `call(request, key)` must send `key` as the provider's idempotency key; it runs with no transaction and no
        connection held. `lookup(request, key)` returns the answer of an effect that happened, or None.
        Effects are told apart by their order, name and request: these must not depend on time or chance.

        Raises `EffectRefused` when the provider said no definitely; `LeaseLost`, `UnknownOutcome`, or the call's own
        exception when the outcome is not known (after these `once` refuses everything: let them pass); `UsageError` for an
        answer that is not JSON, or an effect in or after the transaction.

        Crash anywhere in it: the intent is pending, and the redelivery asks again with the same key.
        """
        return self._performer.effect(Effect(name, call, request, provider, lookup))

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """The inbox row becomes done here, in one transaction with these writes, or none of it.

        Raises `LeaseLost` when another worker has taken the message over.

        Crash before COMMIT: nothing is written; the redelivery runs the handler again, its effects answer from their rows.
        Crash after COMMIT: the redelivery is turned away as a duplicate.
        """
        with self._performer.transaction() as conn:
            yield conn

    @property
    def lease_lost(self) -> bool:
        """True once a heartbeat has seen that another worker owns this message: stop early, nothing you do can count."""
        return self._performer.lease_lost


class Performer:
    """Performs one delivery, from the take to its settlement, on the calling thread."""

    def __init__(
        self, runtime: Runtime, shape: Shape, handler: Callable[..., None], message: Message, delivery: Delivery
    ) -> None:
        self.runtime = runtime
        self.message = message
        self.delivery = delivery
        self._handler = handler
        self._rows = Transactions(runtime, message, delivery)
        self._state = start(shape, runtime.limits)
        self._asked: Effect | None = None
        self._fingerprint = b""  # of the request of the effect that is asked for
        self._key = ""  # the idempotency key of that effect, once it is intended
        self._names: set[str] = set()
        self._failure: BaseException | None = None
        self._ended = False  # the handler ended our transaction by itself, and then raised
        self._thread = threading.get_ident()
        self._over = False  # the handler has left
        self._told_to_end: BaseException | None = None  # Ctrl-C or exit, on the main thread: passed on at the end

    # ---- driving the protocol ----------------------------------------------------------------------------------------

    def run(self) -> Settlement:
        """Take, handle, finish; returns what the queue is to be told.

        Raises errors of the schema or of our own; and KeyboardInterrupt or SystemExit from a handler on the main thread:
        the program is told to end, the message has neither finished nor failed, and its redelivery decides.
        """
        try:
            self._rows.emit("consumer.received", count=self.delivery.count)
            command = self._advance(p.Received(self.delivery.count))
            if isinstance(command, p.Run):
                command = self._run_handler()
        finally:
            self._rows.close()
        if self._told_to_end is not None:
            raise self._told_to_end
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
        given = self._rows.hand_out() if self._state.shape == "transactional" else Once(self)
        try:
            check_done(self._handler(self.message, given), "the handler")
            self._check_nothing_open()
        except BaseException as error:  # noqa: BLE001 - it becomes the protocol's event, and is recorded as that
            self._over = True
            if self._state.at == "finished":
                self._rows.failure = error
                self._rows.say(logging.ERROR, "finished, but its handler raised afterwards", failed=True)
                self._rows.emit("consumer.raised_late", error=describe(error))
            return self._advance(self._raised(error))
        self._over = True
        return self._advance(self._raised_after_end() if self._ended else p.Returned())

    def _check_nothing_open(self) -> None:
        """Raises `UsageError` when the handler left something on its connection that COMMIT would wait for, for ever."""
        what = left_open(self._rows.conn)
        if what:
            raise UsageError(f"the handler left {what} on its connection: read it to its end, or close it")

    def _raised(self, error: BaseException) -> p.Raised:
        self._rows.failure = error
        if self._state.shape == "transactional" and not self._rows.is_ours():
            self._ended = True
        if self._ended:
            return self._raised_after_end()
        if self._is_cancelled(error):
            return p.Raised("cancelled", describe(error))
        match error:
            case EffectRefused():
                return p.Raised("refused", canonical_json(error.answer))
            case Reject():
                return p.Raised("rejected", error.reason)
            case NoHandler():
                return p.Raised("unknown type", str(error))
            case Defer():
                if self._state.at != "unwinding":
                    self._rows.say(logging.INFO, "deferred for %g s", error.delay_seconds, next="retry")
                self._rows.excuse(self._state, str(error))
                return p.Raised("deferred", str(error), error.delay_seconds)
        if self._lost_its_session():
            return p.Raised("session lost", f"the handler's database session was lost: {describe(error)}")
        return p.Raised("failed", describe(error))

    def _lost_its_session(self) -> bool:
        """The server, or the handler itself, ended it; not we, because something was left under way on it."""
        rows = self._rows
        return not rows.discarded and (rows.session_lost or (rows.conn is not None and is_broken(rows.conn)))

    def _is_cancelled(self, error: BaseException) -> bool:
        """The work was taken away from the handler: by a cancellation, or because the program is told to end.

        CancelledError by name: to import asyncio would cost every program more than all of ours. A handler on a worker's
        thread that calls sys.exit() has merely failed: nobody told the program to end.
        """
        if isinstance(error, KeyboardInterrupt | SystemExit) and threading.current_thread() is threading.main_thread():
            self._told_to_end = error
            return True
        return any(known.__name__ == "CancelledError" for known in type(error).__mro__)

    def _raised_after_end(self) -> p.Raised:
        """What it wrote may stand, with the row as done: a retry would be turned away, and the rest never be done."""
        return p.Raised("foreign commit", "the handler ended the transaction that was opened for it, and then raised")

    # ---- what `Once` asks for ----------------------------------------------------------------------------------------

    def effect(self, effect: Effect) -> Any:
        self._check_turn()
        self._fingerprint = check_effect(effect)
        if effect.name in self._names:
            raise UsageError(f"two effects of one message are called {effect.name!r}: they would share one key, and be one")
        self._names.add(effect.name)
        self._asked = effect
        command = self._advance(p.EffectAsked())
        if not isinstance(command, p.Resume) or command.answer is None:
            self._interrupt(command)
        return json.loads(command.answer)

    def _check_turn(self) -> None:
        """Raises `UsageError` when it is not this caller's turn: two threads at once would mix up two effects' answers."""
        if self._over:
            raise UsageError("this message's handler has ended: its `once` can do nothing any more")
        if threading.get_ident() != self._thread:
            raise UsageError("`once` belongs to the handler's own thread: ask for effects there, one after the other")

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        self._check_turn()
        command = self._advance(p.FinishAsked())
        if not isinstance(command, p.Resume) or self._rows.conn is None:
            self._interrupt(command)
        try:
            yield self._rows.hand_out()
            self._check_nothing_open()
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
            raise EffectRefused(json.loads(command.detail))
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
            case p.Finish():
                return rows.finish()
            case p.Commit():
                return rows.commit()
            case p.Fail():
                return rows.fail(state, command)
            case p.Park():
                return rows.park(state, command)
            case p.GiveBack():
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
                intent = self.runtime.intents.intend(
                    conn, self.message, token=self._rows.taking.token, n=n, name=effect.name,
                    fingerprint=self._fingerprint, provider=effect.provider,
                )  # fmt: skip
        except psycopg.Error as error:
            return self._rows.database_lost("effect not started", error)
        self._key = intent.key
        match intent.result:
            case IntentResult.CALL:
                self._rows.emit("effect.intended", n=n, name=effect.name)
                return p.Intended()
            case IntentResult.ANSWERED:
                self._rows.emit("effect.replayed", n=n, name=effect.name)
                return p.Recorded(intent.answer_json, intent.refused)
            case IntentResult.LOOK_UP:
                return p.Expired()
            case IntentResult.CHANGED:
                return p.Changed(intent.detail)
            case IntentResult.LEASE_LOST:
                self._rows.emit("consumer.lease_lost")
                return p.FencedOff()
        assert_never(intent.result)

    def _call(self, n: int) -> p.Event:
        effect = self._effect()
        event = self._ask_provider(effect.call, effect, "its call")
        self._rows.emit("effect.answered", n=n, name=effect.name, outcome=type(event).__name__)
        return event

    def _look_up(self, n: int) -> p.Event:
        effect = self._effect()
        if effect.lookup is None:
            return p.NotFound()
        event = self._ask_provider(effect.lookup, effect, "its look-up")
        if isinstance(event, p.Answered | p.NotFound | p.Unreadable):
            self._rows.emit("effect.looked_up", n=n, name=effect.name, found=not isinstance(event, p.NotFound))
        return event

    def _ask_provider(self, call: Callable[[Any, str], Any], effect: Effect, what: str) -> p.Event:
        """What the provider said to the call or the look-up of an effect; a look-up's None: it did not happen."""
        looking = call is not effect.call
        try:
            answer = call(effect.request, self._key)
            check_done(answer, f"effect {effect.name!r}: {what}")
        except BaseException as error:  # noqa: BLE001 - recorded as the call's outcome, and raised in the handler
            self._failure = self._rows.failure = error
            if self._is_cancelled(error):
                return p.Cancelled(describe(error))
            if looking and not isinstance(error, EffectRefused):
                return p.Failed(f"look-up: {describe(error)}")
            return self._read_error(effect.provider, error)
        if looking and answer is None:
            return p.NotFound()
        return read_answer(answer, effect.name)

    @staticmethod
    def _read_error(provider: ProviderProfile, error: BaseException) -> p.Event:
        """A refusal whose answer cannot be kept is parked with what was answered, as any other such answer."""
        if not isinstance(error, EffectRefused):
            return read_error(provider, error)
        read = read_answer(error.answer, "the refused effect")
        return p.Answered(read.answer, refused=True) if isinstance(read, p.Answered) else read

    def _record(self, command: p.Record) -> p.Event:
        try:
            with self.runtime.database.connection() as conn:
                record = self.runtime.intents.record(
                    conn, self.message, n=command.n, answer_json=command.answer, refused=command.refused
                )
        except psycopg.Error as error:
            return self._rows.database_lost("answer not recorded", error)
        self._rows.emit("effect.recorded", n=command.n, name=self._effect().name)
        match record.result:
            case RecordResult.RECORDED:
                return p.Recorded(command.answer, command.refused)
            case RecordResult.TWO_ANSWERS:
                return p.TwoAnswers(record.detail)
        assert_never(record.result)

    def _effect(self) -> Effect:
        if self._asked is None:
            raise AssertionError("no effect was asked for")
        return self._asked


def describe(error: BaseException) -> str:
    return storable(f"{type(error).__name__}: {error}")


def check_effect(effect: Effect) -> bytes:
    """The fingerprint of its request.

    Raises `UsageError` for an effect that could not be carried out, compared or kept: before anything is written.
    """
    if not isinstance(effect.name, str) or not effect.name:
        raise UsageError(f"an effect needs a name, stable over every attempt and deploy, not {effect.name!r}")
    if not isinstance(effect.provider, ProviderProfile):
        raise UsageError(f"effect {effect.name!r}: provider must be a ProviderProfile (STRIPE_V1, NO_KEYS, or one of your "
                         f"own), not {effect.provider!r}")  # fmt: skip
    check_plain(effect.call, f"effect {effect.name!r}: its call", 2)
    if effect.lookup is not None:
        check_plain(effect.lookup, f"effect {effect.name!r}: its look-up", 2)
    return request_fingerprint(effect.request)


def read_answer(answer: Any, name: str) -> p.Answered | p.Unreadable:
    """The answer as canonical JSON; or, when it cannot be kept so, all that can be said of it."""
    try:
        for method in ("to_dict_recursive", "to_dict"):
            if callable(getattr(answer, method, None)):
                return p.Answered(canonical_json(getattr(answer, method)()))
        return p.Answered(canonical_json(answer))
    except Exception as error:  # noqa: BLE001 - also what a client's own to_dict raises: the effect has happened
        why = "may still be under way" if is_awaitable(answer) else f"is not JSON ({describe(error)})"
        return p.Unreadable(storable(f"effect {name!r} was answered by what {why}: {_shown(answer)}", ANSWER_CHARS_MAX))


def _shown(answer: Any) -> str:
    """The answer for a person: its own text, and its attributes, for it is kept nowhere else."""
    try:
        attributes = getattr(answer, "__dict__", None)
        return f"{answer!r} {attributes!r}" if attributes else repr(answer)
    except Exception as error:  # noqa: BLE001 - a repr that raises must not lose that there was an answer
        return f"a {type(answer).__name__}, whose repr raises {describe(error)}"


_ERRORS: Final[dict[str, Callable[[str], BaseException]]] = {
    "lease lost": LeaseLost,
    "unknown": UnknownOutcome,
    "usage": UsageError,
    "two answers": ConflictError,
    "call failed": UnknownOutcome,
    "later": UnknownOutcome,
}
