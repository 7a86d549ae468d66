"""A source and a sink around others: to be overridden where something is watched, or goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from onceward.errors import TransportError
from onceward.message import Message
from onceward.transport import Delivery, Outcome, Received, Settlement, Sink, Source, Traits


class SourceAround:
    """Passes everything on to `inner`; settles one by one, so that each ack can be watched."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def receive(self, limit: int, wait_seconds: float) -> Received:
        return self.inner.receive(limit, wait_seconds)

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        return [self.settle_one(delivery, settlement) for delivery, settlement in entries]

    def settle_one(self, delivery: Delivery, settlement: Settlement) -> Outcome:
        return self.inner.settle([(delivery, settlement)])[0]

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        return self.inner.extend(deliveries, seconds)

    def close(self) -> None:
        self.inner.close()


class SinkAround:
    """Passes messages on to `inner`, unless `before` drops one; `after` may lose the confirmation.

    A dropped publish is an error to the caller, and so is a lost confirmation: never a lie.
    """

    def __init__(self, inner: Sink) -> None:
        self.inner = inner

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def before(self, message: Message) -> str:  # noqa: ARG002 - for who overrides it
        """What is to become of it: `drop`, or anything else."""
        return "go"

    def after(self, message: Message) -> str:  # noqa: ARG002 - for who overrides it
        """What is to become of its confirmation: `lose`, or anything else."""
        return "go"

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        dropped = [self.before(message) == "drop" for message in messages]
        going = [message for message, is_dropped in zip(messages, dropped, strict=True) if not is_dropped]
        sent = iter(self.inner.publish(going) if going else ())
        return [
            TransportError("the publish was dropped") if is_dropped else self._confirmed(message, next(sent))
            for message, is_dropped in zip(messages, dropped, strict=True)
        ]

    def _confirmed(self, message: Message, error: BaseException | None) -> BaseException | None:
        return TransportError("the confirmation was lost") if self.after(message) == "lose" else error

    def close(self) -> None:
        self.inner.close()
