"""What a worker is told before it starts: where everything is, and how the service is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

Role = Literal["producer", "charge", "ledger", "relay"]
QueueName = Literal["pgmq", "sqs", "sqs-fifo", "rabbitmq", "kafka"]
QUEUE_NAMES: Final[tuple[QueueName, ...]] = get_args(QueueName)
QUEUE_LEASE_SECONDS: Final = 2  # of a delivery; pgmq counts whole seconds, and calls it visibility
QUEUES: Final = {"order.placed": "charges", "order.paid": "bookings"}  # message type -> queue
CONSUMED: Final[dict[Role, str]] = {"charge": "order.placed", "ledger": "order.paid"}  # consumer -> message type
LEASE_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSetting:
    """How the queue is set up, as far as an operator may choose."""

    lease_seconds: int = QUEUE_LEASE_SECONDS
    archive: bool = False  # what is acknowledged is kept in the queue's archive
    double_settle: bool = False  # each ack is sent twice, and confirmed twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every worker of one variant needs to know.

    It goes to the supervisor as JSON: plain values only.

    The times are those of a proof: a lease and a visibility timeout that run out while one watches.
    """

    variant: str
    database: str
    queue_address: str  # of the queues' server: a DSN, where that is a Postgres
    provider_url: str
    queue: QueueName = "pgmq"
    control_socket: str = ""  # "": the worker's line was there before it was forked
    schedule: str = ""  # its file; "": orders and faults go on, and the controller is asked
    is_ablation: bool = False  # a row of the ablation: handlers report, and may be made to fail
    without: tuple[str, ...] = ()  # the layers that are removed
    window_seconds: float | None = None  # the scaled window of the provider's keys; None: the real one, a day
    account: str = "sk_test_proof"
    queues: Mapping[str, str] = field(default_factory=lambda: QUEUES)
    visibility_seconds: int = QUEUE_LEASE_SECONDS
    archive: bool = False
    double_settle: bool = False
    lease_seconds: float = LEASE_SECONDS
    threads: int = 1  # of each consumer process
    prefetch: int = 0  # so many more deliveries wait in it
    is_demo: bool = False  # the card and every point of the library are reported too
    heartbeats: bool = True  # False: those to the queue are lost on the way
    lookup: bool = True  # False: the provider cannot be asked afterwards
    until_empty: bool = False  # the relay ends when nothing is left to send
