"""The faults, as data: where each strikes, what it does, and which variant it is meant to hurt.

They strike at boundaries that every variant has (publish, provider request, provider response, ack), at random instants,
and at the servers; at nothing that only hardened code has. A fault whose name begins with `kill` is a SIGKILL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, NamedTuple, get_args

# The three legs of a message's way, and the four gaps between and behind them.
Leg = Literal["dual write", "leg 1", "leg 2", "leg 3", "timeout", "outside effect", "past the window"]
ServerFault = Literal["kill-postgres-app", "kill-postgres-queue"]
TimedFault = ServerFault | Literal["kill-random"]

SLOW_SECONDS: Final = 3.0  # longer than the visibility timeout (2 s)
FREEZE_SECONDS: Final = 3.0  # longer than the lease (1.5 s) and the visibility timeout
FREEZE_SECONDS_MAX: Final = 8.0  # where no other worker took the message over


class Boundary(StrEnum):
    """Where a passage is reported, and a fault may wait: what is passed, and on which side of it."""

    PUBLISH_BEFORE = "publish.before"
    PUBLISH_AFTER = "publish.after"
    REQUEST = "request"
    RESPONSE = "response"
    ACK_BEFORE = "ack.before"
    ACK_AFTER = "ack.after"
    HANDLER_AFTER = "handler.after"


class Place(NamedTuple):
    """One passage that a fault is aimed at: the first of this boundary by this order's message."""

    boundary: Boundary
    message_type: str
    order: str


class Answer(StrEnum):
    """How a process that passes a boundary must go on."""

    GO = "go"
    DROP = "drop"  # it never happens
    LOSE = "lose"  # it happens, and its confirmation is lost
    FAIL = "fail"
    SLOW = "slow"
    CUT = "cut"
    ERROR_BEFORE = "error before"
    ERROR_AFTER = "error after"


class Signal(StrEnum):
    """What is done to the process that passes a boundary."""

    KILL = "kill"
    FREEZE = "freeze"


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    `weight`: its share of all aimed faults; `last`: the order may bear no later fault.
    """

    name: str
    leg: Leg  # the part of a message's way that it strikes
    boundary: Boundary  # of the passage that it strikes at
    message_type: str  # of the message that passes
    action: Signal | Answer
    weight: float
    story: str
    last: bool = False  # some variant loses or holds the order here
    held: bool = False  # hardened holds the order: it is parked, and predicted so


# In the order in which one order meets the boundaries, in every variant: a chain of faults follows it.
_ALL: Final = (
    Fault("kill-before-publish-placed", "dual write", Boundary.PUBLISH_BEFORE, "order.placed", Signal.KILL, 3, last=True,
          story="the publisher is killed between the commit and the publish"),
    Fault("drop-publish-placed", "dual write", Boundary.PUBLISH_BEFORE, "order.placed", Answer.DROP, 2, last=True,
          story="the publish fails: the queue never sees the event"),
    Fault("kill-after-publish-placed", "leg 1", Boundary.PUBLISH_AFTER, "order.placed", Signal.KILL, 3,
          story="the publisher is killed when the queue has the event, before it knows"),
    Fault("lose-publish-ack-placed", "leg 1", Boundary.PUBLISH_AFTER, "order.placed", Answer.LOSE, 2,
          story="the queue stores the event, its confirmation is lost"),
    Fault("kill-at-request", "outside effect", Boundary.REQUEST, "order.placed", Signal.KILL, 4,
          story="the consumer is killed while it asks for the charge: nothing is charged"),
    Fault("error-before-charge", "past the window", Boundary.REQUEST, "order.placed", Answer.ERROR_BEFORE, 1,
          last=True, held=True,
          story="the provider saves a 500 for the key, and has charged nothing: it will replay that 500"),
    Fault("error-after-charge", "past the window", Boundary.REQUEST, "order.placed", Answer.ERROR_AFTER, 1.5,
          story="the provider charges, then saves and sends a 500"),
    Fault("kill-after-charge", "outside effect", Boundary.RESPONSE, "order.placed", Signal.KILL, 5,
          story="the consumer is killed when the card is charged, before it knows"),
    Fault("cut-after-charge", "outside effect", Boundary.RESPONSE, "order.placed", Answer.CUT, 2,
          story="the card is charged, the connection is cut before the answer"),
    Fault("slow-charge", "timeout", Boundary.RESPONSE, "order.placed", Answer.SLOW, 1.5,
          story="the card is charged, the answer comes after the visibility timeout"),
    Fault("freeze-after-charge", "timeout", Boundary.RESPONSE, "order.placed", Signal.FREEZE, 1.5,
          story="the consumer is stopped past its lease when the card is charged, then woken"),
    Fault("kill-before-publish-paid", "dual write", Boundary.PUBLISH_BEFORE, "order.paid", Signal.KILL, 3,
          story="the publisher is killed between the commit and the publish"),
    Fault("drop-publish-paid", "dual write", Boundary.PUBLISH_BEFORE, "order.paid", Answer.DROP, 2, last=True,
          story="the publish fails: the queue never sees the event"),
    Fault("kill-after-publish-paid", "leg 1", Boundary.PUBLISH_AFTER, "order.paid", Signal.KILL, 3,
          story="the publisher is killed when the queue has the event, before it knows"),
    Fault("lose-publish-ack-paid", "leg 1", Boundary.PUBLISH_AFTER, "order.paid", Answer.LOSE, 1.5,
          story="the queue stores the event, its confirmation is lost"),
    Fault("kill-before-ack-charge", "leg 3", Boundary.ACK_BEFORE, "order.placed", Signal.KILL, 5,
          story="the consumer is killed after its commit, before the ack"),
    Fault("lose-ack-charge", "leg 3", Boundary.ACK_BEFORE, "order.placed", Answer.LOSE, 2,
          story="the ack is lost on its way to the queue"),
    Fault("kill-after-ack-charge", "leg 3", Boundary.ACK_AFTER, "order.placed", Signal.KILL, 2,
          story="the consumer is killed just after the ack"),
    Fault("kill-before-ack-ledger", "leg 3", Boundary.ACK_BEFORE, "order.paid", Signal.KILL, 5,
          story="the consumer is killed after its commit, before the ack"),
    Fault("lose-ack-ledger", "leg 3", Boundary.ACK_BEFORE, "order.paid", Answer.LOSE, 2,
          story="the ack is lost on its way to the queue"),
    Fault("kill-after-ack-ledger", "leg 3", Boundary.ACK_AFTER, "order.paid", Signal.KILL, 2,
          story="the consumer is killed just after the ack"),
)  # fmt: skip

AIMED: Final = {fault.name: fault for fault in _ALL}
PASSAGES: Final = {fault.name: index for index, fault in enumerate(_ALL)}

# Aimed by the ablation alone: they need a handler that reports a passage of its own, which only its rows have.
_OF_ABLATION: Final = (
    Fault("swallow-database-error", "leg 3", Boundary.HANDLER_AFTER, "order.paid", Answer.FAIL, 0,
          story="the handler's last statement fails, and the handler swallows the error"),
)  # fmt: skip
BY_NAME: Final = AIMED | {fault.name: fault for fault in _OF_ABLATION}

KILL_RANDOM: Final[Literal["kill-random"]] = "kill-random"
GLOBAL: Final[tuple[ServerFault, ...]] = get_args(ServerFault)
_TIMED: Final[dict[TimedFault, tuple[Leg, str]]] = {
    KILL_RANDOM: ("leg 3", "a worker is killed at a random instant, not at a boundary"),
    "kill-postgres-app": ("leg 3", "the application's database server is killed with all its backends, and restarted"),
    "kill-postgres-queue": ("leg 2", "the queue's database server is killed with all its backends, and restarted"),
}
LEG_OF: Final = {name: fault.leg for name, fault in BY_NAME.items()} | {str(name): leg for name, (leg, _) in _TIMED.items()}
STORIES: Final = {name: fault.story for name, fault in BY_NAME.items()} | {
    str(n): story for n, (_, story) in _TIMED.items()
}


def is_kill(fault: str) -> bool:
    """A fault whose name begins with `kill` is a SIGKILL of a worker or of a server."""
    return fault.startswith("kill")


def kills(counts: Mapping[str, int]) -> int:
    return sum(count for fault, count in counts.items() if is_kill(fault))
