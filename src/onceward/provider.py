"""What is known of an outside provider, as data; and what its answers mean. No I/O.

A profile is what the provider's own documentation promises of its idempotency keys. The numbers are guarantees: outside
the window a retry is a new request.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from onceward.errors import UsageError
from onceward.message import canonical_json
from onceward.protocol.words import Answered, Failed, Later, Mismatch, Replayed

Replies = Answered | Failed | Later | Mismatch | Replayed
REFUSALS: Final = frozenset({402})
BODY_CHARS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderProfile:
    """One provider's promise, and how it is called.

    `window_seconds`: how long it remembers a key, counted from the moment the intent was committed, which is before the
    first request. None: it knows no keys, and an intent without an answer is never called again.
    `margin_seconds` is kept free at the window's end: it must be longer than the longest call.
    `call_timeout_seconds`: how long one call may take; `call_retries`: how often the client repeats it by itself.
    `refusals`: the 4xx statuses by which it says no, definitely (402: the card was declined). Such an answer is recorded
    and raised as `EffectRefused`; any other 4xx is tried again. Not 409 and 429, which mean "later".

    Raises `UsageError` when the margin is too short (a call that is still under way when its key expires may be a second
    charge), and for values that no provider can have.
    """

    name: str
    window_seconds: float | None
    margin_seconds: float
    call_timeout_seconds: float = 80.0
    call_retries: int = 0
    refusals: frozenset[int] = REFUSALS

    def __post_init__(self) -> None:
        self._check_refusals()
        if self.window_seconds is None:
            return
        longest = self.call_timeout_seconds * (self.call_retries + 1)
        if longest >= self.margin_seconds:
            raise UsageError(
                f"provider {self.name}: a call may take {longest:g} s (timeout x (retries + 1)), and the margin before "
                f"the key expires is {self.margin_seconds:g} s: make the margin longer, or the call shorter"
            )
        if self.margin_seconds >= self.window_seconds:
            raise UsageError(
                f"provider {self.name}: the margin of {self.margin_seconds:g} s leaves nothing of the key's window of "
                f"{self.window_seconds:g} s"
            )

    def _check_refusals(self) -> None:
        try:
            object.__setattr__(self, "refusals", frozenset(int(status) for status in self.refusals))
        except (TypeError, ValueError):
            raise UsageError(
                f"provider {self.name}: refusals is a set of HTTP statuses, like {{402, 422}}, not {self.refusals!r}"
            ) from None
        wrong = sorted(status for status in self.refusals if not 400 <= status < 500 or status in (409, 429))
        if wrong:
            raise UsageError(f"provider {self.name}: {wrong} cannot be refusals: only 4xx can, and 409 and 429 mean later")

    @property
    def callable_seconds(self) -> float:
        """How long after the intent was committed its key may still be sent; 0 without keys."""
        return 0.0 if self.window_seconds is None else self.window_seconds - self.margin_seconds

    @property
    def acting_seconds(self) -> float:
        """How long after the intent was committed the provider may still act under its key.

        Its window; without keys, the longest call.
        """
        longest = self.call_timeout_seconds * (self.call_retries + 1)
        return longest if self.window_seconds is None else self.window_seconds

    def with_timeout(self, *, timeout_seconds: float, retries: int = 0) -> ProviderProfile:
        """The same provider, called with this timeout and this many retries of the client's own."""
        return replace(self, call_timeout_seconds=timeout_seconds, call_retries=retries)


# Stripe API v1: keys "can be removed ... after they're at least 24 hours old"; a key reused after that is a new request.
# The saved result includes 500s. Source: Stripe API reference, "Idempotent requests", and "Advanced error handling".
STRIPE_V1: Final = ProviderProfile(name="stripe-v1", window_seconds=86_400.0, margin_seconds=3_600.0)

# A provider without idempotency keys: at most once per message; an intent without an answer is held, never called again.
NO_KEYS: Final = ProviderProfile(name="no-keys", window_seconds=None, margin_seconds=0.0)


def idempotency_key(consumer: str, message_id: str, name: str, *, generation: int = 1) -> str:
    """The key of one effect: the same for every attempt and worker, another for every message, consumer and effect.

    44 characters: `ow1:` and 40 hex digits of SHA-256 over the three. A later `generation`, which begins when a person
    decides that the effect did not happen, has a key of its own.
    """
    named = (consumer, message_id, name) if generation == 1 else (consumer, message_id, name, str(generation))
    # Each part with its length before it: else two different triples could be joined to one text.
    parts = "".join(f"{len(part)}:{part}" for part in named)
    return "ow1:" + hashlib.sha256(parts.encode()).hexdigest()[:40]


def read_error(profile: ProviderProfile, error: BaseException) -> Replies:
    """What an exception of the provider's client means.

    Read from the attributes that HTTP clients share (`http_status`, `status_code`, `status` or `code`, `headers`,
    `response`), so that no client is imported: stripe, requests, httpx and urllib have them.

    - a status in the profile's `refusals` (402: the card was declined): a definite refusal, which is an answer.
    - 400 with type `idempotency_error`: the key is known with another request.
    - 409: the key is in flight: later. 429: later.
    - 5xx with `Idempotent-Replayed`: a stored failure that no retry can change.
    - everything else (401, other 4xx, a first 5xx, timeouts, connection errors): nothing definite; it is tried again.
    """
    status = _status(error)
    # A provider without keys is never called twice, so none of its answers may say "later" or "try again".
    keys = profile.window_seconds is not None
    if keys and status == 400 and _is_idempotency_error(error):
        return Mismatch(_describe(error))
    if status in profile.refusals:
        return _refusal(error, status)
    if status is None or not keys:
        return Failed(_describe(error))
    if status in (409, 429):
        return Later(1.0)
    if status >= 500 and _replayed(error):
        return Replayed()
    return Failed(_describe(error))


def _refusal(error: BaseException, status: int | None) -> Answered:
    code = getattr(error, "code", None)
    answer = {
        "type": type(error).__name__,
        "status": status,
        "code": code if isinstance(code, str) else None,
        "message": str(error),
        "body": _body(error),
    }
    return Answered(canonical_json(answer), refused=True)


def _body(error: BaseException) -> Any:
    """What the provider wrote: as JSON where it is that, else as text; None where the client did not keep it."""
    response = getattr(error, "response", None)
    try:
        body = getattr(error, "json_body", None)
        if body is None and response is not None:
            body = response.content
        if body is None and callable(getattr(error, "read", None)):
            body = error.read()  # type: ignore[attr-defined] # urllib's error is its own response
    except Exception:  # noqa: BLE001 - a response that was streamed, read or closed: the refusal stands without its body
        return None
    return None if body is None else _as_json(body)


def _as_json(body: Any) -> Any:
    text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body
    try:
        value = json.loads(text[:BODY_CHARS_MAX]) if isinstance(text, str) else text
        canonical_json(value)
    except (TypeError, ValueError, RecursionError):
        return str(text)[:BODY_CHARS_MAX]
    return value


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    candidates = [getattr(error, name, None) for name in ("http_status", "status_code", "status")]
    # `code` last: urllib keeps the status there, stripe the name of an error.
    candidates += [getattr(response, "status_code", None), getattr(error, "code", None)]
    return next((value for value in candidates if isinstance(value, int) and 100 <= value < 600), None)


def _is_idempotency_error(error: BaseException) -> bool:
    match getattr(error, "json_body", None):
        case {"error": {"type": "idempotency_error"}}:
            return True
    return False


def _replayed(error: BaseException) -> bool:
    headers = getattr(error, "headers", None) or {}
    return any(
        str(name).lower() == "idempotent-replayed" and str(value).lower() == "true" for name, value in dict(headers).items()
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
