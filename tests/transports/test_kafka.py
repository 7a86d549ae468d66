"""What only Kafka has: partitions and offsets, a group whose members come and go, retry topics, strangers' records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError, Producer
from tests.support import rows
from tests.support.deliveries import order
from tests.support.kafka import Topic, lost_by, receive_all, receive_one
from tests.support.points import Gate, Recorder
from tests.support.queues import consuming
from tests.support.shop import transactional
from tests.support.waiting import Background, until

from onceward.consumer_loop import run
from onceward.errors import UsageError
from onceward.message import MalformedMessage, Message
from onceward.transport import ACK, Delivery, Outcome, release
from onceward.transports import kafka
from onceward.transports.kafka.partitions import Partition

Db = psycopg.Connection[Any]
Closing = Callable[[Any], Any]
LOST, SETTLED = Outcome.LOST, Outcome.SETTLED


@pytest.fixture
def topic(kafka_bootstrap: str) -> Topic:
    return Topic(kafka_bootstrap)


def orders(many: int, **attributes: Any) -> list[Message]:
    return [order(n, **attributes) for n in range(many)]


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


# ---- offsets -------------------------------------------------------------------------------------------------------------


def test_only_what_is_finished_without_a_gap_is_committed(topic: Topic, closing: Closing) -> None:
    topic.publish(*orders(4))
    source = closing(topic.source())
    first, second, third, _ = receive_all(source, 4)
    assert source.settle([(third, ACK), (second, ACK)]) == [SETTLED] * 2
    assert topic.committed() == [-1001]
    assert source.settle([(first, ACK)]) == [SETTLED]
    assert topic.committed() == [3]


def what_was_not_finished_comes_again(topic: Topic, closing: Closing, kind: type[kafka.Source]) -> None:
    """The second of two is finished, and the source is gone."""
    topic.publish(*orders(2))
    source = topic.source(kind=kind)
    _, second = receive_all(source, 2)
    source.settle([(second, ACK)])
    source.close()
    assert bodies(receive_all(closing(topic.source()), 2, seconds=5)) == [b"0", b"1"]


def test_what_was_not_finished_comes_again_although_a_later_one_was(topic: Topic, closing: Closing) -> None:
    what_was_not_finished_comes_again(topic, closing, kafka.Source)


class CommitsTheHighest(kafka.Source):
    """Sabotage."""

    def _new_partition(self, topic: str, number: int) -> Partition:
        class Highest(Partition):
            @property
            def committable(self) -> int | None:
                return self.next_offset

        return Highest(topic, number, 100)


def test_a_source_that_commits_the_highest_finished_offset_is_caught(topic: Topic, closing: Closing) -> None:
    with pytest.raises(AssertionError, match="2 deliveries did not come"):
        what_was_not_finished_comes_again(topic, closing, CommitsTheHighest)


def test_aborted_and_control_records_are_never_seen_and_stall_no_commit(topic: Topic, closing: Closing) -> None:
    producer = Producer({**topic.brokers, "transactional.id": topic.name})
    producer.init_transactions(20)
    for number, is_committed in enumerate((True, False, True)):
        producer.begin_transaction()
        for _ in range(2):
            producer.produce(topic.name, f"{number}".encode(), headers={"ce_id": "x", "ce_type": "order.placed"})
        producer.flush(20)
        if is_committed:
            producer.commit_transaction(20)
        else:
            producer.abort_transaction(20)
    source = closing(topic.source())
    got = receive_all(source, 4)
    assert bodies(got) == [b"0", b"0", b"2", b"2"]
    source.settle([(delivery, ACK) for delivery in got])
    # Offsets: two and the commit's own record, two and the abort's own record, two.
    assert topic.committed() == [8]


def test_scenario_8_a_duplicate_is_acknowledged_and_the_offset_advances_past_it(
    topic: Topic, dsn: str, db: Db, background: Background
) -> None:
    message, last, seen = order(), order(), Recorder()
    topic.publish(message, message, last)
    options = {"consumer": transactional(), "source": topic.source, "database": dsn, "threads": 2, "listeners": [seen]}
    with consuming(background, run, **options):
        until(lambda: topic.committed() == [3], "the offset behind the last one")
    assert (rows.effects(db, message), rows.effects(db, last), seen.count("consumer.duplicate")) == (1, 1, 1)


def test_a_commit_that_is_left_is_made_up_for_without_another_settle(topic: Topic, closing: Closing) -> None:
    """As after a commit that no broker has answered."""
    topic.publish(order())
    source = closing(topic.source())
    delivery = receive_one(source)
    delivery.handle.partition.finish(delivery.handle.record)
    source.receive(0, 0)
    assert topic.committed() == [1]


# ---- order ---------------------------------------------------------------------------------------------------------------


def test_a_key_that_waits_does_not_block_the_others_of_its_partition(topic: Topic, closing: Closing) -> None:
    topic.publish(*orders(3, subject="hot"))
    source = closing(topic.source())
    first, *behind = receive_all(source, 3)
    source.settle([(first, release(600)), *[(delivery, release(0)) for delivery in behind]])
    topic.publish(order("hot again", subject="hot"), *orders(5, subject="c"))
    assert {delivery.order_key for delivery in receive_all(source, 5)} == {f"{topic.name}/0/c"}
    assert topic.committed() == [-1001]


def test_a_partition_is_not_read_too_far_beyond_what_is_not_finished(topic: Topic, closing: Closing) -> None:
    topic.publish(*orders(30, subject="a"))
    source = closing(topic.source(ahead_max=10))
    got = receive_all(source, 11)
    source.settle([(delivery, ACK) for delivery in got[1:]])
    assert not source.receive(10, 1.0).deliveries
    source.settle([(got[0], ACK)])
    assert bodies(receive_all(source, 11)) == [str(n).encode() for n in range(11, 22)]


def test_records_without_a_key_have_no_order(topic: Topic, closing: Closing) -> None:
    topic.publish(order())
    assert receive_one(closing(topic.source())).order_key is None


def test_of_one_subject_messages_keep_their_order_over_waves(topic: Topic, closing: Closing) -> None:
    sent = [order(n, subject=("a", "b", None)[n % 3]) for n in range(30)]
    topic.publish(*sent)
    got = receive_all(closing(topic.source()), 30)
    for subject in ("a", "b"):
        ids = [message.id for message in sent if message.subject == subject]
        assert [d.headers["id"] for d in got if d.headers.get("subject") == subject] == ids


# ---- the group -----------------------------------------------------------------------------------------------------------


def test_a_member_that_only_polls_keeps_its_partition(topic: Topic, closing: Closing) -> None:
    topic.publish(*orders(3))
    config = topic.member(max_poll_interval_ms=6000)
    source, other = closing(topic.source(config=config)), closing(topic.source())
    held = receive_one(source)
    until(lambda: _polls(source, other) > 8, "a time longer than the interval")
    assert source.settle([(held, ACK)]) == [SETTLED]
    assert topic.committed() == [1]


_began: dict[int, float] = {}


def _polls(*sources: kafka.Source) -> float:
    began = _began.setdefault(id(sources[0]), time.monotonic())
    for source in sources:
        assert not source.receive(0, 0).deliveries
    return time.monotonic() - began


def test_scenario_9_a_late_commit_is_refused_and_nothing_is_skipped(topic: Topic, closing: Closing) -> None:
    """A member is silent past its interval; its message goes to another one, and its own ack comes too late."""
    topic.publish(*orders(3))
    late = closing(topic.source(config=topic.member(max_poll_interval_ms=6000)))
    held = receive_all(late, 2)
    other = closing(topic.source())
    again = receive_all(other, 3, seconds=40)
    assert late.settle([(held[0], ACK)]) == [LOST]
    assert topic.committed() == [-1001]
    assert other.settle([(again[0], ACK)]) == [SETTLED]
    assert lost_by(late, 1) == [held[1].id]
    assert late.settle([(held[1], ACK)]) == [LOST]
    assert topic.committed() == [1]
    assert other.settle([(delivery, ACK) for delivery in again[1:]]) == [SETTLED] * 2
    # It goes on: what comes next is one of theirs.
    topic.publish(order("next"))
    until(lambda: b'"next"' in bodies([*late.receive(1, 0.1).deliveries, *other.receive(1, 0.1).deliveries]), "the next")


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_scenario_9_a_rebalance_mid_handler_skips_nothing(
    strategy: str, kafka_bootstrap: str, dsn: str, db: Db, background: Background
) -> None:
    """A second member joins while handlers run, and leaves again."""
    topic = Topic(kafka_bootstrap, partitions=4)
    sent = orders(40)
    topic.publish(*sent)
    gate, seen = Gate("consumer.handled", holds=2), Recorder()
    config = topic.member(partition_assignment_strategy=strategy)
    options: dict[str, Any] = {"source": lambda: topic.source(config=config), "database": dsn, "threads": 2}
    with consuming(background, run, consumer=transactional(), listeners=[gate], **options):
        gate.wait()
        with consuming(background, run, consumer=transactional(), listeners=[seen], **options):
            seen.wait_for("consumer.received", 1)
            gate.release()
            seen.wait_for("consumer.settled", 1)
        late = orders(20)
        topic.publish(*late)
        until(lambda: topic.committed() == topic.ends(), "every partition being committed to its end", 40)
    assert [rows.effects(db, message) for message in [*sent, *late]] == [1] * 60


def test_a_delivery_of_an_earlier_assignment_settles_nothing_of_a_later_one(topic: Topic, closing: Closing) -> None:
    topic.publish(*orders(2))
    source = closing(topic.source())
    old = receive_all(source, 2)
    source.close()
    new = receive_all(source, 2)
    assert [delivery.id for delivery in new] == [delivery.id for delivery in old]
    assert source.settle([(delivery, ACK) for delivery in old]) == [LOST, LOST]
    assert source.settle([(old[0], release(0))]) == [LOST]
    assert source.extend([old[0], new[0]], 1) == [LOST, SETTLED]
    assert topic.committed() == [-1001]


def test_a_second_process_with_the_same_instance_id_ends_the_first_with_a_plain_word(
    topic: Topic, closing: Closing
) -> None:
    topic.publish(order())
    config = topic.member(group_instance_id="one")
    first = closing(topic.source(config=config))
    receive_one(first)
    second = closing(topic.source(config=config))
    receive_one(second)

    def fenced() -> bool:
        try:
            first.receive(1, 0.1)
        except UsageError as error:
            return "group.instance.id" in str(error)
        return False

    until(fenced, "the first being told")


def test_settling_while_another_thread_receives_is_not_shut_out(topic: Topic, closing: Closing) -> None:
    topic.publish(*orders(50))
    source = closing(topic.source())
    got = receive_all(source, 50)
    stop = threading.Event()

    def receive() -> None:
        while not stop.is_set():
            source.receive(1, 1.0)

    receiving = threading.Thread(target=receive)
    receiving.start()
    for delivery in got:
        assert source.settle([(delivery, ACK)]) == [SETTLED]
    stop.set()
    receiving.join()
    assert topic.committed() == [50]


# ---- retry topics --------------------------------------------------------------------------------------------------------


@pytest.fixture
def retried(topic: Topic) -> str:
    name = f"{topic.name}.{topic.name}.retry"
    kafka.create_topic(topic.brokers, name)
    return name


def test_what_is_released_goes_to_the_retry_topic_and_its_partition_goes_on(
    topic: Topic, retried: str, closing: Closing
) -> None:
    message = order("a", subject="a")
    topic.publish(message, order("b"))
    source = closing(topic.source(order=None, retry_topics=True))
    first, second = receive_all(source, 2)
    began = time.monotonic()
    assert source.settle([(first, release(1.5)), (second, ACK)]) == [SETTLED] * 2
    assert topic.committed() == [2]
    again = receive_one(source)
    assert time.monotonic() - began >= 1.4
    assert again.id.startswith(f"{retried}/")
    assert Message.from_wire(again.headers, again.body) == message
    # Released once more, it stays in that topic.
    source.settle([(again, release(0.2))])
    last = receive_one(source)
    assert last.id == f"{retried}/0/1"
    source.settle([(last, ACK)])
    assert topic.committed(retried) == [2]


def test_a_crash_between_the_copy_and_the_commit_is_a_duplicate_and_not_a_loss(
    topic: Topic, retried: str, dsn: str, db: Db, background: Background, closing: Closing
) -> None:
    message = order()
    topic.publish(message)
    crashing = topic.source(order=None, retry_topics=True)
    held = receive_one(crashing)
    crashing._copy_released([(held, release(0.1))], [SETTLED])
    # Its partition is finished here, and nobody commits that.
    crashing._partitions.clear()
    crashing.close()
    source = lambda: topic.source(order=None, retry_topics=True)  # noqa: E731
    seen = Recorder()
    with consuming(background, run, consumer=transactional(), source=source, database=dsn, listeners=[seen]):
        seen.wait_for("consumer.duplicate")
    assert rows.effects(db, message) == 1


def test_without_its_retry_topic_a_source_says_what_is_missing(topic: Topic, closing: Closing) -> None:
    source = closing(topic.source(order=None, retry_topics=True))
    with pytest.raises(UsageError, match=r"no Kafka topic .*\.retry.*create_topic"):
        until(lambda: source.receive(1, 0.1).deliveries)


# ---- strangers -----------------------------------------------------------------------------------------------------------


def test_strangers_records_are_parked_with_the_reason_and_stop_nothing(
    topic: Topic, dsn: str, db: Db, background: Background
) -> None:
    producer = Producer(topic.brokers)
    producer.produce(topic.name, None, key=b"tombstone")
    producer.produce(topic.name, b"\x00\xff", headers=[("ce_id", b"\xff\xfe"), ("x", b"\xff"), ("nul", b"a\x00b")])
    producer.produce(topic.name, b"{}")
    producer.flush(10)
    message = order()
    topic.publish(message)
    with consuming(background, run, consumer=transactional(), source=topic.source, database=dsn):
        until(lambda: topic.committed() == [4], "the offset behind the last one")
    assert rows.effects(db, message) == 1
    assert [entry.reason for entry in rows.parked(db)] == ["malformed"] * 3


def test_a_tombstone_has_an_empty_body(topic: Topic, closing: Closing) -> None:
    producer = Producer(topic.brokers)
    producer.produce(topic.name, None, key=b"\xff")
    producer.flush(10)
    delivery = receive_one(closing(topic.source()))
    assert (delivery.body, delivery.order_key) == (b"", f"{topic.name}/0/\\xff")
    with pytest.raises(MalformedMessage):
        Message.from_wire(delivery.headers, delivery.body)


# ---- topics and limits ---------------------------------------------------------------------------------------------------


def test_a_topic_that_is_not_there_is_named_with_what_makes_it(topic: Topic, closing: Closing) -> None:
    source = closing(kafka.Source(topic.member(), "nowhere-at-all"))
    with pytest.raises(UsageError, match=r"no Kafka topic 'nowhere-at-all'.*create_topic"):
        until(lambda: source.receive(1, 0.1).deliveries)
    with pytest.raises(UsageError, match="nowhere-at-all"):
        kafka.check_topic(topic.brokers, topic.name, "nowhere-at-all")
    kafka.check_topic(topic.brokers, topic.name)
    assert not kafka.create_topic(topic.brokers, topic.name)


def test_each_type_goes_to_its_topics_and_an_unknown_one_is_an_error_of_its_entries_alone(
    kafka_bootstrap: str, closing: Closing
) -> None:
    placed, paid = Topic(kafka_bootstrap), Topic(kafka_bootstrap)
    names = {"order.placed": placed.name, "order.paid": [placed.name, paid.name], "order.lost": "nowhere-at-all"}
    sink = closing(kafka.Sink(placed.brokers, names))
    errors = sink.publish([order(), Message(type="order.paid"), Message(type="order.lost"), Message(type="other"), order()])
    assert [type(error) for error in errors] == [type(None), type(None), UsageError, UsageError, type(None)]
    assert (placed.ends(), paid.ends()) == ([3], [1])


def test_a_topic_that_takes_less_than_the_client_sends_refuses_no_small_message(
    kafka_bootstrap: str, closing: Closing
) -> None:
    """The client would send them in one batch, and the broker would refuse that whole."""
    topic = Topic(kafka_bootstrap, settings={"max.message.bytes": "20000"})
    sink = closing(topic.sink())
    assert sink.traits.body_bytes_max == 20_000 - 8192
    small = [Message(type="x", body=bytes(5000)) for _ in range(50)]
    errors = sink.publish([*small, Message(type="x", body=bytes(30_000))])
    assert [error is None for error in errors] == [True] * 50 + [False]


def test_a_batch_that_the_broker_refuses_for_its_size_is_sent_one_by_one(kafka_bootstrap: str, closing: Closing) -> None:
    """As where the topic's limit cannot be read, or was lowered since."""
    topic = Topic(kafka_bootstrap, settings={"max.message.bytes": "20000"})
    sink = closing(topic.sink())
    sink._known = {topic.name}
    messages = [Message(type="x", body=bytes(size)) for size in (5000, 5000, 30_000, 5000)]
    assert [type(error) for error in sink.publish(messages)] == [type(None), type(None), UsageError, type(None)]


def test_retention_is_that_of_the_topic(kafka_bootstrap: str) -> None:
    assert Topic(kafka_bootstrap, settings={"retention.ms": "3600000"}).source().traits.retention_seconds == 3600
    assert Topic(kafka_bootstrap, settings={"retention.ms": "-1"}).source().traits.retention_seconds is None
    assert Topic(kafka_bootstrap, settings={"cleanup.policy": "compact"}).source().traits.retention_seconds is None


def test_after_a_fatal_error_a_sink_makes_a_new_producer(topic: Topic, closing: Closing) -> None:
    sink = closing(topic.sink())
    assert list(sink.publish([order()])) == [None]
    before = sink._sender._producer
    sink._sender._note(KafkaError(KafkaError._FATAL, "the broker has forgotten this producer", fatal=True))
    assert list(sink.publish([order()])) == [None]
    assert sink._sender._producer is not before
    assert topic.ends() == [2]
