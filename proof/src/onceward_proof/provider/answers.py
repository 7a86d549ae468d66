"""Stripe's answers as values: a status, a JSON body, and the error objects with Stripe's types, codes and words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

JsonObject = dict[str, Any]
OTHER_PARAMETERS: Final = (
    "Keys for idempotent requests can only be used with the same parameters they were first used with. "
    "Try using a key other than '%s' if you meant to execute a different request."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body, as sent and as stored.

    `charge` is the id of a charge that made it come about, if any.
    """

    status: int
    body: str
    charge: str | None = None
    original_request: str | None = None  # set on a replay: the id of the request that was answered first


class Invalid(Exception):
    """The request is wrong in itself: answered before endpoint execution begins, and therefore never stored."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body)
        self.answer = answer


def ok(document: JsonObject, charge: str | None = None) -> Answer:
    """Answer 200 with a document."""
    return Answer(200, json.dumps(document), charge)


def error(status: int, type_: str, message: str, **more: Any) -> Answer:
    """Answer with an error object; fields that are None are left out, as Stripe leaves them."""
    fields = {name: value for name, value in more.items() if value is not None}
    return Answer(status, json.dumps({"error": {"type": type_, "message": message, **fields}}))


def invalid(message: str, code: str | None = None, param: str | None = None) -> Invalid:
    """Make the exception for a parameter that is wrong in itself."""
    return Invalid(error(400, "invalid_request_error", message, code=code, param=param))


def missing(id_: str) -> Answer:
    """Answer that there is no such charge."""
    return error(404, "invalid_request_error", f"No such charge: '{id_}'", code="resource_missing", param="id")


def declined(**more: Any) -> Answer:
    """Answer that the card was declined: a definite refusal, and as such stored."""
    reason = {"code": "card_declined", "decline_code": "generic_decline"}
    return error(402, "card_error", "Your card was declined.", **reason, **more)


def unauthorized(credentials: str) -> Answer:
    """Answer 401. It comes before the idempotency layer: nothing is stored."""
    if not credentials:
        return error(401, "invalid_request_error", "You did not provide an API key.")
    return error(401, "invalid_request_error", f"Invalid API Key provided: {credentials[:8]}****")


def unrecognized(method: str, path: str) -> Answer:
    """Answer 404 for a path or method that is not served."""
    words = f"Unrecognized request URL ({method}: {path}). If you are trying to list objects, remove the trailing slash."
    return error(404, "invalid_request_error", words)


def rate_limited() -> Answer:
    """Answer 429. It comes before the idempotency layer: nothing is stored."""
    return error(429, "invalid_request_error", "Too many requests hit the API too quickly.", code="rate_limit")


def server_error(status: int = 500) -> Answer:
    """Answer 5xx; whether it is stored is the caller's decision."""
    return error(status, "api_error", "An unknown error occurred.")


def key_too_long() -> Answer:
    """Answer 400: a key has at most 255 characters."""
    words = "Idempotency keys may be at most 255 characters long."
    return error(400, "invalid_request_error", words)


def key_in_use(key: str) -> Answer:
    """Answer 409: the first request with this key has no answer yet.

    Another status and type than a mismatch.
    """
    words = (
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted "
        f"twice, and the other request is still going through): {key}. Please try again later."
    )
    return error(409, "invalid_request_error", words, code="idempotency_key_in_use")


def other_parameters(key: str) -> Answer:
    """Answer 400: the key was first used with other parameters."""
    return error(400, "idempotency_error", OTHER_PARAMETERS % key)
