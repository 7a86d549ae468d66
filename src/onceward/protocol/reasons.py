"""Why a message is parked: every reason, what has happened, and what to do. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Self


class ParkReason(Enum):
    """Why a message is parked.

    The value is the text in `parked.reason`: it is data, and never changes. `what_happened` and `what_to_do` are for the
    engineer who is paged, one sentence each.
    """

    what_happened: str
    what_to_do: str

    # The defaults are for mypy alone, which takes `ParkReason("rejected")` for a call of this.
    def __new__(cls, text: str, what_happened: str = "", what_to_do: str = "") -> Self:
        member = object.__new__(cls)
        member._value_ = text
        member.what_happened = what_happened
        member.what_to_do = what_to_do
        return member

    ATTEMPTS_RAN_OUT = (
        "attempts ran out",
        "Its handler failed `attempts_max` times; the detail is the last error, with its traceback.",
        "Fix what the traceback shows, then redrive it.",
    )
    SESSIONS_LOST = (
        "sessions lost",
        "Its handler lost its database session `deliveries_max` times before it could commit.",
        "Find what ends the session (`handler_seconds_max`, a proxy, the server), fix that, then redrive it.",
    )
    POISON = (
        "poison",
        "It was delivered more than `deliveries_max` times without any outcome, so it may crash its worker.",
        "Look for crashes of the worker while it was handled (memory, signals), fix them, then redrive it.",
    )
    REJECTED = (
        "rejected",
        "Its handler raised `Reject`; the detail is the reason that the handler gave.",
        "Do what that reason asks for; redrive it only if the handler would accept it now.",
    )
    REFUSED = (
        "refused",
        "The provider definitely refused an effect, and the handler let `EffectRefused` pass; the detail is the answer.",
        "Deploy a handler that catches the refusal, then redrive it: the recorded refusal is raised again.",
    )
    UNKNOWN = (
        "unknown",
        "An effect may or may not have happened: its key can no longer be sent, and a look-up did not find it.",
        "Ask the provider for the key that `parked show` prints; a redrive only looks it up again, it never calls.",
    )
    ANSWER_IS_NOT_JSON = (
        "answer is not JSON",
        "The provider answered, so the effect may have happened, but the answer is not JSON and was not recorded.",
        "Make the call return plain JSON, give the effect a look-up, then redrive it: it is looked up, not called.",
    )
    EFFECTS_CHANGED = (
        "effects changed",
        "The handler asks for other effects than an earlier attempt recorded (renamed, reordered, left out, changed).",
        "Deploy a handler that asks for the effects that `parked show` lists, in their order, then redrive it.",
    )
    TWO_ANSWERS = (
        "two answers",
        "The provider gave two different answers under one key, so it may have acted twice; the detail has both.",
        "Compare both with the provider, and undo the one that is too many; it cannot be redriven.",
    )
    FOREIGN_COMMIT = (
        "foreign commit",
        "Its handler ended the transaction that was opened for it, so what it wrote may stand.",
        "Remove that COMMIT or ROLLBACK; if none of its writes stands, redrive it with `--checked`.",
    )
    CONFLICT = (
        "conflict",
        "A message with another type or body was taken under the same id before; that one is not affected.",
        "Find the producer that used the id twice; if this message counts, publish it under a new id.",
    )
    OUTSIDE_WINDOW = (
        "outside window",
        "Its id is older than the dedup window, ahead of the clock or without a time: it may be a duplicate.",
        "Find out whether it was handled before; if it never was, publish it under a new id.",
    )
    UNKNOWN_TYPE = (
        "unknown type",
        "This consumer has no handler for its type.",
        "Deploy a handler for it, then redrive it; to leave such types alone, set `other_types='ignore'`.",
    )
    MALFORMED = (
        "malformed",
        "Its envelope is not one of a message (without an id or a type, for example), so it was never taken.",
        "Fix the producer or the bridge that wrote the envelope, and publish the body as a message.",
    )
