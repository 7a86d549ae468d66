"""A state machine over inbox, intents and outbox, against a small model: real Postgres, random histories."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tests.support import rows
from tests.support.decisions import decide
from tests.support.deliveries import Provider, delivery, order
from tests.support.queues import ListSink, drain
from tests.support.rows import CONSUMER
from tests.support.shop import AT_ONCE

from onceward.consumer import Consumer, OpenConsumer
from onceward.decisions import DecisionKind, redrive
from onceward.errors import Reject
from onceward.inbox import Inbox
from onceward.message import Message
from onceward.outbox import publish
from onceward.perform import Once
from onceward.provider import STRIPE_V1, idempotency_key

ATTEMPTS_MAX = 3
HOW = ("succeeds", "fails", "rejects", "loses the answer", "fails after the effect")
index = st.integers(min_value=0, max_value=3)


def paid(message: Message) -> Message:
    return Message(type="order.paid", id=message.id, subject=message.subject)


class Model:
    """What must be true of one message."""

    def __init__(self) -> None:
        self.state = "none"  # none | pending | done | parked | discarded
        self.leased = False
        self.attempts = 0
        self.charged = False
        self.effects = 0


class Deliveries(RuleBasedStateMachine):
    """Two shapes, four messages; each rule is one thing that the outside does."""

    dsn: str

    @initialize(shape=st.sampled_from(["transactional", "effectful"]))
    def open(self, shape: str) -> None:
        self.stack = ExitStack()
        self.db: psycopg.Connection[Any] = psycopg.connect(self.dsn, autocommit=True)
        self.stack.callback(self.db.close)
        self.db.execute(
            "TRUNCATE onceward.inbox, onceward.intents, onceward.outbox, onceward.attempts, onceward.parked,"
            " onceward.decisions, effects"
        )
        self.shape = shape
        self.how = "succeeds"
        self.provider = Provider()
        self.messages = [order(subject=f"key-{n % 2}") for n in range(4)]
        self.models = [Model() for _ in self.messages]
        self.sent: list[str] = []  # in the order of commits
        self.sink = ListSink()
        self.opened = self.stack.enter_context(OpenConsumer(self._consumer(), self.dsn, threads=1))

    def _consumer(self) -> Consumer:
        consumer = Consumer(CONSUMER, attempts_max=ATTEMPTS_MAX, deliveries_max=1000, backoff=AT_ONCE)
        if self.shape == "transactional":
            consumer.transactional("order.placed")(self._write)
        else:
            consumer.effectful("order.placed")(self._finish)
        return consumer

    def _write(self, message: Message, tx: psycopg.Connection[Any]) -> None:
        rows.write_effect(tx, message)
        publish(tx, paid(message))
        self._raise("fails", "loses the answer", "fails after the effect")

    def _finish(self, message: Message, once: Once) -> None:
        self._raise("fails")
        if self.how == "loses the answer":
            self.provider.after.append(ConnectionError("cut"))
        once.effect("charge", self.provider.charge, request=message.json(), provider=STRIPE_V1)
        self.provider.after.clear()
        self._raise("fails after the effect")
        with once.transaction() as tx:
            rows.write_effect(tx, message)
            publish(tx, paid(message))

    def _raise(self, *fails: str) -> None:
        if self.how == "rejects":
            raise Reject("no")
        if self.how in fails:
            raise RuntimeError(self.how)

    # ---- what happens ------------------------------------------------------------------------------------------------

    @rule(n=index, how=st.sampled_from(HOW))
    def deliver(self, n: int, how: str) -> None:
        model, message = self.models[n], self.messages[n]
        self.how = how
        expected = self._expect(model, how)
        assert self.opened.deliver(delivery(message)).action == expected
        if model.state == "done" and message.id not in self.sent:
            self.sent.append(message.id)

    def _expect(self, model: Model, how: str) -> str:
        if model.state in ("done", "parked", "discarded"):
            return "ack"
        if model.leased:
            return "release"
        answered = model.charged and how == "loses the answer" and self._answered(model)
        if how == "succeeds" or answered:
            model.state, model.effects = "done", 1
            model.charged = model.charged or self.shape == "effectful"
            return "ack"
        if how == "rejects":
            model.state = "parked"
            return "ack"
        model.charged = model.charged or (self.shape == "effectful" and how != "fails")
        model.attempts += 1
        model.state = "parked" if model.attempts >= ATTEMPTS_MAX else self._after_failure(model)
        return "ack" if model.state == "parked" else "release"

    def _after_failure(self, model: Model) -> str:
        return "pending" if self.shape == "effectful" or model.state == "pending" else "none"

    def _answered(self, model: Model) -> bool:
        """The recorded answer is replayed: nothing is called, so nothing can be cut."""
        message = self.messages[self.models.index(model)]
        return [intent.state for intent in rows.intents(self.db, message)] == ["done"]

    @rule(n=index)
    def crash_after_a_claim(self, n: int) -> None:
        """A worker of the effectful shape takes it, and is never heard of again."""
        model = self.models[n]
        taken = model.state == "none" or (model.state == "pending" and not model.leased)
        taking = Inbox(CONSUMER, worker="crashed").claim(self.db, self.messages[n])
        assert (taking.result.value == "taken") == taken
        if taken:
            model.state, model.leased = "pending", True

    @precondition(lambda self: any(model.leased for model in self.models))
    @rule(n=index)
    def lapse(self, n: int) -> None:
        if self.models[n].leased:
            rows.lapse(self.db, self.messages[n])
            self.models[n].leased = False

    @rule(n=index)
    def deliver_another_payload(self, n: int) -> None:
        before = rows.inbox_row(self.db, self.messages[n])
        if before is not None:
            other = order({"amount": -1}, id=self.messages[n].id)
            assert self.opened.deliver(delivery(other)).action == "ack"

    @rule(n=index)
    def redrive(self, n: int) -> None:
        model, message = self.models[n], self.messages[n]
        fingerprint = message.fingerprint().hex()
        refused = redrive(self.db, message.id, consumer=CONSUMER, fingerprint=fingerprint).why_not
        assert bool(refused) == (model.state != "parked")
        if not refused:
            model.state, model.leased, model.attempts = "pending", False, 0
            gone = self.db.execute("DELETE FROM onceward.outbox WHERE id = %s AND type = 'order.placed'", (message.id,))
            assert gone.rowcount == 1

    @rule(n=index, kind=st.sampled_from([DecisionKind.SETTLE, DecisionKind.DID_NOT_HAPPEN, DecisionKind.DISCARD]))
    def decide(self, n: int, kind: DecisionKind) -> None:
        """By somebody who knows what the provider's books say, and says so."""
        model, message = self.models[n], self.messages[n]
        charged = self._charges(message)
        asked = bool(rows.intents(self.db, message))
        options: dict[str, Any] = {"fingerprint": message.fingerprint().hex()}
        match kind:
            case DecisionKind.SETTLE:
                allowed, options["answer"] = bool(charged), charged[0] if charged else None
                if not charged:
                    return  # a truthful person has no answer
            case DecisionKind.DID_NOT_HAPPEN:
                allowed, options["force"] = asked and not charged, True
                if charged:
                    return
            case _:
                allowed = True
        made = decide(self.db, kind, message, **options)
        assert made.stands == (model.state == "parked" and allowed), made
        if not made.stands:
            return
        if kind is DecisionKind.DISCARD:
            model.state = "discarded"
            return
        model.state, model.leased, model.attempts = "pending", False, 0
        gone = self.db.execute("DELETE FROM onceward.outbox WHERE id = %s AND type = 'order.placed'", (message.id,))
        assert gone.rowcount == 1

    def _charges(self, message: Message) -> list[Any]:
        """What the provider's books have of this message, under whatever key."""
        keys = {idempotency_key(CONSUMER, message.id, "charge", generation=n) for n in range(1, 30)}
        return [answer for key, answer in self.provider.charges.items() if key in keys]

    @rule()
    def relay(self) -> None:
        drain(self.dsn, self.sink, lanes=1)
        assert self.sink.ids == [name for name in self.sent if name in self.sink.ids]
        for key in ("key-0", "key-1"):
            of_key = [message.id for message in self.messages if message.subject == key]
            sent = [message.id for message in self.sink.messages if message.subject == key]
            assert sent == [name for name in self.sent if name in of_key]

    # ---- what must be true -------------------------------------------------------------------------------------------

    @invariant()
    def the_rows_are_the_models(self) -> None:
        if not hasattr(self, "models"):
            return
        for model, message in zip(self.models, self.messages, strict=True):
            assert (rows.state(self.db, message) or "none") == model.state
            assert rows.attempts(self.db, message) == model.attempts
            assert rows.effects(self.db, message) == model.effects == int(model.state == "done")
            assert len(self._charges(message)) == int(model.charged)
        waiting = [row.id for row in rows.outbox(self.db)]
        assert sorted(waiting + self.sink.ids) == sorted(self.sent)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()


@pytest.fixture
def machine(dsn: str) -> type[Deliveries]:
    Deliveries.dsn = dsn
    return Deliveries


def test_any_history_leaves_each_message_once_done_or_parked(machine: type[Deliveries]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=bool(os.environ.get("CI")),
            suppress_health_check=list(HealthCheck),
        ),
    )
