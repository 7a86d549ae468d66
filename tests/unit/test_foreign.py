"""`Foreign`: a header's name, a constant and a function cannot be taken for each other, and nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from onceward.errors import UsageError
from onceward.foreign import Foreign, Header, read_message
from onceward.message import MalformedMessage, Message, uuid7
from onceward.transport import Delivery

Headers = Mapping[str, str]


def arrived(headers: Headers | None = None, body: bytes = b"{}") -> Delivery:
    return Delivery(id="the broker's own", source="test", headers=headers or {}, body=body)


def event_id(_headers: Headers, body: bytes) -> str | None:
    found: str | None = json.loads(body).get("event_id")
    return found


WEBHOOK = Foreign(id=event_id, type=Header("X-Event-Type"), subject=Header("X-Account"), time=Header("X-Time"))


def read(foreign: Foreign | None, headers: Headers | None = None, body: bytes = b"{}") -> Message:
    return read_message(arrived(headers, body), foreign)


def test_each_attribute_comes_from_where_foreign_says() -> None:
    headers = {"X-Event-Type": "payment.settled", "X-Account": "a-1", "X-Time": "2026-01-02T03:04:05Z"}
    body = b'{"event_id": "evt_1"}'
    assert read(WEBHOOK, headers, body) == Message(
        id="evt_1", type="payment.settled", subject="a-1", time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), source="test",
        body=body,
    )  # fmt: skip


def test_a_type_may_be_a_constant() -> None:
    assert read(Foreign(id=Header("X-Id"), type="payment.settled"), {"X-Id": "1"}).type == "payment.settled"


@pytest.mark.parametrize("name", ["x-request-id", "X-REQUEST-ID", "X-Request-Id"])
def test_the_case_of_a_headers_name_says_nothing(name: str) -> None:
    assert read(Foreign(id=Header("X-Request-Id"), type="x"), {name: "r-1"}).id == "r-1"


def test_two_spellings_of_a_header_must_say_the_same() -> None:
    foreign = Foreign(id=Header("X-Id"), type="x")
    assert read(foreign, {"X-Id": "1", "x-id": "1"}).id == "1"
    with pytest.raises(MalformedMessage, match="2 times, with different values"):
        read(foreign, {"X-Id": "1", "x-id": "2"})


def test_a_message_with_an_envelope_is_taken_as_it_is() -> None:
    message = Message(type="order.placed", data={"event_id": "evt_1"})
    headers, body = message.to_wire()
    assert read(WEBHOOK, {**headers, "X-Event-Type": "other"}, body) == message
    assert read(None, {"id": "1", "type": "a"}, body).id == "1"


def test_where_strangers_are_expected_any_id_among_the_headers_is_not_an_envelope() -> None:
    """It may be a framework's, another one for each send: a resend would be taken as new."""
    _, body = Message(type="order.placed", data={"event_id": "evt_1"}).to_wire()
    assert read(WEBHOOK, {"id": "1", "type": "a", "X-Event-Type": "other"}, body).id == "evt_1"


def test_an_envelope_that_lost_its_id_does_not_get_another() -> None:
    """The inbox may know the message under the id that was lost."""
    headers, body = Message(type="order.placed", data={"event_id": "evt_1"}).to_wire()
    del headers["id"]
    with pytest.raises(MalformedMessage, match="envelope without id"):
        read(WEBHOOK, headers, body)


def test_without_foreign_the_reason_names_it() -> None:
    with pytest.raises(MalformedMessage, match=r"envelope without id and type; .*foreign=Foreign"):
        read(None)


def raising(_headers: Headers, _body: bytes) -> str:
    raise LookupError("no such thing")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise LookupError("no")


def unspeakable(_headers: Headers, _body: bytes) -> str:
    raise Unspeakable


def number(_headers: Headers, _body: bytes) -> Any:
    return 7


def nothing(_headers: Headers, _body: bytes) -> str | None:
    return None


def empty(_headers: Headers, _body: bytes) -> str:
    return ""


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        (Header("X-Missing"), "there is no header 'X-Missing'"),
        (Header("X-Empty"), "header 'X-Empty' is empty"),
        (nothing, "the function for it found none"),
        (empty, "the function for it found none"),
        (raising, "raised LookupError: no such thing"),
        (unspeakable, "raised .*Unspeakable"),
        (number, "returned int, not a text"),
        (event_id, "raised json.*JSONDecodeError"),
    ],
)
@pytest.mark.parametrize("name", ["id", "type"])
def test_without_an_id_or_a_type_it_is_malformed_and_the_reason_says_why(name: str, reader: Any, reason: str) -> None:
    readers: dict[str, Any] = {"id": Header("X-Id"), "type": "x"} | {name: reader}
    with pytest.raises(MalformedMessage, match=reason) as caught:
        read(Foreign(**readers), {"X-Id": str(uuid7()), "X-Empty": ""}, b"not json")
    assert name in str(caught.value)


def test_a_subject_and_a_time_may_be_missing() -> None:
    message = read(WEBHOOK, {"x-event-type": "a", "x-account": ""}, b'{"event_id": "evt_1"}')
    assert message.subject is None


@pytest.mark.parametrize(("name", "value"), [("X-Time", "yesterday"), ("X-Account", "\x00"), ("X-Event-Type", "\ud800")])
def test_what_no_message_can_have_is_malformed(name: str, value: str) -> None:
    with pytest.raises(MalformedMessage):
        read(WEBHOOK, {"X-Event-Type": "a", name: value}, b'{"event_id": "evt_1"}')


async def later(_headers: Headers, _body: bytes) -> str:
    return "1"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"id": "X-Request-Id", "type": "a"}, r"write Header\('X-Request-Id'\)"),
        ({"id": Header("X"), "type": "a", "subject": "X-Account"}, r"write Header\('X-Account'\)"),
        ({"id": Header("X"), "type": "a", "time": "X-Time"}, r"write Header\('X-Time'\)"),
        ({"id": Header("X"), "type": ""}, "type must not be empty"),
        ({"id": Header("X"), "type": None}, "or a text, not None"),
        ({"id": None, "type": "a"}, "a function of headers and body, not"),
        ({"id": 7, "type": "a"}, "a function of headers and body, not"),
        ({"id": lambda _headers: "1", "type": "a"}, "must take 2 arguments"),
        ({"id": later, "type": "a"}, "async"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_written(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Foreign(**options)


@pytest.mark.parametrize("name", ["", None, 7, b"X-Id"])
def test_a_header_has_a_name(name: Any) -> None:
    with pytest.raises(UsageError, match="name of a header"):
        Header(name)
