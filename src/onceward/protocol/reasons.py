"""Why a message is parked: every reason, what has happened, and what to do. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Self


class ParkReason(Enum):
    """Why a message is parked.

    The value is the text in `parked.reason`: it is data, and never changes. The others are for the engineer who is paged:
    `what_happened`, `how_to_find_out` what is true now, and `what_ends_it`, the command that ends the message's wait.
    """

    what_happened: str
    how_to_find_out: str
    what_ends_it: str

    # The defaults are for mypy alone, which takes `ParkReason("rejected")` for a call of this.
    def __new__(cls, text: str, what_happened: str = "", how_to_find_out: str = "", what_ends_it: str = "") -> Self:
        member = object.__new__(cls)
        member._value_ = text
        member.what_happened = what_happened
        member.how_to_find_out = how_to_find_out
        member.what_ends_it = what_ends_it
        return member

    ATTEMPTS_RAN_OUT = (
        "attempts ran out",
        "Its handler failed `attempts_max` times; the detail is the last error, with its traceback.",
        "Read the traceback; an effect that `parked show` lists without an answer may have happened.",
        "`redrive`, once the cause is fixed; inside the provider's window a pending effect is sent with the same key.",
    )
    SESSIONS_LOST = (
        "sessions lost",
        "Its handler lost its database session `deliveries_max` times before it could commit.",
        "Look for what ended the session: `handler_seconds_max`, a proxy, the server's log.",
        "`redrive`, once the cause is fixed.",
    )
    POISON = (
        "poison",
        "It was delivered more than `deliveries_max` times without any outcome, so it may crash its worker.",
        "Look for crashes of the worker while the message was handled: memory, signals, the platform's log.",
        "`redrive`, once the cause is fixed; `discard`, if its body can never be handled.",
    )
    REJECTED = (
        "rejected",
        "Its handler raised `Reject`; the detail is the reason that the handler gave.",
        "Do what that reason asks for.",
        "`redrive`, if the handler would accept it now; else `discard`.",
    )
    REFUSED = (
        "refused",
        "The provider definitely refused an effect, and the handler let `EffectRefused` pass; the detail is the answer.",
        "Nothing happened at the provider; whether it would accept the effect now, its customer can tell.",
        "`settle --did-not-happen`, to ask once more under a new key; `redrive` with a handler that catches it; `discard`.",
    )
    UNKNOWN = (
        "unknown",
        "An effect may or may not have happened: its key can no longer be sent, and a look-up did not find it.",
        "Ask the provider, in its dashboard or its support, for the key that `parked show` prints.",
        "`settle --answer JSON` if it happened, `settle --did-not-happen` if it did not; `redrive` only looks it up again.",
    )
    ANSWER_IS_NOT_JSON = (
        "answer is not JSON",
        "The provider answered, so the effect may have happened, but the answer is not JSON and was not recorded.",
        "The detail holds what was answered; ask the provider for the key that `parked show` prints.",
        "`settle --answer JSON`; or `redrive`, once the call returns plain JSON: it is looked up, not called.",
    )
    EFFECTS_CHANGED = (
        "effects changed",
        "The handler asks for other effects than an earlier attempt recorded (renamed, reordered, left out, changed).",
        "Compare the effects that `parked show` lists with those that the deployed handler asks for.",
        "`redrive`, once a handler is deployed that asks for the recorded effects, in their order.",
    )
    TWO_ANSWERS = (
        "two answers",
        "The provider gave two different answers for one effect, so it may have acted twice; the detail has both.",
        "Compare both with the provider, and undo there the one that is not recorded.",
        "`settle --answer` with the recorded answer; `discard`, if the message is done beside it.",
    )
    ANSWERED_AFTER_DISCARD = (
        "answered after discard",
        "A call that was under way when somebody discarded the message has been answered, so its effect did happen.",
        "The detail holds the answer; the decision is in `parked decisions`.",
        "Undo the effect at the provider, or book it by hand; then `discard`.",
    )
    FOREIGN_COMMIT = (
        "foreign commit",
        "Its handler ended the transaction that was opened for it, so what it wrote may stand.",
        "Look in your tables whether its writes stand; remove that COMMIT or ROLLBACK from the handler.",
        "`redrive --checked`, if none of its writes stands; `discard`, if all of them do.",
    )
    CONFLICT = (
        "conflict",
        "A message with another type or body was taken under the same id before; that one is not affected.",
        "Find the producer that used the id twice, and which of the two bodies is right.",
        "Publish it under a new id, if it counts; then `discard`.",
    )
    OUTSIDE_WINDOW = (
        "outside window",
        "Its id is older than the dedup window, ahead of the clock or without a time: it may be a duplicate.",
        "Look in your tables whether it was handled before.",
        "Publish it under a new id, if it never was; then `discard`.",
    )
    UNKNOWN_TYPE = (
        "unknown type",
        "This consumer has no handler for its type.",
        "Find out which release has, or should have, a handler for it.",
        "`redrive`, once that is deployed; else `discard`, and set `other_types='ignore'` to leave such types alone.",
    )
    MALFORMED = (
        "malformed",
        "Its envelope is not one of a message (without an id or a type, for example), so it was never taken.",
        "Look at its headers for the producer, or the bridge, that wrote them.",
        "Publish the body as a message, once that is fixed; then `discard`.",
    )
