"""What a worker has in its hands, as it was heard from outside: the deliveries that a kill of it would leave unsettled."""

from __future__ import annotations

from dataclasses import dataclass, field

from onceward_proof.workers.reports import Point, Report


@dataclass(slots=True)
class Held:
    """One delivery in a worker's hands."""

    order: str
    message_id: str
    outcome: Point | None = None  # what its consumer made of the message
    is_settling: bool = False  # the queue is being told, or was: perhaps it is not in the queue any more


@dataclass(slots=True)
class Hands:
    """The deliveries that one worker has received and is not through with, by the queue's id and count of each."""

    _held: dict[tuple[str, int | None], Held] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def orders(self) -> list[str]:
        return [held.order for held in self._held.values()]

    @property
    def holds_unsettled(self) -> bool:
        """At least one of them is in its queue for certain, and would come again."""
        return any(not held.is_settling for held in self._held.values())

    def receive(self, report: Report) -> None:
        self._held[report.delivery, report.count] = Held(report.order, report.message_id)

    def settling(self, report: Report) -> None:
        """The queue is being told of this delivery."""
        if held := self.of(report):
            held.is_settling = True

    def handled(self, report: Report) -> None:
        """The worker is through with it; a report without a delivery means the oldest of its message."""
        key = (report.delivery, report.count)
        # Of two deliveries of one message, that report may have ended the other one before.
        found = key if key in self._held else self._oldest(report.message_id)
        if found is not None:
            del self._held[found]

    def of(self, report: Report) -> Held | None:
        return self._held.get((report.delivery, report.count))

    def of_message(self, message_id: str) -> Held | None:
        """The oldest delivery of this message: the library's points name the message, not the delivery."""
        key = self._oldest(message_id)
        return None if key is None else self._held[key]

    def _oldest(self, message_id: str) -> tuple[str, int | None] | None:
        return next((key for key, held in self._held.items() if held.message_id == message_id), None)
