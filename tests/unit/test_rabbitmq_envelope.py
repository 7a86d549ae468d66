"""What becomes of AMQP's headers, and what a count is made of: no broker."""

from __future__ import annotations

from typing import Any

import pytest
from pika import BasicProperties

from onceward.message import Message
from onceward.transports.rabbitmq.envelope import COUNT_HEADER, count_of, headers_of, properties_of


def test_an_envelope_comes_back_from_its_properties() -> None:
    message = Message(type="order.placed", data=1, subject="a", traceparent="00-1-2-01")
    assert Message.from_wire(headers_of(properties_of(message), "orders"), message.body) == message


def test_a_plain_header_does_not_stand_in_for_the_envelopes() -> None:
    properties = BasicProperties(headers={"cloudEvents_id": "ours", "id": "theirs", "cloudEvents:type": "order.placed"})
    got = headers_of(properties, "orders")
    assert (got["id"], got["type"]) == ("ours", "order.placed")


def test_a_header_that_is_nested_too_deeply_is_named_so() -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    assert headers_of(BasicProperties(headers={"deep": deep}), "orders")["deep"] == "(nested too deeply)"


@pytest.mark.parametrize(
    ("headers", "redelivered", "count"),
    [
        ({}, False, 1),
        ({"x-delivery-count": 2}, True, 3),
        ({"x-acquired-count": 3, "x-delivery-count": 1}, True, 4),
        ({COUNT_HEADER: 4}, False, 5),
        ({COUNT_HEADER: 4, "x-delivery-count": 2}, True, 7),
        ({COUNT_HEADER: "four"}, False, 1),
        ({COUNT_HEADER: -4}, False, 1),
        (None, True, 0),
    ],
)
def test_a_count_is_what_both_queues_have_counted(headers: Any, redelivered: bool, count: int) -> None:
    assert count_of(BasicProperties(headers=headers), redelivered=redelivered) == count
