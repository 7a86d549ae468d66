"""The message: its id, its wire form, and what it refuses to carry."""

from __future__ import annotations

import copy
import pickle
import time
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceward.day_partitions import partition_bounds
from onceward.message import (
    ATTRIBUTE_BYTES_MAX,
    MalformedMessage,
    Message,
    canonical_json,
    encode_json,
    parse_uuid7,
    row_key,
    uuid7,
    uuid7_at,
)

printable = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50).filter(str.isprintable)
times = st.datetimes(timezones=st.just(UTC))
messages = st.builds(
    Message,
    type=printable,
    body=st.binary(max_size=200),
    subject=st.none() | printable,
    id=st.none() | printable | st.uuids(),
    source=printable,
    time=st.none() | times,
    traceparent=st.none() | printable,
)


def test_an_id_is_a_uuid7_of_now() -> None:
    before, made, after = time.time_ns() // 1_000_000, uuid7(), time.time_ns() // 1_000_000
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert before <= made.int >> 80 <= after


def test_ids_of_one_moment_differ() -> None:
    assert len({uuid7() for _ in range(10_000)}) == 10_000


@given(st.integers(0, 2**48 - 2), st.integers(0, 2**80 - 1), st.integers(0, 2**80 - 1))
def test_ids_sort_by_their_time(milliseconds: int, some: int, other: int) -> None:
    assert uuid7_at(milliseconds, some) < uuid7_at(milliseconds + 1, other)
    assert uuid7_at(milliseconds) <= uuid7_at(milliseconds, some)
    assert parse_uuid7(str(uuid7_at(milliseconds, some))) == uuid7_at(milliseconds, some)


@given(st.integers(0, 2**80 - 1))
def test_an_id_lies_within_the_bounds_of_its_day_and_of_no_other(bits: int) -> None:
    day = datetime(2026, 3, 29, tzinfo=UTC)
    low, high = partition_bounds(day.date())
    first, last = round(day.timestamp() * 1000), round((day + timedelta(days=1)).timestamp() * 1000) - 1
    assert low <= uuid7_at(first, bits) < high
    assert low <= uuid7_at(last, bits) < high
    assert uuid7_at(first - 1, bits) < low
    assert uuid7_at(last + 1, bits) >= high


UNTIMED = ["", "order-1", "84ca16c9-0601-4854-9ca7-792e48e375a2", str(UUID(int=0)), "0198-x", "\x00"]


@pytest.mark.parametrize("text", UNTIMED)
def test_what_is_not_a_uuid7_has_no_time(text: str) -> None:
    assert parse_uuid7(text) is None


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    headers, body = message.to_wire()
    assert all(isinstance(value, str) for value in headers.values())
    again = Message.from_wire(headers, body)
    assert again == message
    assert again.fingerprint() == message.fingerprint()
    assert (again.id, again.type, again.subject, again.time) == (message.id, message.type, message.subject, message.time)


@given(st.binary(), st.binary())
def test_the_fingerprint_is_of_the_type_and_the_body(body: bytes, another: bytes) -> None:
    one, other = Message(type="t", body=body), Message(type="t", subject="s", source="else", body=another)
    assert (one.fingerprint() == other.fingerprint()) == (one.body == other.body)
    assert one.fingerprint() != Message(type="u", body=body).fingerprint()
    assert len(one.fingerprint()) == 32


def test_no_part_of_a_type_can_be_shifted_into_the_body() -> None:
    assert Message(type="a", body=b"1:b").fingerprint() != Message(type="a1", body=b":b").fingerprint()
    assert Message(type="1:a", body=b"x").fingerprint() != Message(type="1", body=b":ax").fingerprint()


def test_headers_of_others_are_let_pass() -> None:
    headers, body = Message(type="order.placed", data={}).to_wire()
    assert Message.from_wire(headers | {"datacontenttype": "application/json", "x-trace": "1"}, body).type == "order.placed"


def test_absent_attributes_are_left_out() -> None:
    headers, _ = Message(type="order.placed", data={}).to_wire()
    assert set(headers) == {"specversion", "id", "source", "type", "time"}


@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_a_time_that_no_year_holds_in_utc_is_refused_where_it_is_written(at: datetime) -> None:
    with pytest.raises(MalformedMessage, match="between the years 1 and 9999"):
        Message(type="t", time=at)


def test_a_time_without_a_zone_is_utc_and_any_other_zone_is_kept() -> None:
    at = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - that is the question
    assert Message(type="t", time=at).time == at.replace(tzinfo=UTC)
    east = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    headers, body = Message(type="t", time=east).to_wire()
    assert Message.from_wire(headers, body).time == east


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "envelope without id"),
        ({"id": ""}, "envelope without id"),
        ({"type": None}, "envelope without type"),
        ({"id": None, "type": None}, "envelope without id and type"),
        ({"time": "yesterday"}, "time is not an RFC 3339 timestamp: 'yesterday'"),
        ({"subject": "a\x00b"}, "subject has a character that headers cannot carry"),
        ({"id": "a\nb"}, "id has a character that headers cannot carry"),
        ({"id": "x" * (ATTRIBUTE_BYTES_MAX + 1)}, "id is longer than 1024 bytes in UTF-8"),
        ({"id": "例" * 342}, "id is longer than 1024 bytes in UTF-8"),
        ({"source": ""}, "source must be a text that is not empty"),
    ],
)
def test_a_malformed_envelope_says_what_is_wrong(change: dict[str, str | None], reason: str) -> None:
    headers, body = Message(type="order.placed", data={}).to_wire()
    changed = {name: value for name, value in (headers | change).items() if value is not None}
    with pytest.raises(MalformedMessage, match=reason):
        Message.from_wire(changed, body)


def test_an_empty_subject_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(MalformedMessage, match="subject"):
        Message(type="t", subject="")


def test_data_and_body_are_one_or_the_other() -> None:
    with pytest.raises(MalformedMessage, match="not both"):
        Message(type="t", data={}, body=b"{}")


@pytest.mark.parametrize("data", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_data_that_is_not_json_is_refused_at_once(data: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Message(type="t", data=data)


def test_a_nul_travels_in_a_body_as_json_writes_it() -> None:
    message = Message(type="t", data={"text": "a\x00b"})
    assert b"\\u0000" in message.body
    assert b"\x00" not in message.body
    assert message.json() == {"text": "a\x00b"}
    assert Message(type="t", body=b"a\x00b").body == b"a\x00b"


@pytest.mark.parametrize("name", ["id", "type", "body", "subject", "anything"])
def test_a_message_cannot_be_changed(name: str) -> None:
    message = Message(type="t", data=1)
    with pytest.raises(AttributeError):
        setattr(message, name, "x")
    with pytest.raises(AttributeError):
        delattr(message, name)


def test_the_body_is_a_copy() -> None:
    buffer = bytearray(b"abc")
    message = Message(type="t", body=buffer)  # type: ignore[arg-type]  # what drivers give
    buffer[:] = b"xyz"
    assert message.body == b"abc"


def test_equal_messages_are_equal_and_hash_alike() -> None:
    message = Message(type="t", data=1)
    same = Message.from_wire(*message.to_wire())
    assert (message, hash(message)) == (same, hash(same))
    assert message != Message(type="t", data=1)


CHANGES: dict[str, Any] = {
    "id": str(uuid7()), "type": "u", "source": "else", "subject": "s", "time": datetime(2026, 1, 1, tzinfo=UTC),
    "traceparent": "00-1-2-01", "body": b"2",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_message_that_differs_in_one_attribute_is_another(name: str) -> None:
    """`replace` makes the copy: it knows every attribute, and so does this test."""
    message = Message(type="t", data=1)
    other = replace(message, **{name: CHANGES[name]})
    assert message != other
    assert {field.name for field in fields(Message)} == {*CHANGES}


def test_a_message_is_equal_to_nothing_else() -> None:
    message = Message(type="t", data=1)
    others: list[object] = [message.to_wire(), tuple(getattr(message, field.name) for field in fields(Message)), None]
    assert message not in others


@given(messages)
def test_a_message_can_be_copied_and_pickled(message: Message) -> None:
    for same in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):  # noqa: S301 - our own
        assert same == message
        assert same.to_wire() == message.to_wire()


def test_a_message_that_is_shown_keeps_its_body_to_itself() -> None:
    assert "order" not in repr(Message(type="t", data={"card": "order"}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_canonical_json_does_not_know_the_order_of_keys(value: dict[str, object]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
    assert canonical_json(value).isascii()
    assert Message(type="t", body=encode_json(value)).json() == value


# ---- the key of its rows ---------------------------------------------------------------------------------------------


def test_the_key_of_a_uuid7_is_itself_in_any_spelling() -> None:
    value = uuid7()
    assert {row_key(spelling) for spelling in (str(value), str(value).upper(), f"{{{value}}}", value.urn)} == {value}


@given(printable, printable)
def test_the_key_of_an_untimed_id_is_made_from_its_text_and_of_no_days_partition(text: str, other: str) -> None:
    key = row_key(text)
    assert (key.version, key.variant, key.bytes[0]) == (8, "specified in RFC 4122", 0xFF)
    assert key > partition_bounds(date.max)[0]
    assert (row_key(other) == key) == (other == text)


def test_the_key_of_an_untimed_id_never_changes() -> None:
    """It is data: in a database there are rows under it."""
    assert row_key("evt_123") == UUID("ffa40446-8e8b-8b99-8ce1-12e1187db383")
    assert row_key("6BA7B810-9DAD-41D1-80B4-00C04FD430C8") != row_key("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
