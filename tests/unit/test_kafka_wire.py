"""A message as a Kafka record, and strangers' records; which configuration is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onceward.errors import UsageError
from onceward.message import MalformedMessage, Message
from onceward.transports import kafka
from onceward.transports.kafka.wire import (
    RETRY_AT,
    RETRY_DELAY,
    Outgoing,
    read_headers,
    record_of,
    retry_copy,
    retry_seconds,
)

BROKERS = {"bootstrap.servers": "127.0.0.1:1"}
MEMBER = {**BROKERS, "group.id": "payments"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_attributes_are_headers_of_the_cloudevents_binding_and_the_subject_is_the_key() -> None:
    message = Message(type="order.placed", data=1, subject="k\u00fc", traceparent=TRACEPARENT)
    record = record_of(message, "orders")
    headers = dict(record.headers)
    assert (record.topic, record.key, record.value) == ("orders", "k\u00fc".encode(), b"1")
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_subject"] == "k\u00fc".encode()
    assert headers["traceparent"] == TRACEPARENT.encode()
    assert Message.from_wire(read_headers(record.headers), b"1") == message


def test_a_message_without_a_subject_has_no_key() -> None:
    assert record_of(Message(type="order.placed"), "orders").key is None


def test_of_a_repeated_header_the_last_one_counts() -> None:
    assert read_headers([("a", b"1"), ("a", b"2")]) == {"a": "2"}


def test_bytes_that_are_not_utf8_are_shown_as_escapes_and_an_absent_value_is_no_header() -> None:
    assert read_headers([("a", b"\xff\xc3\xbc"), ("b", None)]) == {"a": "\\xff\u00fc"}


def test_the_headers_of_debeziums_outbox_event_router_are_an_envelope_once_its_type_is_placed() -> None:
    """`id` is where the router puts it; `ce_type` where `table.fields.additional.placement` was told to put the type."""
    headers = [("id", b"01890a5d-ac96-774b-bcce-b302099a8057"), ("ce_type", b"order.placed"), ("eventType", b"x")]
    message = Message.from_wire(read_headers(headers), b"{}")
    assert (message.id, message.type) == ("01890a5d-ac96-774b-bcce-b302099a8057", "order.placed")


def test_an_attribute_comes_before_a_strangers_header_of_its_name() -> None:
    assert read_headers([("ce_id", b"ours"), ("id", b"theirs")])["id"] == "ours"


def test_a_record_without_headers_is_not_an_envelope() -> None:
    with pytest.raises(MalformedMessage, match="without id and type"):
        Message.from_wire(read_headers(None), b"")


def test_a_retry_copy_is_the_record_and_when_it_is_due() -> None:
    first = Outgoing("orders.payments.retry", b"k", b"body", [("ce_id", b"1"), ("other", None)])
    again = retry_copy(retry_copy(first, 3600), 60)
    assert again[:3] == first[:3]
    assert [name for name, _ in again.headers] == ["ce_id", "other", RETRY_AT, RETRY_DELAY]
    assert 0 < retry_seconds(again.headers) <= 60
    assert read_headers(again.headers) == {"id": "1"}


def test_a_clock_that_is_ahead_does_not_make_a_retry_longer() -> None:
    in_an_hour = b"%d" % ((time.time() + 3600) * 1000)
    assert retry_seconds([(RETRY_AT, in_an_hour), (RETRY_DELAY, b"2000")]) == 2.0


HUGE = [(RETRY_AT, b"9" * 400), (RETRY_DELAY, b"9" * 400)]


@pytest.mark.parametrize("headers", [None, [], [(RETRY_AT, b"soon"), (RETRY_DELAY, b"1")], [(RETRY_AT, b"1")], HUGE])
def test_what_a_stranger_wrote_to_a_retry_topic_is_due_at_once(headers: Any) -> None:
    assert retry_seconds(headers) == 0.0


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BROKERS, "group.id"),
        ({**MEMBER, "enable.auto.commit": True}, "enable.auto.commit"),
        ({**MEMBER, "enable.auto.commit": "true"}, "enable.auto.commit"),
        ({**MEMBER, "enable.auto.offset.store": True}, "enable.auto.offset.store"),
    ],
)
def test_a_source_that_would_commit_by_itself_or_has_no_group_is_refused(config: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        kafka.Source(config, "orders")


@pytest.mark.parametrize("acks", [0, 1, "1"])
@pytest.mark.parametrize("name", ["acks", "request.required.acks"])
def test_a_sink_that_would_confirm_before_all_have_it_is_refused(name: str, acks: object) -> None:
    with pytest.raises(UsageError, match="acks is"):
        kafka.Sink({**BROKERS, name: acks}, "orders")


@pytest.mark.parametrize(("name", "value"), [("enable.idempotence", False), ("transactional.id", "x")])
def test_a_sink_that_would_reorder_or_needs_transactions_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        kafka.Sink({**BROKERS, name: value}, "orders")


@pytest.mark.parametrize("topics", ["", [], ["orders", ""], "^orders.*", [7]])
def test_what_names_no_topic_is_refused(topics: Any) -> None:
    with pytest.raises(UsageError, match="topics is"):
        kafka.Source(MEMBER, topics)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"order": "partition"}, "order is"), ({"retry_topics": True}, "order=None"), ({"ahead_max": 0}, "ahead_max")],
)
def test_options_that_mean_nothing_are_refused(options: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        kafka.Source(MEMBER, "orders", **options)


def test_a_property_that_the_client_does_not_know_is_named() -> None:
    source = kafka.Source({**MEMBER, "no.such.property": 1}, "orders")
    with pytest.raises(UsageError, match=r"no\.such\.property"):
        source.receive(1, 0)
