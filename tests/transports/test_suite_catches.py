"""Sabotage of adapters: for each fault there is a test of the conformance suite that fails. A suite that cannot is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count

import psycopg
import pytest

from onceward.errors import TransportError
from onceward.message import Message
from onceward.testing.proxy import Proxy
from onceward.testing.transport import OpenRig, Rig, TransportSuite
from onceward.transport import Delivery, Outcome, Received, Settlement, release
from onceward.transports import pgmq

_queues = count(1)


class IgnoresAcks(pgmq.Source):
    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        super().settle([(delivery, s) for delivery, s in entries if s.action != "ack"])
        return [Outcome.SETTLED] * len(entries)


class ReleasesAtOnce(pgmq.Source):
    def settle(self, entries: Sequence[tuple[Delivery, Settlement]]) -> Sequence[Outcome]:
        return super().settle([(delivery, release(0) if s.action == "release" else s) for delivery, s in entries])


class NeverExtends(pgmq.Source):
    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:  # noqa: ARG002
        return [Outcome.SETTLED] * len(deliveries)


class DoesNotCount(pgmq.Source):
    def receive(self, limit: int, wait_seconds: float) -> Received:
        got = super().receive(limit, wait_seconds).deliveries
        return Received([replace(delivery, count=1) for delivery in got])


class GivesTooMany(pgmq.Source):
    def receive(self, limit: int, wait_seconds: float) -> Received:  # noqa: ARG002
        return super().receive(10, wait_seconds)


class AnswersInAnotherOrder(pgmq.Source):
    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        return list(super().extend(deliveries, seconds))[::-1]


class AcksOnReceive(pgmq.Source):
    def receive(self, limit: int, wait_seconds: float) -> Received:
        received = super().receive(limit, wait_seconds)
        self.settle([(delivery, Settlement("ack")) for delivery in received.deliveries])
        return received


class ClaimsToFence(pgmq.Source):
    def __init__(self, queue: str, dsn: str, *, visibility_seconds: int = 1) -> None:
        super().__init__(queue, dsn, visibility_seconds=visibility_seconds)
        self.traits = replace(self.traits, settle_fenced=True)


class SaysExtendedWhateverItIs(pgmq.Source):
    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        super().extend(deliveries, seconds)
        return [Outcome.SETTLED] * len(deliveries)


class AcksWhatItHeldWhenItCloses(pgmq.Source):
    held: list[Delivery]

    def receive(self, limit: int, wait_seconds: float) -> Received:
        received = super().receive(limit, wait_seconds)
        self.held = [*getattr(self, "held", []), *received.deliveries]
        return received

    def close(self) -> None:
        self.settle([(delivery, Settlement("ack")) for delivery in self.held])
        super().close()


class ClaimsAnOrder(pgmq.Source):
    """What was released waits, and what was sent after it comes first."""

    def __init__(self, queue: str, dsn: str, *, visibility_seconds: int = 1) -> None:
        super().__init__(queue, dsn, visibility_seconds=visibility_seconds)
        self.traits = replace(self.traits, ordered=True)

    def receive(self, limit: int, wait_seconds: float) -> Received:
        got = super().receive(limit, wait_seconds).deliveries
        return Received([replace(delivery, order_key=delivery.headers["subject"]) for delivery in got])


class DropsOnReconnect(AcksWhatItHeldWhenItCloses):
    """Its first answer after a lost connection throws away what it held before."""

    lost = False

    def receive(self, limit: int, wait_seconds: float) -> Received:
        if self.lost:
            self.settle([(delivery, Settlement("ack")) for delivery in self.held])
        try:
            return super().receive(limit, wait_seconds)
        except TransportError:
            self.lost = True
            raise


class ConfirmsWhatItDrops(pgmq.Sink):
    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        super().publish(messages[1:])
        return [None] * len(messages)


class ConfirmsBeforeItIsStored(pgmq.Sink):
    """It sends with the next publish, or when it is full."""

    kept: tuple[Message, ...] = ()

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        if self.kept:
            super().publish(self.kept)
        self.kept = tuple(messages)
        return [None] * len(messages)


class StaysAway(pgmq.Sink):
    """Once its connection was lost it never makes another."""

    lost = False

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        if self.lost:
            raise TransportError("away, for ever")
        try:
            return super().publish(messages)
        except TransportError:
            self.lost = True
            raise


class LosesTheEnvelope(pgmq.Sink):
    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        return super().publish([Message(type=m.type, body=m.body, id=m.id) for m in messages])


Test = Callable[[TransportSuite, OpenRig], None]
SOURCES: list[tuple[type[pgmq.Source], Test]] = [
    (IgnoresAcks, TransportSuite.test_what_is_acknowledged_does_not_come_again),
    (ReleasesAtOnce, TransportSuite.test_a_release_with_a_delay_comes_after_it_and_not_before),
    (NeverExtends, TransportSuite.test_a_delivery_that_is_extended_stays_ours_past_its_lease),
    (DoesNotCount, TransportSuite.test_a_release_at_once_comes_at_once),
    (GivesTooMany, TransportSuite.test_a_receive_gives_at_most_its_limit),
    (AnswersInAnotherOrder, TransportSuite.test_an_extension_of_what_was_settled_is_lost),
    (AcksOnReceive, TransportSuite.test_an_extension_of_what_was_settled_is_lost),
    (ClaimsToFence, TransportSuite.test_an_old_delivery_settles_only_what_the_traits_say),
    (SaysExtendedWhateverItIs, TransportSuite.test_an_extension_of_what_was_settled_is_lost),
    (AcksWhatItHeldWhenItCloses, TransportSuite.test_what_a_closed_source_held_comes_to_the_next_one),
    (ClaimsAnOrder, TransportSuite.test_of_one_order_key_nothing_comes_before_what_was_sent_earlier),
    (DropsOnReconnect, TransportSuite.test_after_a_lost_connection_everything_goes_on),
]
SINKS: list[tuple[type[pgmq.Sink], Test]] = [
    (ConfirmsWhatItDrops, TransportSuite.test_a_full_batch_is_published_and_every_entry_confirmed),
    (LosesTheEnvelope, TransportSuite.test_what_is_published_is_received_whole),
    (ConfirmsBeforeItIsStored, TransportSuite.test_what_was_confirmed_is_there_although_its_sink_is_closed_at_once),
    (StaysAway, TransportSuite.test_after_a_lost_connection_everything_goes_on),
]


@pytest.mark.parametrize(("source", "test"), SOURCES, ids=lambda value: value.__name__)
def test_a_broken_source_does_not_pass(source: type[pgmq.Source], test: Test, dsn: str) -> None:
    fails(source, pgmq.Sink, test, dsn)


@pytest.mark.parametrize(("sink", "test"), SINKS, ids=lambda value: value.__name__)
def test_a_broken_sink_does_not_pass(sink: type[pgmq.Sink], test: Test, dsn: str) -> None:
    fails(pgmq.Source, sink, test, dsn)


def fails(source: type[pgmq.Source], sink: type[pgmq.Sink], test: Test, dsn: str) -> None:
    class Suite(TransportSuite):
        def make(self) -> Rig:
            return Rig(lambda: source(queue, proxy.dsn, visibility_seconds=1), lambda: sink(queue, proxy.dsn), cut)

    def cut() -> None:
        proxy.cut()
        proxy.heal()

    queue = f"broken_{next(_queues)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        pgmq.create_queue(conn, queue)
    suite = Suite()
    with Proxy(dsn) as proxy, ExitStack() as stack, pytest.raises(AssertionError):
        test(suite, OpenRig(suite.make(), stack))
