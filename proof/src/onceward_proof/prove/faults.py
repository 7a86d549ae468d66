"""The faults, as data: where each strikes, what it does, and which variant it is meant to hurt.

They strike at boundaries that every variant has (placing an order, publish, provider request, provider response, ack), at
random instants, and at the servers; at nothing that only hardened code has. A fault whose name begins with `kill` is a
SIGKILL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, NamedTuple

from onceward_proof.workers.setting import QUEUE_NAMES, QueueName, Role

Harm = Literal["charged twice", "lost", "booked twice"]
# The variants that some fault is expected to harm. Which others there are, prove/variants.py knows.
Harmed = Literal["naive", "resend", "ack-first", "textbook"]
# The three legs of a message's way, and the four gaps between and behind them.
Leg = Literal["dual write", "leg 1", "leg 2", "leg 3", "timeout", "outside effect", "past the window"]
ServerFault = Literal["kill-postgres-app", "kill-postgres-queue", "kill-broker"]
TimedFault = ServerFault | Literal["kill-random", "redrive"]

# Longer than a queue leaves a delivery to its consumer (2 s): the visibility timeout, RabbitMQ's consumer timeout, Kafka's
# max.poll.interval.ms.
SLOW_SECONDS: Final = 3.0
FREEZE_SECONDS: Final = 3.0  # longer than the lease (1.5 s) and the visibility timeout
FREEZE_SECONDS_MAX: Final = 8.0  # where no other worker took the message over
# Placing an order takes a few ms, publish included: the producer dies before, in or after each of its steps.
PLACING_MS_MAX: Final = 8.0


class Boundary(StrEnum):
    """Where a passage is reported, and a fault may wait: what is passed, and on which side of it."""

    PLACING = "placing"
    PUBLISH_BEFORE = "publish.before"
    PUBLISH_AFTER = "publish.after"
    REQUEST = "request"
    RESPONSE = "response"
    ACK_BEFORE = "ack.before"
    ACK_AFTER = "ack.after"
    HANDLER_AFTER = "handler.after"


# What is seen to pass without the service's help: the harness gives the orders, and the provider is the harness's own.
OUTSIDE: Final = frozenset({Boundary.PLACING, Boundary.REQUEST, Boundary.RESPONSE})


class Place(NamedTuple):
    """One passage that a fault is aimed at: the first of this boundary by this order's message."""

    boundary: Boundary
    message_type: str
    order: str


class Answer(StrEnum):
    """How a process that passes a boundary must go on."""

    GO = "go"
    GO_TO_THE_END = "go to the end"  # with this order, and no further: a kill is on its way
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


class Wire(StrEnum):
    """What is done to the connection between the process that passes a boundary and the queue's server."""

    CUT_AT_ACK = "cut at ack"  # with the ack under way: the server never sees it


EVERY_QUEUE: Final[frozenset[QueueName]] = frozenset(QUEUE_NAMES)


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    `weight`: its share of all aimed faults; `last`: the order may bear no later fault. `harms`: whom it is expected to
    harm, and how; where that is neither naive nor resend, `why` says what it is there for. `delay_ms`: so long after the
    passage, as the schedule drew it.
    """

    name: str
    leg: Leg  # the part of a message's way that it strikes
    boundary: Boundary  # of the passage that it strikes at
    message_type: str  # of the message that passes
    action: Signal | Answer | Wire
    weight: float
    story: str
    last: bool = False  # some variant loses or holds the order here
    held: bool = False  # hardened holds the order: it is parked, and predicted so
    harms: Mapping[Harmed, Harm] = field(default_factory=dict)
    why: str = ""
    delay_ms_max: float = 0.0  # it strikes at a random instant of so many ms after the passage
    delay_ms: float = 0.0
    queues: frozenset[QueueName] = EVERY_QUEUE  # where it can happen

    @property
    def is_control(self) -> bool:
        """It harms neither naive nor resend: another figure than 0 there would be the harness's own doing."""
        return not {"naive", "resend"} & set(self.harms)


# Naive and resend differ only in what they do when no confirmation comes.
_CHARGED: Final[Mapping[Harmed, Harm]] = {"naive": "charged twice", "resend": "charged twice"}
_BOOKED: Final[Mapping[Harmed, Harm]] = {"naive": "booked twice", "resend": "booked twice"}
_LOST: Final[Mapping[Harmed, Harm]] = {"naive": "lost", "resend": "lost"}
# In Kafka the next commit of the partition says all that a lost one would have said: nothing comes of it.
_ACKS_ONE_BY_ONE: Final = EVERY_QUEUE - {"kafka"}
# Where the proof has a recorder between the workers and the server: it sees the ack coming, and cuts the connection.
_BEHIND_RECORDER: Final[frozenset[QueueName]] = frozenset({"sqs", "sqs-fifo", "rabbitmq"})

# In the order in which one order meets the boundaries, in every variant: a chain of faults follows it.
_ALL: Final = (
    Fault("kill-while-placing", "dual write", Boundary.PLACING, "order.placed", Signal.KILL, 2.5, last=True,
          story="the producer is killed at a random instant while it places the order",
          harms=_LOST, delay_ms_max=PLACING_MS_MAX),
    Fault("kill-before-publish-placed", "dual write", Boundary.PUBLISH_BEFORE, "order.placed", Signal.KILL, 3, last=True,
          story="the publisher is killed between the commit and the publish",
          harms=_LOST),
    Fault("drop-publish-placed", "dual write", Boundary.PUBLISH_BEFORE, "order.placed", Answer.DROP, 2, last=True,
          story="the publish fails: the queue never sees the event",
          harms={"naive": "lost"}),
    Fault("kill-after-publish-placed", "leg 1", Boundary.PUBLISH_AFTER, "order.placed", Signal.KILL, 3,
          story="the publisher is killed when the queue has the event, before it knows",
          why="a restarted producer finds its order in the database; hardened's relay sends again, under the same id"),
    Fault("lose-publish-ack-placed", "leg 1", Boundary.PUBLISH_AFTER, "order.placed", Answer.LOSE, 2,
          story="the queue stores the event, its confirmation is lost",
          harms={"resend": "charged twice"}),
    Fault("kill-at-request", "outside effect", Boundary.REQUEST, "order.placed", Signal.KILL, 4,
          story="the consumer is killed while it asks for the charge: nothing is charged",
          harms={"ack-first": "lost", "textbook": "lost"},
          why="charging again is right here: what is wrong is a consumer that does not come back to it"),
    Fault("error-before-charge", "past the window", Boundary.REQUEST, "order.placed", Answer.ERROR_BEFORE, 1,
          last=True, held=True,
          story="the provider saves a 500 for the key, and has charged nothing: it will replay that 500",
          harms={"ack-first": "lost", "textbook": "lost"},
          why="a fresh key charges at last, at the price of all the rows below; hardened holds the order, as is predicted"),
    Fault("error-after-charge", "past the window", Boundary.REQUEST, "order.placed", Answer.ERROR_AFTER, 1.5,
          story="the provider charges, then saves and sends a 500",
          harms=_CHARGED),
    Fault("kill-after-charge", "outside effect", Boundary.RESPONSE, "order.placed", Signal.KILL, 5,
          story="the consumer is killed when the card is charged, before it knows",
          harms=_CHARGED),
    Fault("cut-after-charge", "outside effect", Boundary.RESPONSE, "order.placed", Answer.CUT, 2,
          story="the card is charged, the connection is cut before the answer",
          harms=_CHARGED),
    Fault("slow-charge", "timeout", Boundary.RESPONSE, "order.placed", Answer.SLOW, 1.5,
          story="the card is charged, the answer comes after the time for which the queue leaves a delivery to a consumer",
          harms=_CHARGED),
    Fault("freeze-after-charge", "timeout", Boundary.RESPONSE, "order.placed", Signal.FREEZE, 1.5,
          story="the consumer is stopped past its lease when the card is charged, then woken",
          harms=_CHARGED),
    Fault("kill-before-publish-paid", "dual write", Boundary.PUBLISH_BEFORE, "order.paid", Signal.KILL, 3,
          story="the publisher is killed between the commit and the publish",
          harms=_CHARGED),
    Fault("drop-publish-paid", "dual write", Boundary.PUBLISH_BEFORE, "order.paid", Answer.DROP, 2, last=True,
          story="the publish fails: the queue never sees the event",
          harms={"naive": "lost"}),
    Fault("kill-after-publish-paid", "leg 1", Boundary.PUBLISH_AFTER, "order.paid", Signal.KILL, 3,
          story="the publisher is killed when the queue has the event, before it knows",
          harms=_CHARGED),
    Fault("lose-publish-ack-paid", "leg 1", Boundary.PUBLISH_AFTER, "order.paid", Answer.LOSE, 1.5,
          story="the queue stores the event, its confirmation is lost",
          harms={"resend": "booked twice"}),
    Fault("kill-before-ack-charge", "leg 3", Boundary.ACK_BEFORE, "order.placed", Signal.KILL, 5,
          story="the consumer is killed after its commit, before the ack",
          harms=_CHARGED),
    Fault("lose-ack-charge", "leg 3", Boundary.ACK_BEFORE, "order.placed", Answer.LOSE, 2,
          story="the ack is lost on its way to the queue",
          harms=_CHARGED, queues=_ACKS_ONE_BY_ONE),
    Fault("cut-at-ack-charge", "leg 3", Boundary.ACK_BEFORE, "order.placed", Wire.CUT_AT_ACK, 2,
          story="the connection to the queue is cut between the commit and the ack",
          harms=_CHARGED, queues=_BEHIND_RECORDER),
    Fault("kill-after-ack-charge", "leg 3", Boundary.ACK_AFTER, "order.placed", Signal.KILL, 2,
          story="the consumer is killed just after the ack",
          harms={"ack-first": "lost"},
          why="after an ack there must be nothing left to do"),
    Fault("kill-before-ack-ledger", "leg 3", Boundary.ACK_BEFORE, "order.paid", Signal.KILL, 5,
          story="the consumer is killed after its commit, before the ack",
          harms=_BOOKED),
    Fault("lose-ack-ledger", "leg 3", Boundary.ACK_BEFORE, "order.paid", Answer.LOSE, 2,
          story="the ack is lost on its way to the queue",
          harms=_BOOKED, queues=_ACKS_ONE_BY_ONE),
    Fault("cut-at-ack-ledger", "leg 3", Boundary.ACK_BEFORE, "order.paid", Wire.CUT_AT_ACK, 2,
          story="the connection to the queue is cut between the commit and the ack",
          harms=_BOOKED, queues=_BEHIND_RECORDER),
    Fault("kill-after-ack-ledger", "leg 3", Boundary.ACK_AFTER, "order.paid", Signal.KILL, 2,
          story="the consumer is killed just after the ack",
          harms={"ack-first": "lost"},
          why="after an ack there must be nothing left to do"),
)  # fmt: skip


def aimed_faults(queue: QueueName) -> dict[str, Fault]:
    """Those that can happen on this queue."""
    return {fault.name: fault for fault in _ALL if queue in fault.queues}


AIMED: Final = aimed_faults("pgmq")  # what the kept evidence is about
PASSAGES: Final = {fault.name: index for index, fault in enumerate(_ALL)}

# Aimed by the ablation alone: they need a handler that reports a passage of its own, which only its rows have.
_OF_ABLATION: Final = (
    Fault("swallow-database-error", "leg 3", Boundary.HANDLER_AFTER, "order.paid", Answer.FAIL, 0,
          story="the handler's last statement fails, and the handler swallows the error"),
)  # fmt: skip
BY_NAME: Final = {fault.name: fault for fault in (*_ALL, *_OF_ABLATION)}

KILL_RANDOM: Final[Literal["kill-random"]] = "kill-random"
REDRIVE: Final[Literal["redrive"]] = "redrive"


def server_faults(queue: QueueName) -> tuple[ServerFault, ...]:
    """Those that strike the servers of a run on this queue."""
    return ("kill-postgres-app", "kill-postgres-queue" if queue == "pgmq" else "kill-broker")


def timed_faults(queue: QueueName) -> tuple[TimedFault, ...]:
    """Those that are keyed to a count of progress, on this queue."""
    redrive: tuple[TimedFault, ...] = (REDRIVE,) if queue == "sqs" else ()
    return (KILL_RANDOM, *server_faults(queue), *redrive)


GLOBAL: Final = server_faults("pgmq")
_TIMED: Final[dict[TimedFault, tuple[Leg, str]]] = {
    KILL_RANDOM: ("leg 3", "a worker is killed at a random instant, not at a boundary"),
    "kill-postgres-app": ("leg 3", "the application's database server is killed with all its backends, and restarted"),
    "kill-postgres-queue": ("leg 2", "the queue's database server is killed with all its backends, and restarted"),
    "kill-broker": ("leg 2", "the broker is killed, and restarted"),
    REDRIVE: (
        "leg 2",
        "somebody redrives a message that was processed: the queue sends it again, under another id of its own",
    ),
}
LEG_OF: Final = {name: fault.leg for name, fault in BY_NAME.items()} | {str(name): leg for name, (leg, _) in _TIMED.items()}
STORIES: Final = {name: fault.story for name, fault in BY_NAME.items()} | {
    str(n): story for n, (_, story) in _TIMED.items()
}


# Who passes a boundary: in naive and what repairs only its consumer, and in hardened.
_PASSERS: Final[dict[tuple[Boundary, str], tuple[Role, Role]]] = {
    (Boundary.PLACING, "order.placed"): ("producer", "producer"),
    (Boundary.PUBLISH_BEFORE, "order.placed"): ("producer", "relay"),
    (Boundary.PUBLISH_AFTER, "order.placed"): ("producer", "relay"),
    (Boundary.REQUEST, "order.placed"): ("charge", "charge"),
    (Boundary.RESPONSE, "order.placed"): ("charge", "charge"),
    (Boundary.PUBLISH_BEFORE, "order.paid"): ("charge", "relay"),
    (Boundary.PUBLISH_AFTER, "order.paid"): ("charge", "relay"),
    (Boundary.ACK_BEFORE, "order.placed"): ("charge", "charge"),
    (Boundary.ACK_AFTER, "order.placed"): ("charge", "charge"),
    (Boundary.ACK_BEFORE, "order.paid"): ("ledger", "ledger"),
    (Boundary.ACK_AFTER, "order.paid"): ("ledger", "ledger"),
}


_MET: Final[dict[str, tuple[str, str]]] = {
    KILL_RANDOM: ("charge or ledger", "charge, ledger or relay"),
    "kill-postgres-app": ("the service's server", "the service's server"),
    "kill-postgres-queue": ("the queue's server", "the queue's server"),
    "kill-broker": ("the queue's server", "the queue's server"),
    REDRIVE: ("charge", "charge"),
}


def struck(fault: str) -> tuple[str, str]:
    """What it strikes: in naive and what repairs only its consumer, and in hardened."""
    aimed = BY_NAME.get(fault)
    return _PASSERS[aimed.boundary, aimed.message_type] if aimed else _MET[fault]


def strikes_from_outside(fault: str) -> bool:
    """It also reaches a service that nothing of the proof is wrapped around."""
    aimed = BY_NAME.get(fault)
    return aimed is None or aimed.boundary in OUTSIDE


def is_kill(fault: str) -> bool:
    """A fault whose name begins with `kill` is a SIGKILL of a worker or of a server."""
    return fault.startswith("kill")


def kills(counts: Mapping[str, int]) -> int:
    return sum(count for fault, count in counts.items() if is_kill(fault))
