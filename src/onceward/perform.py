"""Performs one delivery: drives `step`, runs the handler, calls the provider.

What follows from an event is `step`'s to decide. Decided here is only which event it was: what an exception means, of a
handler (`Performer._raised`) or of a provider's client (`provider.read_error`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, NamedTuple, assert_never

import psycopg
from psycopg import Connection

from onceward.callables import check_done, check_plain
from onceward.database import is_broken
from onceward.errors import ConflictError, Defer, EffectRefused, LeaseLost, Reject, Signal, UnknownOutcome, UsageError
from onceward.intents import IntentResult, RecordResult, record_json, request_fingerprint
from onceward.message import Message, canonical_json
from onceward.protocol import words as p
from onceward.protocol.delivery import Place, start, step
from onceward.protocol.words import Interruption, RaisedKind, Shape
from onceward.provider import ProviderProfile, read_error
from onceward.runtime import Runtime
from onceward.session import left_open
from onceward.statements import storable
from onceward.transactions import Context, Transactions
from onceward.transport import Delivery, Settlement

ANSWER_CHARS_MAX: Final = 100_000  # of an answer that is not JSON, in the parked row: it is kept nowhere else


class NoHandler(Signal):
    """The message's type has no handler in this process; newer code may have one."""


Call = Callable[[Any, str], Any]


class Effect(NamedTuple):
    """One `once.effect(...)` as it was asked for."""

    name: str
    call: Call
    request: Any
    provider: ProviderProfile
    lookup: Call | None


class Once:
    """One message's effects and its one transaction.

    It lives as long as the handler's call, on the handler's own thread.
    """

    def __init__(self, performer: Performer) -> None:
        self._performer = performer
        self._names: set[str] = set()
        self._thread = threading.get_ident()

    def effect(self, name: str, call: Call, *, request: Any, provider: ProviderProfile, lookup: Call | None = None) -> Any:
        """The effect `name` has happened once. Returns its recorded answer.

        The answer is plain JSON, and the same on every replay.

        `call(request, key)` must send `key` as the provider's idempotency key; it runs with no transaction and no
        connection held. `lookup(request, key)` returns the answer of an effect that happened, or None.
        Effects are told apart by their order, name and request: these must not depend on time or chance.

        Raises `EffectRefused` when the provider said no definitely; `LeaseLost`, `UnknownOutcome`, or the call's own
        exception when the outcome is not known, and `ConflictError` when two answers are (after these `once` refuses
        everything: let them pass). Raises `UsageError` for a request or an answer that is not JSON, a name that was used
        before, effects other than the recorded ones, or an effect in or after the transaction.

        Crash anywhere in it: the intent is pending, and the redelivery asks again with the same key.
        """
        self._check_turn()
        check_effect(name, call, provider, lookup)
        # Here, before the protocol is asked: a request that is not JSON must not leave an effect half begun.
        request_fingerprint(request)
        if name in self._names:
            raise UsageError(f"two effects of one message are called {name!r}: they would share one key, and be one")
        self._names.add(name)
        return json.loads(self._performer.perform_effect(Effect(name, call, request, provider, lookup)))

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """The inbox row becomes done here, in one transaction with these writes, or none of it.

        Raises `LeaseLost` when another worker has taken the message over, or the database did not confirm the commit.

        Crash before COMMIT: nothing is written; the redelivery runs the handler again, its effects answer from their rows.
        Crash after COMMIT: the redelivery is turned away as a duplicate.
        """
        self._check_turn()
        performer = self._performer
        performer.ask(p.FinishAsked())
        try:
            yield performer.hand_out()
            performer.check_nothing_open()
        except BaseException:
            performer.break_transaction()
            raise
        performer.ask(p.BlockEnded())

    @property
    def lease_lost(self) -> bool:
        """True once this message is no longer ours, as far as the heartbeat knows.

        Another worker has taken it over, its queue has taken the delivery away, or no heartbeat came through for as long as
        the lease lasts. Then stop early: nothing that this handler still does can count.
        """
        return self._performer.is_lease_lost()

    def _check_turn(self) -> None:
        """Raises `UsageError` when it is not this caller's turn."""
        if self._performer.handler_has_left:
            raise UsageError("this message's handler has ended: its `once` can do nothing any more")
        # Two threads at once would mix up two effects' answers: the protocol has one place, and one effect asked for.
        if threading.get_ident() != self._thread:
            raise UsageError("`once` belongs to the handler's own thread: ask for effects there, one after the other")


class Performer:
    """Performs one delivery, from the take to its settlement, on the calling thread."""

    def __init__(
        self, runtime: Runtime, shape: Shape, handler: Callable[..., None], message: Message, delivery: Delivery
    ) -> None:
        self.handler_has_left = False
        self._handler = handler
        self._context = Context(runtime, message, delivery)
        self._transactions = Transactions(self._context)
        self._session = self._transactions.session
        self._steps = EffectSteps(self._context, self._is_cancelled)
        self._state = start(shape, runtime.limits)
        self._ended_by_handler = False  # it ended our transaction by itself, and then raised
        self._told_to_end: BaseException | None = None  # Ctrl-C or exit, on the main thread: passed on at the end

    def run(self) -> Settlement:
        """Take, handle, finish; returns what the queue is to be told.

        Raises errors of the schema or of our own; and KeyboardInterrupt or SystemExit from a handler on the main thread:
        the program is told to end, the message has neither finished nor failed, and its redelivery decides.
        """
        try:
            count = self._context.delivery.count
            self._context.emit("consumer.received", count=count)
            command = self._advance(p.Received(count))
            if isinstance(command, p.Run):
                command = self._run_handler()
        finally:
            self._session.close()
        # Only here, where the outcome is written and the connection is returned.
        if self._told_to_end is not None:
            raise self._told_to_end
        if not isinstance(command, p.Settle):
            raise AssertionError(f"the protocol ended with {command!r}")
        return command.settlement

    def _advance(self, event: p.Event) -> p.Turn:
        """Carry out commands until it is the handler's turn, or the end."""
        while True:
            self._state, command = step(self._state, event)
            if isinstance(command, p.Turn):
                return command
            if isinstance(command, p.EffectStep):
                event = self._steps.carry_out(command)
            else:
                event = self._transactions.carry_out(self._state, command)

    def _run_handler(self) -> p.Turn:
        argument = self.hand_out() if self._state.shape == "transactional" else Once(self)
        try:
            check_done(self._handler(self._context.message, argument), "the handler")
            self.check_nothing_open()
        except BaseException as error:  # noqa: BLE001 - it becomes the protocol's event, and is recorded as that
            self.handler_has_left = True
            if self._state.at is Place.FINISHED:
                self._context.failure = error
                self._context.say(logging.ERROR, "its handler raised after it was finished; it stays done", failed=True)
                self._context.emit("consumer.raised_late", error=describe(error))
            return self._advance(self._raised(error))
        self.handler_has_left = True
        return self._advance(_raised_after_end() if self._ended_by_handler else p.Returned())

    def _raised(self, error: BaseException) -> p.Raised:
        """What the handler's exception means: the first of these that holds."""
        self._context.failure = error
        # An effectful handler's transaction was looked at when its block raised, by `break_transaction`.
        if self._state.shape == "transactional" and not self._transactions.handler.is_ours():
            self._ended_by_handler = True
        if self._ended_by_handler:
            # Before anything else: what it wrote may stand with the row as done, so a retry would be turned away.
            return _raised_after_end()
        if self._is_cancelled(error):
            return p.Raised(RaisedKind.CANCELLED, describe(error))
        match error:
            case EffectRefused():
                return p.Raised(RaisedKind.REFUSED, canonical_json(error.answer))
            case Reject():
                return p.Raised(RaisedKind.REJECTED, error.reason)
            case NoHandler():
                return p.Raised(RaisedKind.UNKNOWN_TYPE, str(error))
            case Defer():
                return self._deferred(error)
        if self._lost_its_session():
            return p.Raised(RaisedKind.SESSION_LOST, f"the handler's database session was lost: {describe(error)}")
        return p.Raised(RaisedKind.FAILED, describe(error))

    def _deferred(self, error: Defer) -> p.Raised:
        # While it unwinds, the delivery has another outcome already, and a line about a retry would be wrong.
        if self._state.at is not Place.UNWINDING:
            self._context.say(logging.INFO, "deferred for %g s", error.delay_seconds, next="retry")
        self._transactions.take.excuse(self._state, str(error))
        return p.Raised(RaisedKind.DEFERRED, str(error), error.delay_seconds)

    def _lost_its_session(self) -> bool:
        """The server or the handler ended its session.

        Not so where we closed it, because the handler had left something under way on it.
        """
        session = self._session
        return not session.discarded and (session.lost or (session.conn is not None and is_broken(session.conn)))

    def _is_cancelled(self, error: BaseException) -> bool:
        """The work was taken away from the handler: it was cancelled, or the program is to end."""
        # A handler on a worker's thread that calls sys.exit() has merely failed: nobody told the program to end.
        if isinstance(error, KeyboardInterrupt | SystemExit) and threading.current_thread() is threading.main_thread():
            self._told_to_end = error
            return True
        # By name: to import asyncio for its CancelledError would cost every program more than all of our own imports.
        return any(known.__name__ == "CancelledError" for known in type(error).__mro__)

    def perform_effect(self, effect: Effect) -> str:
        """The recorded answer of this effect, as JSON text."""
        self._steps.effect = effect
        try:
            answer = self.ask(p.EffectAsked()).answer
        finally:
            # What the call raised is this effect's alone: a later failure must not be blamed on it, nor raise it again.
            self._steps.failure = self._context.failure = None
        if answer is None:
            raise AssertionError("the protocol went on without an answer")
        return answer

    def hand_out(self) -> Connection[Any]:
        return self._session.hand_out()

    def break_transaction(self) -> None:
        """The body raised: what it wrote is rolled back."""
        # Asked first: once it is rolled back, nothing tells any more whether the handler had ended it by itself.
        self._ended_by_handler = not self._transactions.handler.is_ours()
        self._session.roll_back()
        self._advance(p.BlockRaised())

    def check_nothing_open(self) -> None:
        """Raises `UsageError` for what the handler left open: COMMIT would wait for it for ever."""
        what = left_open(self._session.conn)
        if what:
            raise UsageError(f"the handler left {what} on its connection: read it to its end, or close it")

    def is_lease_lost(self) -> bool:
        return self._context.runtime.keeper.is_lost(self._context.delivery)

    def ask(self, event: p.Event) -> p.Resume:
        """Let the handler go on, or raise in it what the protocol says."""
        command = self._advance(event)
        if isinstance(command, p.Resume):
            return command
        if isinstance(command, p.Interrupt):
            raise self._exception(command)
        raise AssertionError(f"the protocol answered the handler with {command!r}")

    def _exception(self, command: p.Interrupt) -> BaseException:
        match command.kind:
            case Interruption.REFUSED:
                return EffectRefused(json.loads(command.detail))
            case Interruption.CALL_FAILED if self._steps.failure is not None:
                # The caller's own exception, as if there were nothing between the handler and its client.
                return self._steps.failure
            case Interruption.CALL_FAILED | Interruption.UNKNOWN | Interruption.LATER:
                return UnknownOutcome(command.detail)
            case Interruption.LEASE_LOST:
                return LeaseLost(command.detail)
            case Interruption.TWO_ANSWERS | Interruption.DISCARDED:
                return ConflictError(command.detail)
            case Interruption.USAGE:
                return UsageError(command.detail)
            case _:
                assert_never(command.kind)


def _raised_after_end() -> p.Raised:
    detail = "the handler ended the transaction that was opened for it, and then raised"
    return p.Raised(RaisedKind.FOREIGN_COMMIT, detail)


class EffectSteps:
    """The steps of an effect: intend, call, look up, record.

    No transaction is open in any of them, and no connection is held while the provider is called.
    """

    def __init__(self, context: Context, is_cancelled: Callable[[BaseException], bool]) -> None:
        self.effect: Effect | None = None  # the one that the handler asks for now
        self._keys: tuple[str, ...] = ()  # under each of these it may have happened; the first is the one to send
        self.failure: BaseException | None = None  # what its call, or its look-up, raised
        self._runtime = context.runtime
        self._message = context.message
        self._context = context
        self._is_cancelled = is_cancelled

    def carry_out(self, command: p.EffectStep) -> p.Event:
        effect = self.effect
        if effect is None:
            raise AssertionError("no effect was asked for")
        match command:
            case p.Intend(n, checked):
                return self._intend(n, effect, checked=checked)
            case p.Call(n):
                return self._call(n, effect)
            case p.LookUp(n):
                return self._look_up(n, effect)
            case p.Record():
                return self._record(command, effect)
            case _:
                assert_never(command)

    def _intend(self, n: int, effect: Effect, *, checked: bool) -> p.Event:
        try:
            with self._runtime.database.connection() as conn:
                intent = self._runtime.intents.intend(
                    conn, self._message, take=self._context.take, n=n, name=effect.name,
                    request=effect.request, provider=effect.provider, checked=checked,
                )  # fmt: skip
        except psycopg.Error as error:
            return self._context.database_lost(f"effect {effect.name!r} was not started", error)
        self._keys = intent.keys
        match intent.result:
            case IntentResult.CALL:
                self._context.emit("effect.intended", n=n, name=effect.name)
                return p.Intended()
            case IntentResult.ANSWERED:
                self._context.emit("effect.replayed", n=n, name=effect.name)
                return p.Recorded(intent.answer_json, intent.refused)
            case IntentResult.CHECK:
                return p.Reopened()
            case IntentResult.LOOK_UP:
                return p.Expired()
            case IntentResult.CHANGED:
                return p.Changed(intent.detail)
            case IntentResult.LEASE_LOST:
                self._context.emit("consumer.lease_lost")
                return p.FencedOff()
            case _:
                assert_never(intent.result)

    def _call(self, n: int, effect: Effect) -> p.Event:
        event = self._ask_provider(effect.call, effect, self._keys[0])
        self._context.emit("effect.answered", n=n, name=effect.name, outcome=type(event).__name__)
        return event

    def _look_up(self, n: int, effect: Effect) -> p.Event:
        if effect.lookup is None:
            return p.NotFound()
        event = self._look_up_every_key(effect, effect.lookup)
        if isinstance(event, p.Answered | p.NotFound | p.Unreadable):
            found = not isinstance(event, p.NotFound)
            self._context.emit("effect.looked_up", n=n, name=effect.name, found=found)
        return event

    def _look_up_every_key(self, effect: Effect, lookup: Call) -> p.Event:
        """What is known of the effect, under whichever key it was called."""
        events = (self._ask_provider(lookup, effect, key, is_look_up=True) for key in self._keys)
        latest = next(events)
        # What was refused under a former key did not happen: that is why there is a new one.
        says_more = (
            event for event in chain((latest,), events) if not (isinstance(event, p.NotFound) or _is_refusal(event))
        )
        return next(says_more, latest)

    def _ask_provider(self, call: Call, effect: Effect, key: str, *, is_look_up: bool = False) -> p.Event:
        """What the provider said to the call, or to the look-up, of an effect."""
        try:
            answer = call(effect.request, key)
            check_done(answer, f"effect {effect.name!r}: its {'look-up' if is_look_up else 'call'}")
        except BaseException as error:  # noqa: BLE001 - recorded as the call's outcome, and raised in the handler
            self.failure = self._context.failure = error
            if self._is_cancelled(error):
                return p.Cancelled(describe(error))
            # A look-up only reads: its 409 or 5xx says nothing about the effect. A refusal is what it found.
            if is_look_up and not isinstance(error, EffectRefused):
                return p.Failed(f"look-up: {describe(error)}")
            return _read_error(effect.provider, error)
        if is_look_up and answer is None:
            return p.NotFound()  # a call's None is its answer, a look-up's says that the effect did not happen
        return read_answer(answer, effect.name)

    def _record(self, command: p.Record, effect: Effect) -> p.Event:
        try:
            with self._runtime.database.connection() as conn:
                record = record_json(
                    self._runtime.intents, conn, self._message,
                    n=command.n, answer_json=command.answer, refused=command.refused, key=self._keys[0],
                )  # fmt: skip
        except psycopg.Error as error:
            return self._context.database_lost(f"the answer of effect {effect.name!r} was not recorded", error)
        match record.result:
            case RecordResult.RECORDED:
                self._context.emit("effect.recorded", n=command.n, name=effect.name)
                return p.Recorded(command.answer, command.refused)
            case RecordResult.TWO_ANSWERS:
                return p.TwoAnswers(record.detail)
            case RecordResult.SUPERSEDED:
                self._context.emit("consumer.lease_lost")
                return p.FencedOff()
            case RecordResult.AFTER_DISCARD:
                return p.AnsweredAfterDiscard(record.detail)
            case _:
                assert_never(record.result)


def _is_refusal(event: p.Event) -> bool:
    return isinstance(event, p.Answered) and event.refused


def _read_error(provider: ProviderProfile, error: BaseException) -> p.Event:
    if not isinstance(error, EffectRefused):
        return read_error(provider, error)
    # A refusal whose answer cannot be kept is parked with what was answered, as any other such answer.
    read = read_answer(error.answer, "the refused effect")
    return p.Answered(read.answer, refused=True) if isinstance(read, p.Answered) else read


def describe(error: BaseException) -> str:
    return storable(f"{type(error).__name__}: {error}")


def check_effect(name: str, call: Call, provider: ProviderProfile, lookup: Call | None) -> None:
    """Raises `UsageError` for an effect that could not be carried out, or told from another; nothing is written yet."""
    if not isinstance(name, str) or not name:
        raise UsageError(f"an effect needs a name, stable over every attempt and deploy, not {name!r}")
    if not isinstance(provider, ProviderProfile):
        raise UsageError(f"effect {name!r}: provider must be a ProviderProfile (STRIPE_V1, NO_KEYS, or one of your "
                         f"own), not {provider!r}")  # fmt: skip
    check_plain(call, f"effect {name!r}: its call", 2)
    if lookup is not None:
        check_plain(lookup, f"effect {name!r}: its look-up", 2)


def read_answer(answer: Any, name: str) -> p.Answered | p.Unreadable:
    """The answer as canonical JSON; or, when it cannot be kept so, all that can be said of it."""
    try:
        for method in ("to_dict_recursive", "to_dict"):
            if callable(getattr(answer, method, None)):
                return p.Answered(canonical_json(getattr(answer, method)()))
        return p.Answered(canonical_json(answer))
    except Exception as error:  # noqa: BLE001 - also what a client's own to_dict raises: the effect has happened
        why = "may still be under way" if isinstance(answer, Awaitable) else f"is not JSON ({describe(error)})"
        return p.Unreadable(storable(f"effect {name!r} was answered by what {why}: {_shown(answer)}", ANSWER_CHARS_MAX))


def _shown(answer: Any) -> str:
    """The answer as a person can read it: its own text, and its attributes."""
    try:
        attributes = getattr(answer, "__dict__", None)
        return f"{answer!r} {attributes!r}" if attributes else repr(answer)
    except Exception as error:  # noqa: BLE001 - a repr that raises must not lose that there was an answer
        return f"a {type(answer).__name__} whose repr raises {describe(error)}"
