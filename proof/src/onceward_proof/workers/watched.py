"""Source, Sink and card that report each boundary that a worker passes.

Every variant gets the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onceward.errors import TransportError
from onceward.message import Message
from onceward.transport import Delivery, Outcome, Received, Settlement, Sink, Source
from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.workers.line import Line
from onceward_proof.workers.reports import Note, Report, Word
from onceward_proof.workers.setting import Setting
from payments.card import Card


class WatchedSource:
    """Any source, whose deliveries are reported and whose acks pass a boundary, one by one.

    It says what a consumer received, and not when the consumer is through with it: that is for `LoopSource` and
    `pool.ThreadSource`.
    """

    def __init__(self, source: Source, line: Line, setting: Setting) -> None:
        self.name = source.name
        self.traits = source.traits
        self._source = source
        self._line = line
        self._heartbeats = setting.heartbeats
        self._double_settle = setting.double_settle
        self._extended: set[str] = set()

    def receive(self, limit: int, wait_seconds: float) -> Received:
        received = self._source.receive(limit, wait_seconds)
        for delivery in received.deliveries:
            self._report(Note.RECEIVED, delivery)
        return received

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        return [self._settle(delivery, settlement) for delivery, settlement in entries]

    def _settle(self, delivery: Delivery, settlement: Settlement) -> Outcome:
        is_ack = settlement.action == "ack"
        # A release is reported, but no fault waits there: a lost ack has the same effect.
        answer = self._report(Boundary.ACK_BEFORE if is_ack else Note.RELEASED, delivery)
        if answer is Answer.LOSE:
            return Outcome.LOST
        outcome = self._source.settle([(delivery, settlement)])[0]
        if is_ack and self._double_settle:
            self._source.settle([(delivery, settlement)])
        if is_ack:
            self._report(Boundary.ACK_AFTER, delivery)
        return outcome

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if not self._heartbeats:
            raise TransportError("the heartbeat was lost on its way to the queue")
        # Only the first of each delivery: a story needs to hear once that its lease is kept.
        for delivery in deliveries:
            if delivery.id not in self._extended:
                self._extended.add(delivery.id)
                self._report(Note.EXTENDED, delivery)
        return self._source.extend(deliveries, seconds)

    def close(self) -> None:
        self._source.close()

    def handled(self, delivery: Delivery) -> None:
        """The delivery has left the worker's hands, whatever became of it."""
        self._report(Note.HANDLED, delivery)

    def _report(self, word: Word, delivery: Delivery) -> Answer:
        name = delivery.headers.get
        report = Report(
            word, message_type=name("type", ""), message_id=name("id", ""), order=name("subject", ""), count=delivery.count,
            delivery=delivery.id,
        )  # fmt: skip
        return self._line.report(report)


class LoopSource(WatchedSource):
    """For the library's loop: what was settled, or could not be, is not in its hands any more."""

    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        try:
            return super().settle(entries)
        finally:
            # All of them: where the queue does not answer for one, the loop leaves the rest to redelivery, too.
            for delivery, _ in entries:
                self.handled(delivery)


class WatchedSink:
    """Any sink, whose publishes pass a boundary before and after.

    A dropped publish is an error to the caller, and so is a lost confirmation: never a false confirmation.
    """

    def __init__(self, sink: Sink, line: Line) -> None:
        self.traits = sink.traits
        self._sink = sink
        self._line = line

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        # All of a batch pass the first side before any is sent, as with a client that sends a batch in one call.
        dropped = [self._report(Boundary.PUBLISH_BEFORE, message) is Answer.DROP for message in messages]
        remaining = [message for message, is_dropped in zip(messages, dropped, strict=True) if not is_dropped]
        errors = iter(self._sink.publish(remaining) if remaining else ())
        return [
            TransportError("the publish was dropped") if is_dropped else self._confirmed(message, next(errors))
            for message, is_dropped in zip(messages, dropped, strict=True)
        ]

    def close(self) -> None:
        self._sink.close()

    def _confirmed(self, message: Message, error: BaseException | None) -> BaseException | None:
        # What the queue refused has not passed: the fault that waits behind a publish waits for one that was stored.
        if error is not None:
            return error
        is_lost = self._report(Boundary.PUBLISH_AFTER, message) is Answer.LOSE
        return TransportError("the confirmation was lost") if is_lost else None

    def _report(self, word: Boundary, message: Message) -> Answer:
        report = Report(word, message_type=message.type, message_id=message.id, order=str(message.subject))
        return self._line.report(report)


class WatchedCard:
    """The card client of a demonstration, where the provider itself reports nothing."""

    def __init__(self, card: Card, line: Line, *, lookup: bool) -> None:
        self._card = card
        self._line = line
        self.find = self._find if lookup else None

    def create(self, request: dict[str, Any], key: str | None) -> dict[str, Any]:
        order = request["transfer_group"]
        self._line.report(Report(Boundary.REQUEST, order=order, key=key))
        charge = self._card.create(request, key)
        self._line.report(Report(Boundary.RESPONSE, order=order, key=key, charge=charge["id"]))
        return charge

    def _find(self, request: dict[str, Any], key: str) -> dict[str, Any] | None:
        charge = self._card.find(request, key)
        self._line.report(Report(Note.FOUND, charge=charge["id"]) if charge else Report(Note.NOT_FOUND))
        return charge
