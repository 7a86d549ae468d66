"""What no producer should send, and what every consumer will get."""

from __future__ import annotations

import concurrent.futures
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.queues import ListSink, consuming, drain
from tests.support.shop import SHAPES, effectful, of_shape, transactional
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.consumer_loop import run
from onceward.decisions import redrive
from onceward.errors import UsageError
from onceward.message import Message, uuid7
from onceward.outbox import publish
from onceward.perform import Once
from onceward.provider import STRIPE_V1
from onceward.transport import ACK
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)
BODIES = {
    "1 MB": b"x" * 1024 * 1024,
    "NUL": b"a\x00b",
    "escaped NUL": b'{"a":"\\u0000"}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "not UTF-8": bytes(range(256)),
    "empty": b"",
    "no JSON": b"{not json",
}
NASTY = "\x00 \ud800 \u2603 " + "x" * 100_000


@both_shapes
@pytest.mark.parametrize("kind", BODIES)
def test_any_bytes_are_a_body_and_can_be_handled_parked_and_sent_on(
    shape: str, kind: str, opened: Opened, db: Db, dsn: str
) -> None:
    message = Message(type="order.placed", body=BODIES[kind])
    assert opened(of_shape(shape)).deliver(delivery(message)) == ACK
    other = Message(type="order.placed", body=BODIES[kind] + b"!", id=message.id)
    opened(of_shape(shape)).deliver(delivery(other))
    assert rows.parked(db)[0].body == other.body
    with db.transaction():
        publish(db, message)
    sink = ListSink()
    drain(dsn, sink)
    assert sink.messages == [message]


@both_shapes
def test_a_body_that_is_not_json_fails_where_it_is_read_and_is_parked_in_the_end(
    shape: str, opened: Opened, db: Db
) -> None:
    def read(message: Message) -> None:
        message.json()

    message = Message(type="order.placed", body=b"{not json")
    consumer = opened(of_shape(shape, read, attempts_max=2))
    assert [consumer.deliver(delivery(message)).action for _ in range(2)] == ["release", "ack"]
    assert rows.parked(db)[0].reason == "attempts ran out"


@both_shapes
def test_an_error_text_that_postgres_cannot_hold_is_kept_as_far_as_it_can(
    shape: str, opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is logged of it travels to the test runner, which can carry a lone surrogate as little as Postgres can.
    monkeypatch.setattr(logging.getLogger("onceward"), "disabled", True)

    def fail(_: Message) -> None:
        raise RuntimeError(NASTY)

    message = order()
    consumer = opened(of_shape(shape, fail, attempts_max=2))
    assert [consumer.deliver(delivery(message)).action for _ in range(2)] == ["release", "ack"]
    [entry] = rows.parked(db)
    assert entry.detail.startswith("RuntimeError: \\x00 \\ud800 \u2603 x")


@pytest.mark.parametrize(
    "answer", [NASTY[:50], {"\x00": "\ud800"}, 10**400, [1.5, None, True, {}], "", 0, None, False], ids=repr
)
def test_every_json_value_is_an_answer_and_the_same_on_replay(answer: object, opened: Opened, db: Db) -> None:
    answers: list[object] = []

    def handle(_: Message, once: Once) -> None:
        answers.append(once.effect("ask", lambda _request, _key: answer, request=1, provider=STRIPE_V1))
        if len(answers) == 1:
            raise RuntimeError("again")

    message = order()
    consumer = opened(effectful(handle))
    consumer.deliver(delivery(message))
    assert consumer.deliver(delivery(message)) == ACK
    assert answers == [json.loads(json.dumps(answer))] * 2


class Unspeakable:
    """A client's object that cannot even be shown."""

    def to_dict(self, kind: str) -> object:
        raise LookupError(kind)

    def __repr__(self) -> str:
        raise LookupError("no")


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (float("nan"), "nan"),
        ({1}, "{1}"),
        (b"bytes", "b'bytes'"),
        (SimpleNamespace(id="ch_7"), "ch_7"),
        (Unspeakable(), "Unspeakable"),
        (concurrent.futures.Future(), "Future"),
    ],
    ids=["NaN", "set", "bytes", "object", "unspeakable", "future"],
)
def test_an_answer_that_is_not_json_is_parked_at_once_with_what_was_answered(
    answer: object, shown: str, opened: Opened, db: Db
) -> None:
    """It is kept nowhere else; a null in its place would be believed by the retry."""

    def handle(_: Message, once: Once) -> None:
        with pytest.raises(UsageError, match="was answered by what"):
            once.effect("ask", lambda _request, _key: answer, request=1, provider=STRIPE_V1)

    message = order()
    assert opened(effectful(handle)).deliver(delivery(message)) == ACK
    [entry] = rows.parked(db)
    assert (entry.reason, rows.intents(db, message)[0].state) == ("answer is not JSON", "unknown")
    assert shown in entry.detail


def test_once_the_call_is_mended_a_redrive_looks_the_answer_up(opened: Opened, db: Db) -> None:
    answers: list[object] = [object(), {"id": "ch_1"}]
    calls: list[str] = []

    def call(_request: object, key: str) -> object:
        calls.append(key)
        return answers[0]

    def handle(message: Message, once: Once) -> None:
        answer = once.effect("ask", call, request=1, provider=STRIPE_V1, lookup=lambda _request, _key: answers[1])
        with once.transaction() as tx:
            rows.write_effect(tx, message, answer["id"])

    message = order()
    consumer = opened(effectful(handle))
    assert consumer.deliver(delivery(message)) == ACK
    assert redrive(db, message.id, consumer=rows.CONSUMER).why_not == ""
    assert consumer.deliver(delivery(message)) == ACK
    assert (len(calls), rows.state(db, message), rows.effects(db, message)) == (1, "done", 1)


# ---- envelopes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "without id and type"),
        ({"type": "order.placed"}, "without id"),
        ({"id": str(uuid7())}, "without type"),
        ({"id": "", "type": "order.placed"}, "without id"),
        ({"id": "x" * 1025, "type": "order.placed"}, "longer than"),
        ({"id": str(uuid7()), "type": "order.placed", "time": "yesterday"}, "RFC 3339"),
        ({"id": str(uuid7()), "type": "order\nplaced"}, "cannot carry"),
        ({"id": str(uuid7()), "type": "x", "subject": ""}, "subject"),
    ],
)
def test_an_envelope_that_is_not_a_message_is_parked_under_its_delivery(
    headers: dict[str, str], reason: str, opened: Opened, db: Db
) -> None:
    bad = replace(delivery(order()), headers=headers, id="d-7")
    consumer = opened(transactional())
    for _ in range(2):
        assert consumer.deliver(bad) == ACK
    [entry] = rows.parked(db)
    assert (entry.message_id, entry.reason, entry.body, entry.headers) == ("test#d-7", "malformed", bad.body, headers)
    assert reason in entry.detail
    assert rows.scalar(db, "SELECT count(*) FROM onceward.inbox") == 0


def test_headers_that_postgres_cannot_hold_are_parked_as_far_as_they_can(opened: Opened, db: Db) -> None:
    bad = replace(delivery(order()), headers={"x": "\x00", "y\ud800": "z"}, id="d\x00")
    assert opened(transactional()).deliver(bad) == ACK
    assert rows.parked(db)[0].reason == "malformed"


@both_shapes
@pytest.mark.parametrize("message_id", ["invoice-7", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "\u2603"])
def test_an_id_without_a_time_is_parked_and_not_processed(shape: str, message_id: str, opened: Opened, db: Db) -> None:
    assert opened(of_shape(shape)).deliver(delivery(order(id=message_id))) == ACK
    [entry] = rows.parked(db)
    assert (entry.message_id, entry.reason) == (message_id, "outside window")
    assert "not a UUIDv7" in entry.detail
    assert rows.effects(db, order(id=message_id)) == 0


def test_an_unknown_type_is_parked(opened: Opened, db: Db) -> None:
    message = Message(type="order.lost")
    assert opened(transactional()).deliver(delivery(message)) == ACK
    [entry] = rows.parked(db)
    assert entry.reason == "unknown type"
    assert "order.placed" in entry.detail


def test_an_unknown_type_is_ignored_where_the_consumer_says_so(opened: Opened, db: Db) -> None:
    assert opened(transactional(other_types="ignore")).deliver(delivery(Message(type="order.lost"))) == ACK
    assert rows.parked(db) == []


def test_one_foreign_message_after_another_does_not_stop_the_loop(dsn: str, db: Db, background: Background) -> None:
    """What other producers put into the queue is parked, and the order behind it is handled."""
    pgmq.create_queue(db, "orders")
    texts = ["1e5000", "[" * 3000 + "]" * 3000, "{}", "null", '{"data_base64": "?"}']
    for text in texts:
        db.execute("SELECT pgmq.send('orders', %s::jsonb, %s::jsonb)", (text, "{}"))
    sink, message = pgmq.Sink("orders", dsn), order()
    sink.publish([message])
    sink.close()
    source = pgmq.Source
    with consuming(
        background, run, consumer=transactional(), source=lambda: source("orders", dsn), database=dsn, threads=2
    ):
        until(lambda: rows.scalar(db, "SELECT count(*) FROM pgmq.q_orders") == 0)
    assert rows.effects(db, message) == 1
    assert [entry.reason for entry in rows.parked(db)] == ["malformed"] * len(texts)
