"""Queues as Onceward makes them: quorum queues, each with its delay queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from onceward.errors import UsageError
from onceward.transports.rabbitmq.link import Link, ParametersOrFactory, Refused, answered

# One queue for each. A message waits in the first that is not shorter than its delay, for its own delay or, behind one that
# came before it, for at most that queue's: never less than its delay, and never four times as long.
DELAY_LEVELS_SECONDS: Final = tuple(4**n for n in range(8))  # 1 s to 4 h 33 min


class Declaration(NamedTuple):
    """One queue.declare; passive: it only asks whether the queue is there."""

    queue: str
    arguments: Mapping[str, Any] = {}
    passive: bool = False


def create_queue(
    parameters: ParametersOrFactory, name: str, *, dead_letter: str | None = None, delivery_limit: int | None = None
) -> None:
    """The durable quorum queue `name` exists, with its delay queues, and with the queue `dead_letter` where it is given.

    A message that was given back after `delivery_limit` + 1 deliveries goes to the queue `dead_letter`, at least once.
    Without a limit, none does. Raises `UsageError` when such a queue exists with other arguments, or when this user may not
    make queues.

    Crash: what was made stays, and the next call makes the rest. But a node that is killed within seconds of this may lose
    a new queue, and what it has confirmed: make queues some time before they are used.
    """
    if not name or not isinstance(name, str):
        raise UsageError(f"a queue has a name, not {name!r}")
    if delivery_limit is not None and dead_letter is None:
        raise UsageError("with a delivery_limit and no dead_letter queue, RabbitMQ throws away what is over the limit")
    arguments: dict[str, Any] = {}
    declarations = []
    if dead_letter is not None:
        declarations.append(Declaration(dead_letter))
        arguments |= _dead_letter_to(dead_letter)
    if delivery_limit is not None:
        arguments["x-delivery-limit"] = delivery_limit
    declarations += [Declaration(name, arguments), *delay_queues(name)]
    try:
        declare(parameters, declarations)
    except Refused as error:
        raise UsageError(f"the queue {name!r} cannot be made: {error}") from error


def check_queue(parameters: ParametersOrFactory, name: str) -> None:
    """Raises `UsageError` when this queue does not exist, or when this user cannot reach it.

    AMQP does not tell of which type it is.
    """
    try:
        declare(parameters, [Declaration(name, passive=True)])
    except Refused as error:
        raise UsageError(f"there is no queue {name!r} to be used: {error}; make it with `rabbitmq.create_queue`") from error


def _dead_letter_to(queue: str) -> dict[str, Any]:
    # At least once needs a quorum queue that refuses what is too much, instead of dropping its oldest message. By default a
    # message is dead-lettered without a confirm: a crash, or a target that is full, loses it.
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def delay_queue(queue: str, level_seconds: int) -> str:
    return f"{queue}.delay.{level_seconds}s"


def delay_queues(queue: str) -> list[Declaration]:
    return [
        Declaration(delay_queue(queue, level), _dead_letter_to(queue) | {"x-message-ttl": level * 1000})
        for level in DELAY_LEVELS_SECONDS
    ]


def declare(parameters: ParametersOrFactory, declarations: Sequence[Declaration]) -> None:
    """The broker has taken all these. Raises `TransportError`."""
    link = Link(parameters, "queues")
    try:
        link.open()
        # From RabbitMQ 4 on, a queue without a limit has one of 20, and without a dead-letter queue it throws away what is
        # over it. Before, there was none, and this value is refused.
        unlimited = {"x-delivery-limit": -1} if link.server_major >= 4 else {}

        def declaring(channel: Any, answer: Future[None]) -> None:
            for queue, arguments, passive in declarations:
                arguments = {"x-queue-type": "quorum", **unlimited, **arguments}  # noqa: PLW2901
                # Only the last is answered: an error closes the channel.
                last = (lambda _: answered(answer, None)) if queue == declarations[-1].queue else None
                channel.queue_declare(
                    queue, passive=passive, durable=True, arguments=None if passive else arguments, callback=last
                )

        link.ask(declaring, "to queue.declare")
    finally:
        link.close()
        link.join()
