"""Provider profiles: what is promised, which key is sent, and what an answer means."""

from __future__ import annotations

import io
import json
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from onceward.errors import UsageError
from onceward.protocol.words import Answered, Failed, Later, Mismatch, Replayed
from onceward.provider import NO_KEYS, STRIPE_V1, ProviderProfile, idempotency_key, read_error


def test_stripe_keeps_an_hour_of_its_day_free() -> None:
    assert STRIPE_V1.window_seconds == 86_400
    assert STRIPE_V1.margin_seconds >= 3_600
    assert STRIPE_V1.callable_seconds == 82_800


@pytest.mark.parametrize(
    ("timeout_seconds", "retries", "fits"),
    [(80, 0, True), (80, 2, True), (3_599, 0, True), (3_600, 0, False), (1_800, 1, False), (900, 3, False), (899, 3, True)],
)
def test_the_longest_call_must_fit_into_the_margin(timeout_seconds: float, retries: int, fits: bool) -> None:
    if fits:
        assert STRIPE_V1.with_timeout(timeout_seconds=timeout_seconds, retries=retries).callable_seconds == 82_800
    else:
        with pytest.raises(UsageError, match=r"timeout x \(retries \+ 1\)"):
            STRIPE_V1.with_timeout(timeout_seconds=timeout_seconds, retries=retries)


def test_a_margin_must_leave_something_of_the_window() -> None:
    with pytest.raises(UsageError, match="leaves nothing"):
        ProviderProfile(name="x", window_seconds=600, margin_seconds=600, call_timeout_seconds=10)


def test_a_provider_without_keys_is_never_called_twice_however_long_a_call_takes() -> None:
    assert NO_KEYS.callable_seconds == 0
    assert NO_KEYS.with_timeout(timeout_seconds=1e9).callable_seconds == 0


parts = st.tuples(st.text(), st.text(), st.text())


@given(parts, parts)
def test_a_key_is_the_same_for_the_same_effect_and_another_for_any_other(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert (idempotency_key(*one) == idempotency_key(*other)) == (one == other)


def test_a_key_never_changes_between_versions() -> None:
    """A deploy that changed it would charge again whatever was under way."""
    key = idempotency_key("payments.charge", "0198c9f2-0000-7000-8000-000000000000", "charge")
    assert key == "ow1:8b6f96024936b94e78bfc85dad460ff85a950820"
    assert len(key) == 44


def test_parts_cannot_be_shifted_into_each_other() -> None:
    assert idempotency_key("a", "b:1", "c") != idempotency_key("a:b", "1", "c")
    assert idempotency_key("1:a", "b", "c") != idempotency_key("1", "a:b", "c")


REPLAYED = {"Idempotent-Replayed": "true"}


def sdk_error(
    kind: type[stripe.StripeError], status: int | None, *, headers: Any = None, body_type: str = "x"
) -> Exception:
    """As the SDK itself makes them: a message, the status, the parsed body and the headers."""
    options: dict[str, Any] = {"http_status": status, "json_body": {"error": {"type": body_type}}, "headers": headers or {}}
    arguments = {stripe.CardError: ("number", "card_declined"), stripe.InvalidRequestError: ("amount",)}
    make: Callable[..., Exception] = kind
    return make("no", *arguments.get(kind, ()), **options)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (sdk_error(stripe.CardError, 402), Answered),
        (sdk_error(stripe.IdempotencyError, 400, body_type="idempotency_error"), Mismatch),
        (sdk_error(stripe.InvalidRequestError, 400, body_type="invalid_request_error"), Failed),
        (sdk_error(stripe.IdempotencyError, 409, body_type="idempotency_error"), Later),
        (sdk_error(stripe.APIError, 409), Later),
        (sdk_error(stripe.RateLimitError, 429), Later),
        (sdk_error(stripe.APIError, 500), Failed),
        (sdk_error(stripe.APIError, 503), Failed),
        (sdk_error(stripe.APIError, 500, headers=REPLAYED), Replayed),
        (sdk_error(stripe.APIError, 500, headers={"idempotent-replayed": "TRUE"}), Replayed),
        (sdk_error(stripe.APIError, 500, headers={"Idempotent-Replayed": "false"}), Failed),
        (sdk_error(stripe.AuthenticationError, 401), Failed),
        (sdk_error(stripe.PermissionError, 403), Failed),
        (sdk_error(stripe.APIConnectionError, None), Failed),
        (TimeoutError("timed out"), Failed),
        (ValueError("a defect in the caller's code"), Failed),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_what_an_exception_of_the_sdk_means(error: Exception, meaning: type) -> None:
    assert type(read_error(STRIPE_V1, error)) is meaning


def test_a_refusal_is_an_answer_that_can_be_recorded() -> None:
    answered = read_error(STRIPE_V1, sdk_error(stripe.CardError, 402))
    assert isinstance(answered, Answered)
    assert answered.refused
    assert '"code":"card_declined"' in answered.answer


def test_without_keys_no_answer_but_a_refusal_is_definite() -> None:
    """409, 429 or a replayed header mean nothing from a provider that does not know keys: never call again."""
    for status in (400, 409, 429, 500):
        assert isinstance(read_error(NO_KEYS, sdk_error(stripe.APIError, status, headers=REPLAYED)), Failed)
    assert isinstance(read_error(NO_KEYS, sdk_error(stripe.CardError, 402)), Answered)


class _Response:
    status_code = 409


class _OtherClientsError(Exception):
    response = _Response()


def test_clients_that_keep_the_status_on_their_response_are_read_too() -> None:
    assert isinstance(read_error(STRIPE_V1, _OtherClientsError()), Later)


class Response:
    """What requests and httpx keep of an answer."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status_code = status
        self.content = content


class HTTPStatusError(Exception):
    """What requests and httpx raise."""

    def __init__(self, status: int, content: bytes = b"") -> None:
        super().__init__(f"status {status}")
        self.response = Response(status, content)


DECLINE = b'{"code": "insufficient_funds", "retry": false}'


def refused(reply: Any) -> Any:
    assert isinstance(reply, Answered)
    assert reply.refused
    return json.loads(reply.answer)


def test_the_providers_own_words_are_kept_of_a_refusal() -> None:
    reason = refused(read_error(STRIPE_V1, HTTPStatusError(402, DECLINE)))
    assert (reason["status"], reason["body"]) == (402, {"code": "insufficient_funds", "retry": False})


def test_the_official_sdks_body_is_kept() -> None:
    body = {"error": {"decline_code": "stolen_card"}}
    kind: Any = stripe.CardError
    reason = refused(read_error(STRIPE_V1, kind("no", "number", "card_declined", http_status=402, json_body=body)))
    assert (reason["code"], reason["body"]) == ("card_declined", body)


@pytest.mark.parametrize("content", [b"\xffnot json", b"[" * 100_000, b"x" * 1_000_000], ids=["bytes", "deep", "long"])
def test_a_body_that_is_not_json_is_kept_as_text(content: bytes) -> None:
    reason = refused(read_error(STRIPE_V1, HTTPStatusError(402, content)))
    assert isinstance(reason["body"], str)
    assert len(reason["body"]) <= 100_000


def test_urllibs_error_is_read() -> None:
    error = urllib.error.HTTPError("http://provider", 402, "Payment Required", Message(), io.BytesIO(DECLINE))
    reason = refused(read_error(STRIPE_V1, error))
    assert (reason["status"], reason["body"]["code"]) == (402, "insufficient_funds")
    assert refused(read_error(STRIPE_V1, error))["body"] in (None, "")  # it was read already


@pytest.mark.parametrize("status", [400, 403, 404, 410, 422, 451])
def test_any_4xx_that_the_profile_counts_as_a_refusal_is_one(status: int) -> None:
    counts = replace(STRIPE_V1, refusals=frozenset({status}))
    assert refused(read_error(counts, HTTPStatusError(status)))["status"] == status
    assert isinstance(read_error(STRIPE_V1, HTTPStatusError(status)), Failed)


def test_a_mismatch_of_the_key_is_not_a_refusal_whatever_the_profile_says() -> None:
    counts = replace(STRIPE_V1, refusals=frozenset({400}))
    assert isinstance(read_error(counts, sdk_error(stripe.IdempotencyError, 400, body_type="idempotency_error")), Mismatch)


@pytest.mark.parametrize("status", [200, 399, 409, 429, 500])
def test_what_means_later_or_nothing_definite_cannot_be_a_refusal(status: int) -> None:
    with pytest.raises(UsageError, match="cannot be refusals"):
        replace(STRIPE_V1, refusals=frozenset({402, status}))


@pytest.mark.parametrize("refusals", [402, None, {"declined"}])
def test_refusals_that_are_not_a_set_of_statuses_are_refused(refusals: Any) -> None:
    with pytest.raises(UsageError, match="a set of HTTP statuses"):
        replace(STRIPE_V1, refusals=refusals)
