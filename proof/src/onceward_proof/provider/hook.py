"""The one seam at which faults strike the provider: a hook is asked at both sides of every request.

`request` is asked once the request is parsed and its API key accepted, before the idempotency layer; `response` once
the effect and its answer are committed, before a byte is sent. Faults on demand (faults.py) and the proof's schedule
are both hooks: the provider knows no other way to fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from onceward_proof.provider.call import Call


class Kind(Enum):
    """What a verdict makes of a request. *Stored* means: under the idempotency key, so that it is replayed."""

    GO = "go"  # nothing: go on
    SLOW = "slow"  # wait `seconds`, or until released, before the effect, the key being in flight
    SLOW_RESPONSE = "slow_response"  # the same wait after the effect is committed and its answer stored
    ERROR_BEFORE = "error_before"  # a 500 is stored and sent; no effect
    ERROR_AFTER = "error_after"  # the effect is committed, but a 500 is stored and sent
    UNSAVED_ERROR = "unsaved_error"  # `status` is sent, and not stored; asked at `response`: the stored answer is intact
    RATE_LIMIT = "rate_limit"  # a 429 is sent, and not stored; no effect
    CUT_AFTER = "cut_after"  # effect committed, answer stored, connection cut without a byte of it
    DROP_REQUEST = "drop_request"  # the connection is cut before anything happened
    HOLD = "hold"  # effect committed, answer stored; sent once released, never if the client leaves


REQUEST_SIDE: Final = frozenset({Kind.SLOW, Kind.ERROR_BEFORE, Kind.ERROR_AFTER, Kind.RATE_LIMIT})
EFFECT_ONLY: Final = frozenset({Kind.ERROR_BEFORE, Kind.ERROR_AFTER})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a request.

    At `request` it may name a fault of the response side: it is carried over.
    """

    kind: Kind = Kind.GO
    seconds: float = 0.0
    status: int = 500


GO: Final = Verdict()


class Hook(Protocol):
    """Decides which requests meet which fault. Both methods may wait; other requests go on meanwhile."""

    async def request(self, call: Call) -> Verdict:
        """Say what is to become of a request that has had no effect yet."""

    async def response(self, call: Call) -> Verdict:
        """Say what is to become of an answer whose effect is committed.

        GO, SLOW_RESPONSE, UNSAVED_ERROR, CUT_AFTER and HOLD mean something here; DROP_REQUEST cuts too; the rest raise
        ValueError, which is a 500 that is not stored.
        """


class Hooks:
    """Several hooks as one: each sees every request; the first that does not say GO decides."""

    def __init__(self, *hooks: Hook) -> None:
        self._hooks = hooks

    async def request(self, call: Call) -> Verdict:
        """Ask each in turn."""
        return _first([await hook.request(call) for hook in self._hooks])

    async def response(self, call: Call) -> Verdict:
        """Ask each in turn, and refuse a verdict that comes too late."""
        verdict = _first([await hook.response(call) for hook in self._hooks])
        if verdict.kind in REQUEST_SIDE:
            raise ValueError(f"{verdict.kind.value} can only be asked for at the request")
        return verdict


def _first(verdicts: list[Verdict]) -> Verdict:
    return next((verdict for verdict in verdicts if verdict.kind is not Kind.GO), GO)
