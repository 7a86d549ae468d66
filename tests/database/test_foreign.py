"""Messages without an envelope, of producers that are not ours: taken where the consumer says how, else parked whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.queues import ListSink, consuming, drain
from tests.support.shop import SHAPES, of_shape
from tests.support.waiting import Background, until

from onceward.consumer import OpenConsumer
from onceward.consumer_loop import run
from onceward.decisions import redrive
from onceward.errors import Reject
from onceward.foreign import Foreign, Header
from onceward.message import Message, uuid7
from onceward.transport import ACK, Delivery
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def event_id(_headers: Mapping[str, str], body: bytes) -> str:
    return str(json.loads(body)["event_id"])


WEBHOOK = Foreign(id=event_id, type="order.placed", subject=Header("X-Account"))


def webhook(message_id: str = "evt_1", delivery_id: str = "d-1") -> Delivery:
    body = json.dumps({"event_id": message_id, "amount": 100}).encode()
    return Delivery(id=delivery_id, source="test", headers={"x-account": "a-1"}, body=body)


def taken_as(message_id: str) -> Message:
    return order(id=message_id)


@both_shapes
def test_a_foreign_message_is_handled_once_however_often_its_producer_sends_it(shape: str, opened: Opened, db: Db) -> None:
    seen: list[Message] = []
    consumer = opened(of_shape(shape, seen.append, foreign=WEBHOOK, untimed_ids=True))
    assert [consumer.deliver(webhook(delivery_id=f"d-{n}")) for n in range(3)] == [ACK] * 3
    assert [(message.id, message.subject, message.json()["amount"]) for message in seen] == [("evt_1", "a-1", 100)]
    assert rows.books(db, taken_as("evt_1")) == rows.Books("done", 1, 0, [], 1)


@both_shapes
def test_a_foreign_uuid7_needs_no_further_option(shape: str, opened: Opened, db: Db) -> None:
    message_id = str(uuid7())
    consumer = opened(of_shape(shape, foreign=WEBHOOK))
    assert [consumer.deliver(webhook(spelling)) for spelling in (message_id, message_id)] == [ACK] * 2
    assert rows.books(db, taken_as(message_id)) == rows.Books("done", 1, 0, [], 1)


@both_shapes
def test_a_foreign_id_without_a_time_is_parked_with_the_option_that_takes_it(shape: str, opened: Opened, db: Db) -> None:
    assert opened(of_shape(shape, foreign=WEBHOOK)).deliver(webhook()) == ACK
    [entry] = rows.parked(db)
    assert (entry.message_id, entry.reason, entry.body) == ("evt_1", "outside window", webhook().body)
    assert "untimed_ids=True" in entry.detail


@both_shapes
def test_a_message_with_an_envelope_is_taken_beside_foreign_ones(shape: str, opened: Opened, db: Db) -> None:
    message = order({"event_id": "evt_1"})
    consumer = opened(of_shape(shape, foreign=WEBHOOK, untimed_ids=True))
    assert [consumer.deliver(each) for each in (delivery(message), webhook())] == [ACK] * 2
    assert [rows.effects(db, each) for each in (message, taken_as("evt_1"))] == [1, 1]


def test_without_foreign_it_is_parked_whole_with_what_to_write(opened: Opened, db: Db) -> None:
    assert opened(of_shape("transactional", untimed_ids=True)).deliver(webhook()) == ACK
    [entry] = rows.parked(db)
    assert (entry.message_id, entry.reason, entry.headers) == ("test#d-1", "malformed", {"x-account": "a-1"})
    assert "foreign=Foreign(" in entry.detail


@pytest.mark.parametrize("body", [b"not json", b"{}", b"\xff\x00", b""], ids=["text", "no id", "binary", "empty"])
def test_a_function_that_raises_parks_its_message_and_the_next_one_is_handled(body: bytes, opened: Opened, db: Db) -> None:
    consumer = opened(of_shape("transactional", foreign=WEBHOOK, untimed_ids=True))
    assert [consumer.deliver(each) for each in (replace(webhook(), body=body), webhook())] == [ACK] * 2
    [entry] = rows.parked(db)
    assert (entry.reason, entry.body) == ("malformed", body)
    assert "the function for its id raised" in entry.detail
    assert rows.effects(db, taken_as("evt_1")) == 1


@pytest.mark.parametrize("value", ["\x00", "\ud800", "caf\\xe9", "x" * 1025, "a\nb", ""])
def test_a_header_that_can_be_no_id_is_parked_as_it_came(
    value: str, opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is logged of it travels to the test runner, which can carry a lone surrogate as little as Postgres can.
    monkeypatch.setattr(logging.getLogger("onceward"), "disabled", True)
    consumer = opened(of_shape("transactional", foreign=Foreign(id=Header("X-Id"), type="order.placed")))
    arrived = Delivery(id="d-1", source="test", headers={"X-Id": value, "y\x00": "\udcff"}, body=b"{}")
    assert [consumer.deliver(arrived) for _ in range(2)] == [ACK] * 2
    [entry] = rows.parked(db)
    # The escaped one is a text like any other: only a time is missing.
    assert entry.reason == ("outside window" if value == "caf\\xe9" else "malformed")
    assert rows.scalar(db, "SELECT count(*) FROM onceward.inbox") == 0


@both_shapes
def test_a_redriven_foreign_message_comes_back_with_an_envelope_and_goes_on(
    shape: str, opened: Opened, db: Db, dsn: str
) -> None:
    refuse = [Reject("not yet")]

    def handle(_: Message) -> None:
        if refuse:
            raise refuse.pop()

    consumer = opened(of_shape(shape, handle, foreign=WEBHOOK, untimed_ids=True))
    assert consumer.deliver(webhook()) == ACK
    assert redrive(db, "evt_1", consumer=rows.CONSUMER).stands
    drain(dsn, sink := ListSink())
    [message] = sink.messages
    assert (message.id, message.type, message.subject, message.body) == ("evt_1", "order.placed", "a-1", webhook().body)
    assert [consumer.deliver(each) for each in (delivery(message), webhook(delivery_id="d-2"))] == [ACK] * 2
    assert (rows.state(db, message), rows.effects(db, message)) == ("done", 1)


def test_a_foreign_message_of_another_type_is_parked_under_its_own_id(opened: Opened, db: Db) -> None:
    foreign = Foreign(id=event_id, type=Header("X-Account"))
    assert opened(of_shape("transactional", foreign=foreign, untimed_ids=True)).deliver(webhook()) == ACK
    assert [(entry.message_id, entry.reason) for entry in rows.parked(db)] == [("evt_1", "unknown type")]


def test_the_loop_takes_foreign_messages_from_a_queue(dsn: str, db: Db, background: Background) -> None:
    pgmq.create_queue(db, "orders")
    for text in ('{"event_id": "evt_1"}', '{"event_id": "evt_1"}', "null"):
        db.execute("SELECT pgmq.send('orders', %s::jsonb)", (text,))
    consumer = of_shape("transactional", foreign=WEBHOOK, untimed_ids=True)
    with consuming(background, run, consumer=consumer, source=lambda: pgmq.Source("orders", dsn), database=dsn, threads=2):
        until(lambda: rows.scalar(db, "SELECT count(*) FROM pgmq.q_orders") == 0)
    assert rows.effects(db, taken_as("evt_1")) == 1
    assert [entry.reason for entry in rows.parked(db)] == ["malformed"]
