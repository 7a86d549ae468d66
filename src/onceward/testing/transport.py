"""The conformance suite of the transport contract: it reads an adapter's declared `Traits`, and holds it to them.

    class TestMyQueue(TransportSuite):
        def make(self) -> Rig:
            queue = a_fresh_and_empty_queue()
            return Rig(source=lambda: MySource(queue), sink=lambda: MySink(queue))

Make the source's lease short (a second or two): several tests wait for it to run out. Give `cut` too where the connections
go through something that can be cut (`onceward.testing.proxy`). Needs pytest.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pytest

from onceward.message import Message
from onceward.transport import ACK, LEAVE, Delivery, Outcome, Sink, Source, Traits, release

__all__ = ["OpenRig", "Rig", "TransportSuite"]

SECONDS_MAX: Final = 10.0
LARGE_BYTES: Final = 3 * 1024 * 1024
SETTLED: Final = Outcome.SETTLED
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODIES: Final = {
    "JSON": b'{"amount":100}',
    "empty": b"",
    "NUL": b"a\x00b",
    "not UTF-8": bytes(range(256)),
    "escaped NUL": b'{"text":"\\u0000"}',
    "200 KB": b"\x00\xff" * 100_000,
}


@dataclass(frozen=True, slots=True)
class Rig:
    """A fresh, empty queue. Each call of `source` opens one more consumer of it; `sink` opens what sends to it.

    `cut` breaks every connection to the queue that is open; new ones can be made at once. Without it, the tests of lost
    connections are skipped.
    """

    source: Callable[[], Source]
    sink: Callable[[], Sink]
    cut: Callable[[], None] | None = None


class OpenRig:
    """What a test uses: everything that it opens is closed at its end."""

    def __init__(self, rig: Rig, stack: ExitStack) -> None:
        self._rig = rig
        self._stack = stack
        self.sink = self.another_sink()

    def source(self) -> Source:
        source = self._rig.source()
        self._stack.callback(source.close)
        return source

    def another_sink(self) -> Sink:
        sink = self._rig.sink()
        self._stack.callback(sink.close)
        return sink

    def cut(self) -> None:
        """Every connection that is open breaks; the test is skipped where that cannot be had."""
        if self._rig.cut is None:
            pytest.skip("this rig does not say how its connections are cut")
        self._rig.cut()

    def publish(self, *messages: Message) -> None:
        """Each is confirmed."""
        errors = self.sink.publish(list(messages))
        check(list(errors) == [None] * len(messages), f"a publish was not confirmed: {errors}")


class TransportSuite(ABC):
    """Derive, name it `Test...`, and give `make`. Every test gets a rig of its own."""

    @abstractmethod
    def make(self) -> Rig:
        """A fresh and empty queue."""

    @pytest.fixture
    def rig(self) -> Iterator[OpenRig]:
        with ExitStack() as stack:
            yield OpenRig(self.make(), stack)

    def test_what_is_published_is_received_whole(self, rig: OpenRig) -> None:
        sent = a_message(subject="customer/42 \u00fc \u2603", traceparent=TRACEPARENT)
        rig.publish(sent)
        source = rig.source()
        got = receive_one(source)
        check(Message.from_wire(got.headers, got.body) == sent, f"{got} is not {sent.to_wire()}")
        check(got.source == source.name != "", "a delivery names its source")
        check(got.id not in ("", sent.id), "a delivery has an id of its own, which is not the message's")

    @pytest.mark.parametrize("kind", BODIES)
    def test_a_body_is_bytes_and_comes_back_as_it_was(self, rig: OpenRig, kind: str) -> None:
        rig.publish(a_message(body=BODIES[kind]))
        check(receive_one(rig.source()).body == BODIES[kind], f"another body came back for {kind}")

    def test_an_empty_queue_gives_nothing(self, rig: OpenRig) -> None:
        source = rig.source()
        for wait_seconds in (0, 0.1):
            received = source.receive(10, wait_seconds)
            check(not received.deliveries and not received.lost, f"an empty queue gave {received}")

    def test_a_receive_that_waits_is_woken_by_a_publish(self, rig: OpenRig) -> None:
        source, sent = rig.source(), a_message()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(receive_one, source)
            rig.publish(sent)
            check(waiting.result().headers["id"] == sent.id, "another message came")

    def test_a_receive_gives_at_most_its_limit(self, rig: OpenRig) -> None:
        rig.publish(*[a_message() for _ in range(5)])
        source = rig.source()
        check(not source.receive(0, 0).deliveries, "a receive with limit 0 gave a delivery")
        got = receive_all(source, 5, limit=2)
        check(len({delivery.headers["id"] for delivery in got}) == 5, "a delivery came twice within its lease")

    def test_a_full_batch_is_published_and_every_entry_confirmed(self, rig: OpenRig) -> None:
        sent = [a_message() for _ in range(min(rig.sink.traits.publish_max, 100))]
        rig.publish(*sent)
        got = receive_all(rig.source(), len(sent))
        check({d.headers["id"] for d in got} == {m.id for m in sent}, "what came is not what was sent")

    def test_a_batch_of_large_entries_is_published_whole(self, rig: OpenRig) -> None:
        """Together they are more than one request may hold: to cut them up is the adapter's task."""
        size = min(rig.sink.traits.body_bytes_max or LARGE_BYTES, LARGE_BYTES)
        sent = [a_message(body=bytes([n]) * size) for n in range(min(rig.sink.traits.publish_max, 6))]
        rig.publish(*sent)
        got = receive_all(rig.source(), len(sent))
        check({d.headers["id"]: d.body for d in got} == {m.id: m.body for m in sent}, "a large entry came back otherwise")

    def test_an_entry_that_is_too_large_is_refused_alone(self, rig: OpenRig) -> None:
        fine = [a_message(), a_message()]
        errors = rig.sink.publish([fine[0], too_large_for(rig.sink), fine[1]])
        check([error is None for error in errors] == [True, False, True], f"one entry was too large: {errors}")
        got = receive_all(rig.source(), 2)
        check({d.headers["id"] for d in got} == {m.id for m in fine}, "the entries beside it were not sent")

    def test_behind_an_entry_that_is_refused_its_subject_waits(self, rig: OpenRig) -> None:
        before, behind, other = a_message(subject="a"), a_message(subject="a"), a_message(subject="b")
        errors = rig.sink.publish([before, too_large_for(rig.sink, subject="a"), behind, other])
        check([error is None for error in errors] == [True, False, False, True], f"the refused one was overtaken: {errors}")
        got = receive_all(rig.source(), 2)
        check({d.headers["id"] for d in got} == {before.id, other.id}, "what was refused is not what was not sent")

    def test_two_sources_share_the_queue(self, rig: OpenRig) -> None:
        sent = [a_message() for _ in range(6)]
        rig.publish(*sent)
        sources = rig.source(), rig.source()
        seen: list[str] = []

        def both() -> bool:
            for source in sources:
                seen.extend(delivery.headers["id"] for delivery in source.receive(1, 0).deliveries)
            return len(seen) >= 6

        until(both, "six deliveries")
        check(sorted(seen) == sorted(message.id for message in sent), "one was lost, or came to both")

    def test_what_is_acknowledged_does_not_come_again(self, rig: OpenRig) -> None:
        rig.publish(a_message())
        source = rig.source()
        check(source.settle([(receive_one(source), ACK)]) == [SETTLED], "an ack in time was refused")
        check(not received_within(source, lease_of(source) + 1), "an acknowledged message came again")
        source.close()
        check(not received_within(rig.source(), 1.0), "an acknowledged message came again to the next source")

    def test_what_is_not_settled_comes_again_when_its_lease_is_over(self, rig: OpenRig) -> None:
        sent = a_message()
        rig.publish(sent)
        source = rig.source()
        first = receive_one(source)
        check(list(source.settle([(first, LEAVE)])) == [SETTLED], "`leave` has nothing to refuse")
        if source.traits.lease_seconds is None:
            # Nothing runs out here: what a source holds is its own until it is gone.
            source.close()
            source = rig.source()
        again = receive_one(source, lease_of(source) + SECONDS_MAX)
        check((again.headers["id"], again.body) == (sent.id, sent.body), "another message came")
        self._check_counts([first, again], source.traits)

    def test_a_release_at_once_comes_at_once(self, rig: OpenRig) -> None:
        rig.publish(a_message())
        source = rig.source()
        first = receive_one(source)
        check(list(source.settle([(first, release(0))])) == [SETTLED], "a release in time was refused")
        began = time.monotonic()
        again = receive_one(source)
        # At once, and not when its lease would have been over anyhow.
        check(time.monotonic() - began < max(1.0, lease_of(source)), "it came only when its lease was over")
        self._check_counts([first, again], source.traits)

    def test_a_release_with_a_delay_comes_after_it_and_not_before(self, rig: OpenRig) -> None:
        rig.publish(a_message())
        source = rig.source()
        delay_seconds = max(1.0, source.traits.delay_step_seconds)
        began = time.monotonic()
        source.settle([(receive_one(source), release(delay_seconds))])
        receive_one(source, delay_seconds + SECONDS_MAX)
        waited = time.monotonic() - began
        # A tenth of grace: the queue's clock and this one are not the same.
        check(waited >= delay_seconds - 0.1, f"released for {delay_seconds} s, it came after {waited:.2f} s")

    def test_each_entry_of_a_settle_has_its_own_outcome_in_order(self, rig: OpenRig) -> None:
        rig.publish(*[a_message(body=name.encode()) for name in ("ack", "release", "leave")])
        source = rig.source()
        got = {delivery.body.decode(): delivery for delivery in receive_all(source, 3)}
        entries = [(got["leave"], LEAVE), (got["ack"], ACK), (got["release"], release(0))]
        check(list(source.settle(entries)) == [SETTLED] * 3, "not every entry was settled")
        check(receive_one(source).body == b"release", "what was released is not what came")

    def test_settling_twice_is_harmless(self, rig: OpenRig) -> None:
        rig.publish(a_message(body=b"first"))
        source = rig.source()
        first = receive_one(source)
        source.settle([(first, ACK)])
        rig.publish(a_message(body=b"second"))
        for settlement in (ACK, release(0), LEAVE):
            check(len(source.settle([(first, settlement)])) == 1, "one entry has one outcome")
        check(receive_one(source).body == b"second", "another message was settled in its place")

    def test_an_old_delivery_settles_only_what_the_traits_say(self, rig: OpenRig) -> None:
        rig.publish(a_message())
        source = rig.source()
        if not source.traits.settle_fenced:
            pytest.skip("this transport declares that an old delivery may settle a newer one")
        old = receive_one(source)
        if source.traits.lease_seconds is None:
            source.settle([(old, release(0))])
        new = receive_one(source, lease_of(source) + SECONDS_MAX)
        check(list(source.settle([(old, ACK)])) == [Outcome.LOST], "an old delivery was settled")
        check(list(source.settle([(new, ACK)])) == [SETTLED], "the newer delivery was settled by the old one")

    def test_nothing_to_do_is_done_at_once(self, rig: OpenRig) -> None:
        source = rig.source()
        outcomes: list[object] = [*source.settle([]), *source.extend([], 1), *rig.sink.publish([])]
        check(not outcomes, f"of nothing there is no outcome: {outcomes}")

    def test_a_delivery_that_is_extended_stays_ours_past_its_lease(self, rig: OpenRig) -> None:
        rig.publish(a_message())
        source, other = rig.source(), rig.source()
        lease_seconds = lease_of(source)
        held = receive_one(source)
        check(list(source.extend([held], 4 * lease_seconds + 4)) == [SETTLED], "an extension in time was refused")
        check(not received_within(other, lease_seconds + 1), "it was delivered again while its lease was extended")
        check(list(source.settle([(held, ACK)])) == [SETTLED], "the ack of an extended delivery was refused")

    def test_an_extension_of_what_was_settled_is_lost(self, rig: OpenRig) -> None:
        rig.publish(a_message(), a_message())
        source = rig.source()
        settled, held = receive_all(source, 2)
        source.settle([(settled, ACK)])
        check(list(source.extend([settled, held], 2)) == [Outcome.LOST, SETTLED], "one of two was settled before")

    def test_settle_and_extend_work_while_another_thread_waits_in_receive(self, rig: OpenRig) -> None:
        rig.publish(a_message(), a_message())
        source = rig.source()
        first, second = receive_all(source, 2)
        with ThreadPoolExecutor(3) as pool:
            waiting = pool.submit(source.receive, 1, 2.0)
            began = time.monotonic()
            extended = pool.submit(source.extend, [second], 30)
            settled = pool.submit(source.settle, [(first, ACK)])
            check([*extended.result(), *settled.result()] == [SETTLED] * 2, "refused while a receive was waiting")
            # Well below the two seconds for which the receive waits.
            check(time.monotonic() - began < 1.5, "they stood behind a receive that was waiting")
            check(not waiting.result().deliveries, "the queue should be empty")

    def test_settling_from_many_threads_settles_each(self, rig: OpenRig) -> None:
        rig.publish(*[a_message() for _ in range(16)])
        source = rig.source()
        got = receive_all(source, 16)
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(lambda delivery: source.settle([(delivery, ACK)]), got))
        check(outcomes == [[SETTLED]] * 16, f"not every one was settled: {outcomes}")

    def test_what_a_closed_source_held_comes_to_the_next_one(self, rig: OpenRig) -> None:
        sent = [a_message(), a_message()]
        rig.publish(*sent)
        source = rig.source()
        receive_all(source, 2)
        source.close()
        got = receive_all(rig.source(), 2, lease_of(source) + SECONDS_MAX)
        check({d.headers["id"] for d in got} == {m.id for m in sent}, "what it held is gone")

    def test_what_was_confirmed_is_there_although_its_sink_is_closed_at_once(self, rig: OpenRig) -> None:
        sent, sink = a_message(), rig.another_sink()
        check(list(sink.publish([sent])) == [None], "a publish was not confirmed")
        sink.close()
        check(receive_one(rig.source()).headers["id"] == sent.id, "another message came")

    def test_of_one_order_key_nothing_comes_before_what_was_sent_earlier(self, rig: OpenRig) -> None:
        source = rig.source()
        if not source.traits.ordered:
            pytest.skip("this transport declares no order")
        sent = [a_message(subject="a", body=b"%d" % n) for n in range(3)]
        rig.publish(*sent)
        rig.publish(a_message(subject="b", body=b"other"))
        # Some give the next of a key only when the one before it is settled; all must keep the order.
        began, released = time.monotonic(), False
        seen: list[bytes] = []

        def all_came() -> bool:
            nonlocal released
            deliveries = source.receive(10, 0.5).deliveries
            check(all(delivery.order_key for delivery in deliveries), "a delivery has no order key")
            if not released and (mine := [d for d in deliveries if d.body != b"other"]):
                check(mine[0].body == b"0", f"{mine[0].body!r} came first")
                # The first goes back, and so does what had come with it, as the loop does it.
                source.settle([(mine[0], release(1.0)), *[(other, release(0)) for other in mine[1:]]])
                deliveries, released = [d for d in deliveries if d.body == b"other"], True
            seen.extend(delivery.body for delivery in deliveries)
            source.settle([(delivery, ACK) for delivery in deliveries])
            return len(seen) == 4

        until(all_came, "four deliveries")
        check([body for body in seen if body != b"other"] == [b"0", b"1", b"2"], f"they came as {seen}")
        check(time.monotonic() - began >= 0.9, "it came again before its delay was over")

    def test_after_a_lost_connection_everything_goes_on(self, rig: OpenRig) -> None:
        before, after = a_message(), a_message()
        rig.publish(before)
        source = rig.source()
        held = receive_one(source)
        rig.cut()
        until(lambda: publishes(rig.sink, after), "a publish after the cut")
        seen: set[str] = set()

        def both_came() -> bool:
            try:
                if source.traits.lease_seconds is None:
                    # It may have stayed ours through the cut, and then it comes again only when it is given back.
                    source.settle([(held, release(0))])
                received = source.receive(10, 0.5)
            except Exception:  # noqa: BLE001 - the contract allows it: call again
                return False
            check({lost.id for lost in received.lost} <= {held.id}, f"what was never given was taken away: {received.lost}")
            seen.update(delivery.headers["id"] for delivery in received.deliveries)
            source.settle([(delivery, ACK) for delivery in received.deliveries])
            return {before.id, after.id} <= seen

        until(both_came, "both messages", lease_of(source) + 3 * SECONDS_MAX)

    def test_a_settle_after_a_lost_connection_does_not_raise_what_is_not_an_error_of_the_queue(self, rig: OpenRig) -> None:
        """Whatever became of it, the source works on: the message comes again, or is settled."""
        rig.publish(a_message())
        source = rig.source()
        held = receive_one(source)
        rig.cut()
        try:
            outcomes = list(source.settle([(held, ACK)]))
        except Exception:  # noqa: BLE001 - "unsettled": it comes again
            outcomes = [Outcome.LOST]
        if outcomes == [SETTLED]:
            deadline = time.monotonic() + lease_of(source) + 1
            while time.monotonic() < deadline:
                check(not comes_again(source, held), "what was acknowledged came again")
        else:
            until(lambda: comes_again(source, held), "the message", lease_of(source) + 3 * SECONDS_MAX)

    def test_closing_twice_is_harmless(self, rig: OpenRig) -> None:
        source = rig.source()
        source.receive(1, 0)
        for _ in range(2):
            source.close()
            rig.sink.close()

    def _check_counts(self, deliveries: Sequence[Delivery], traits: Traits) -> None:
        counts = [delivery.count for delivery in deliveries]
        wanted = list(range(1, len(counts) + 1)) if traits.counts_deliveries else [0] * len(counts)
        check(counts == wanted, f"counts_deliveries={traits.counts_deliveries}, and the counts are {counts}")


def check(holds: bool, otherwise: str) -> None:
    """An assertion that says the same with and without pytest's rewriting."""
    if not holds:
        raise AssertionError(otherwise)


def a_message(*, body: bytes = b'{"n":1}', subject: str | None = None, traceparent: str | None = None) -> Message:
    # A leap day with microseconds: what a transport might round or refuse.
    at = datetime(2024, 2, 29, 12, 30, 59, 123456, tzinfo=UTC)
    return Message(type="conformance.checked", body=body, subject=subject, time=at, traceparent=traceparent)


def too_large_for(sink: Sink, subject: str | None = None) -> Message:
    """A message that this sink must refuse; the test is skipped where it refuses none."""
    bytes_max = sink.traits.body_bytes_max
    if bytes_max is None:
        pytest.skip("this transport declares no largest body, so nothing here can be refused")
    return a_message(body=b"x" * (bytes_max + 1), subject=subject)


def lease_of(source: Source) -> float:
    """The lease in seconds; where there is none, a short time in which it would have shown that there is one."""
    return source.traits.lease_seconds or 1.0


def publishes(sink: Sink, message: Message) -> bool:
    try:
        return list(sink.publish([message])) == [None]
    except Exception:  # noqa: BLE001 - the contract allows it: nothing can be said of the entry, send it again
        return False


def comes_again(source: Source, delivery: Delivery) -> bool:
    try:
        return any(d.headers["id"] == delivery.headers["id"] for d in source.receive(10, 0.5).deliveries)
    except Exception:  # noqa: BLE001 - the contract allows it: call again
        return False


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"{what} did not come in {seconds:g} s")


def receive_all(source: Source, many: int, seconds: float = SECONDS_MAX, *, limit: int | None = None) -> list[Delivery]:
    """Exactly `many` deliveries, at most `limit` at a time."""
    got: list[Delivery] = []

    def enough() -> bool:
        wanted = min(limit or many, many - len(got))
        deliveries = source.receive(wanted, 0.5).deliveries
        check(len(deliveries) <= wanted, f"{len(deliveries)} deliveries came where at most {wanted} were asked for")
        got.extend(deliveries)
        return len(got) == many

    until(enough, f"{many} deliveries", seconds)
    return got


def receive_one(source: Source, seconds: float = SECONDS_MAX) -> Delivery:
    return receive_all(source, 1, seconds)[0]


def received_within(source: Source, seconds: float) -> bool:
    """Something comes in this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if source.receive(10, 0.5).deliveries:
            return True
    return False
