"""Kafka topics as a source: a member of a consumer group."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final, Literal, assert_never

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from onceward.errors import TransportError, UsageError
from onceward.transport import Delivery, Outcome, Received, Settlement, Traits
from onceward.transports.kafka import codes
from onceward.transports.kafka.partitions import Handle, Partition, Record, State
from onceward.transports.kafka.retries import RetryTopics
from onceward.transports.kafka.settings import Config, consumer_config, poll_seconds_max
from onceward.transports.kafka.topics import missing_topic, read_limits
from onceward.transports.kafka.trouble import Trouble
from onceward.transports.kafka.turns import Question, Turns
from onceward.transports.kafka.wire import headers_of, read_headers, read_text

logger = logging.getLogger("onceward.kafka")
AHEAD_MAX: Final = 1000
RECEIVE_MAX: Final = 500
# A poll cannot be woken: a commit, and what is released meanwhile, wait for no longer than this.
SLICE_SECONDS: Final = 0.01
ANSWER_LOOK_SECONDS: Final = 0.001
COMMIT_SECONDS_MAX: Final = 5.0
CLOSE_SECONDS_MAX: Final = 5.0
NOTICE_SECONDS_MAX: Final = 3.0  # how soon a change of the group is noticed, however long handlers take
LEFT_COMMIT_SECONDS: Final = 1.0  # between two tries to commit what could not be committed
_FIRST_ANSWER_SECONDS_MAX: Final = 5.0  # names are looked up, and connections encrypted
_ANSWER_SECONDS_MAX: Final = 1.0
Place = tuple[str, int]  # a topic, and the number of a partition
Entry = tuple[Delivery, Settlement]


class Source:
    """Kafka topics as a source: one member of the group that `group.id` names."""

    def __init__(
        self,
        config: Config,
        topics: str | Sequence[str],
        *,
        order: Literal["key"] | None = "key",
        retry_topics: bool = False,
        ahead_max: int = AHEAD_MAX,
    ) -> None:
        """`order="key"`: records of one key are handled one at a time, in their order; those without a key in any order.

        What is released waits in this process. So that this, and what comes again after a crash, stays bounded, a partition
        is read at most `ahead_max` records beyond its oldest one that is not finished. `retry_topics` (only with
        `order=None`): what is released with a delay is sent to the topic `<topic>.<group.id>.retry` instead, and its
        partition goes on without it.
        """
        self._topics = [topics] if isinstance(topics, str) else list(topics)
        if not self._topics or any(not isinstance(name, str) or not name or name[0] == "^" for name in self._topics):
            raise UsageError(f"topics is the name of a topic, or several (no patterns), not {topics!r}")
        if order not in ("key", None):
            raise UsageError(f'order is "key" or None, not {order!r}')
        if retry_topics and order is not None:
            raise UsageError(
                "retry_topics give up the order: what comes back is behind what was sent later; pass order=None"
            )
        if ahead_max < 1:
            raise UsageError(f"ahead_max is at least 1, not {ahead_max!r}")
        self.name = f"kafka:{','.join(self._topics)}"
        self._trouble = Trouble(self.name)
        self._given = config
        self._config = consumer_config(config, self._trouble.note) | {"on_commit": self._on_commit}
        self._by_key = order == "key"
        self._retries = RetryTopics(config, self._topics) if retry_topics else None
        self._subscribed = [*self._topics, *(self._retries.of_topic.values() if self._retries else ())]
        self._ahead_max = ahead_max
        # A member that does not poll holds up every change of its group, long before it is put out of it.
        self._poll_seconds_max = min(poll_seconds_max(config), NOTICE_SECONDS_MAX)
        self._known_traits: Traits | None = None
        self._consumer: Consumer | None = None
        self._topics_found = False
        self._left_at = 0.0
        self._partitions: dict[Place, Partition] = {}
        self._lost: list[Delivery] = []
        # Guards what is known of the partitions; held for moments.
        self._lock = threading.Lock()
        self._question: Question | None = None
        # Of the client. Taken before the lock, never inside it; the client's callbacks run inside a turn.
        self._turns = Turns()

    @property
    def traits(self) -> Traits:
        """The brokers are asked once, for how long the topics keep what is in them."""
        if self._known_traits is None:
            self._known_traits = Traits(
                lease_seconds=None,
                # By the assignment and the giving; across processes by the group's generation, which the broker checks.
                settle_fenced=True,
                counts_deliveries=False,
                ordered=self._by_key,
                poll_seconds_max=self._poll_seconds_max,
                receive_max=RECEIVE_MAX,
                retention_seconds=self._retention_seconds(),
            )
        return self._known_traits

    def _retention_seconds(self) -> float | None:
        retry_of = self._retries.of_topic if self._retries else {}
        try:
            kept = [self._kept_seconds([name, retry_of[name]] if retry_of else [name]) for name in self._topics]
        except (TransportError, UsageError) as error:
            logger.warning("how long %s keeps a message is not known, so the window is not compared with it: %s",
                           self.name, error)  # fmt: skip
            return None
        return None if None in kept else max(seconds for seconds in kept if seconds is not None)

    def _kept_seconds(self, names: Sequence[str]) -> float | None:
        """How long a message may be in these topics, one after the other."""
        kept = [read_limits(self._given, [name]).retention_seconds for name in names]
        return None if None in kept else sum(seconds for seconds in kept if seconds is not None)

    def receive(self, limit: int, wait_seconds: float) -> Received:
        consumer = self._joined()
        self._look_for_topics(consumer)
        self._commit_what_is_left()
        with self._turns.turn():
            self._pace(consumer, [*self._partitions.values()])
        deliveries: list[Delivery] = []
        try:
            self._fill(deliveries, consumer, limit, time.monotonic() + wait_seconds)
        except Exception:
            # What was given already is in hand: nobody would settle it if it were not returned.
            if not deliveries:
                raise
            logger.exception("reading from %s failed; what came before is handled, and reading goes on", self.name)
        with self._lock:
            lost, self._lost = self._lost, []
        if not deliveries and not lost:
            self._raise_trouble(consumer)
        return Received(deliveries, lost)

    def _fill(self, deliveries: list[Delivery], consumer: Consumer, limit: int, deadline: float) -> None:
        # Also when enough is waiting, or nothing is wanted: a member that does not poll is put out of its group.
        self._read(consumer, 0.0)
        self._give(deliveries, limit)
        while len(deliveries) < limit:
            seconds = 0.0 if deliveries else min(SLICE_SECONDS, max(0.0, deadline - time.monotonic()))
            partition = self._read(consumer, seconds)
            if partition is not None:
                self._give(deliveries, limit, [partition])
            elif deliveries or time.monotonic() >= deadline:
                break
            else:
                self._give(deliveries, limit)

    def _joined(self) -> Consumer:
        """The member of the group, made where it is first needed: a client does not survive a fork."""
        if self._consumer is None:
            try:
                consumer = Consumer(self._config)
            except KafkaException as error:
                raise UsageError(f"this configuration does not make a consumer: {codes.error_of(error).str()}") from error
            consumer.subscribe(self._subscribed, self._on_assign, self._on_revoke, self._on_lost)
            self._consumer = consumer
        return self._consumer

    def _look_for_topics(self, consumer: Consumer) -> None:
        """Once, all of them are there. Raises `UsageError` for one that is not: the client would wait for it."""
        if self._topics_found:
            return
        try:
            with self._turns.turn():
                known = consumer.list_topics(timeout=_FIRST_ANSWER_SECONDS_MAX).topics
        except KafkaException:
            # Why is what the client says next, when it is polled: it may be the brokers, or a password.
            self._trouble.brokers_are_away = True
            return
        if missing := [name for name in self._subscribed if name not in known]:
            raise missing_topic(missing[0])
        self._topics_found = True

    def _read(self, consumer: Consumer, wait_seconds: float) -> Partition | None:
        """One record more is known, of this partition; None: nothing came, or something happened to the group."""
        with self._turns.turn():
            return self._read_in_turn(consumer, wait_seconds)

    def _read_in_turn(self, consumer: Consumer, wait_seconds: float) -> Partition | None:
        message = consumer.poll(wait_seconds)
        if message is None:
            return None
        if (error := message.error()) is not None:
            self._trouble.note(error)
            return None
        topic, number, offset = message.topic(), message.partition(), message.offset()
        if topic is None or number is None or offset is None:
            raise AssertionError("the client gave a record that is nowhere")
        due = time.monotonic() + (self._retries.seconds_until_due(message) if self._retries else 0.0)
        with self._lock:
            partition = self._partition(topic, number, offset)
            partition.read(offset, self._order_key(message), message, due)
        self._pace(consumer, [partition])
        return partition

    def _partition(self, topic: str, number: int, offset: int) -> Partition:
        partition = self._partitions.get((topic, number))
        if partition is not None and (partition.next_offset or 0) <= offset:
            return partition
        # Offsets go back where the broker has lost some, and the client was sent to an earlier one: what was read then is
        # not what has these offsets now.
        self._take_away([(topic, number)])
        return self._partitions.setdefault((topic, number), self._new_partition(topic, number))

    def _new_partition(self, topic: str, number: int) -> Partition:
        return Partition(topic, number, self._ahead_max)

    def _order_key(self, message: KafkaMessage) -> str | None:
        key = message.key() if self._by_key else None
        return None if key is None else f"{message.topic()}/{message.partition()}/{read_text(key)}"

    def _give(self, deliveries: list[Delivery], limit: int, partitions: Sequence[Partition] | None = None) -> None:
        """More deliveries whose turn it is, up to `limit` in all, of these partitions (None: of all)."""
        now = time.monotonic()
        with self._lock:
            for partition in self._partitions.values() if partitions is None else partitions:
                while len(deliveries) < limit and (record := partition.give(now)) is not None:
                    deliveries.append(self._delivery(partition, record))

    def _delivery(self, partition: Partition, record: Record) -> Delivery:
        message: KafkaMessage = record.message
        return Delivery(
            id=f"{partition.topic}/{partition.number}/{record.offset}",
            source=self.name,
            headers=read_headers(headers_of(message)),
            body=message.value() or b"",
            order_key=self._order_key(message),
            handle=Handle(partition, record, record.givings),
        )

    def _pace(self, consumer: Consumer, partitions: Iterable[Partition]) -> None:
        """A partition is read while it has room. Inside a turn."""
        for partition in partitions:
            if partition.is_full is not partition.is_paused:
                change = consumer.pause if partition.is_full else consumer.resume
                change([TopicPartition(partition.topic, partition.number)])
                partition.is_paused = partition.is_full

    def settle(self, entries: Sequence[Entry]) -> Sequence[Outcome]:
        """What is acknowledged is committed once everything before it in its partition is finished, too.

        An ack that the group refuses is LOST. Raises `TransportError` when no broker answers the commit in time: what is
        finished stays so here, and is committed as soon as one does.

        Crash: what is finished behind something that is not comes again too; at most `ahead_max` records a partition.
        """
        with self._lock:
            outcomes = [self._settle(*entry) for entry in entries]
        copied = self._copy_released(entries, outcomes)
        finished = {
            index
            for index, (_, settlement) in enumerate(entries)
            if outcomes[index] is Outcome.SETTLED and (settlement.action == "ack" or index in copied)
        }
        refused = self._commit({entries[index][0].handle.partition for index in finished})
        return [
            Outcome.LOST if index in finished and entries[index][0].handle.partition in refused else outcome
            for index, outcome in enumerate(outcomes)
        ]

    def _settle(self, delivery: Delivery, settlement: Settlement) -> Outcome:
        handle: Handle = delivery.handle
        match settlement.action:
            case "leave":
                return Outcome.SETTLED
            case "ack":
                if handle.is_in_hand:
                    handle.partition.finish(handle.record)
                done = State.FINISHED
            case "release":
                # With retry topics, a delay begins when its copy is stored.
                if handle.is_in_hand and not self._goes_to_retry(settlement):
                    handle.partition.give_back(handle.record, time.monotonic() + settlement.delay_seconds)
                done = State.IN_HAND if self._goes_to_retry(settlement) else State.WAITING
            case _:
                assert_never(settlement.action)
        return Outcome.SETTLED if handle.is_current and handle.record.state is done else Outcome.LOST

    def _goes_to_retry(self, settlement: Settlement) -> bool:
        return self._retries is not None and self._retries.takes(settlement)

    def _copy_released(self, entries: Sequence[Entry], outcomes: list[Outcome]) -> set[int]:
        """The indexes of the entries that are in their retry topic now, and finished here. The others wait in this process.

        Crash between the two: the copy and the record both come, and the inbox turns one of them away.
        """
        released: dict[int, tuple[Handle, float]] = {
            index: (delivery.handle, settlement.delay_seconds)
            for index, (delivery, settlement) in enumerate(entries)
            if self._goes_to_retry(settlement) and outcomes[index] is Outcome.SETTLED
        }
        if self._retries is None or not released:
            return set()
        errors = self._retries.send([*released.values()])
        confirmed: set[int] = set()
        with self._lock:
            for (index, (handle, delay_seconds)), error in zip(released.items(), errors, strict=True):
                if not handle.is_in_hand:
                    outcomes[index] = Outcome.LOST
                elif error is None:
                    handle.partition.finish(handle.record)
                    confirmed.add(index)
                else:
                    handle.partition.give_back(handle.record, time.monotonic() + delay_seconds)
        if failed := [error for error in errors if error is not None]:
            logger.warning(
                "%d messages could not be sent to their retry topic, and wait in this process: %s", len(failed), failed[0]
            )
        return confirmed

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:  # noqa: ARG002 - no lease
        with self._lock:
            return [Outcome.SETTLED if delivery.handle.is_in_hand else Outcome.LOST for delivery in deliveries]

    def _commit(self, partitions: set[Partition]) -> set[Partition]:
        """What is finished of these is committed; returns those whose offset the group refused.

        Raises `TransportError` when no broker has answered in time.
        """
        deadline = time.monotonic() + COMMIT_SECONDS_MAX
        with self._lock:
            wanted = {partition: partition.committable for partition in partitions if partition.needs_commit}
        refused: set[Partition] = set()
        while wanted:
            question = self._ask()
            if question is not None:
                self._wait_for(question, deadline)
            for partition, offset in [*wanted.items()]:
                error = question.errors.get(partition) if question is not None else None
                if offset is None or (partition.committed or 0) >= offset:
                    del wanted[partition]
                elif question is None or not partition.is_ours or (error is not None and error.code() in codes.REFUSED):
                    refused.add(partition)
                    del wanted[partition]
                elif error is not None:
                    raise TransportError(f"what is finished could not be committed: {error.str()}")
        return refused

    def _ask(self) -> Question | None:
        """The commit that is under way, or a new one of all that is finished; None: there is nothing to commit."""
        with self._turns.turn():
            with self._lock:
                if self._question is not None:
                    return self._question
                offsets = self._finished_offsets()
                if self._consumer is None or not offsets:
                    return None
                # Not synchronously: while the group's coordinator is away, the client would wait for it for as long as a
                # session lasts, and let nobody poll.
                question = self._question = Question(offsets)
            try:
                self._consumer.commit(offsets=question.asked(), asynchronous=True)
            except KafkaException as error:
                self._on_commit(codes.error_of(error), question.asked())
            return question

    def _finished_offsets(self) -> dict[Partition, int]:
        return {
            partition: partition.committable
            for partition in self._partitions.values()
            if partition.needs_commit and partition.committable is not None
        }

    def _wait_for(self, question: Question, deadline: float) -> None:
        """The brokers have answered. The client says so when it is polled, by this thread or by one that receives."""
        while not question.answered.wait(ANSWER_LOOK_SECONDS):
            if time.monotonic() > deadline:
                raise TransportError("what is finished is not committed yet: no broker answers")
            with self._turns.turn_if_free() as is_ours:
                if is_ours and self._consumer is not None:
                    self._read_in_turn(self._consumer, 0.0)

    def _on_commit(self, error: KafkaError | None, answers: list[TopicPartition]) -> None:
        """The answer to a commit. Inside the turn of whoever polls."""
        with self._lock:
            question = self._question
            if question is None:
                return
            self._question = None
            errors = {(answer.topic, answer.partition): answer.error or error for answer in answers}
            for partition, offset in question.offsets.items():
                found = errors.get((partition.topic, partition.number), error)
                if found is None:
                    partition.committed = offset
                else:
                    question.errors[partition] = found
        for partition, found in question.errors.items():
            logger.info(
                "the offset %d of %s/%d was not committed: %s; what was finished there may come again, and is turned away "
                "then", question.offsets[partition], partition.topic, partition.number, found.str(),
            )  # fmt: skip
        question.answered.set()

    def _commit_what_is_left(self) -> None:
        """What an earlier commit could not do is tried again, now and then; nobody waits for the answer."""
        now = time.monotonic()
        with self._lock:
            is_left = self._question is None and bool(self._finished_offsets())
        if is_left and now - self._left_at >= LEFT_COMMIT_SECONDS:
            self._left_at = now
            self._ask()

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._trouble.was_assigned = True
        with self._lock:
            for found in partitions:
                place = found.topic, found.partition
                self._partitions[place] = self._new_partition(*place)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """What is finished is committed before another member reads on from there; what is in hand is lost."""
        # Inside the turn of whoever polls; or on the thread that closes, when nobody else has the client any more. So no
        # other commit comes in between.
        with self._lock:
            offsets = {} if self._trouble.brokers_are_away else self._finished_offsets()
        try:
            if offsets:
                consumer.commit(offsets=Question(offsets).asked(), asynchronous=False)
                for partition, offset in offsets.items():
                    partition.committed = offset
        except KafkaException as error:
            logger.warning(
                "what was finished could not be committed before partitions went to another member; it comes again there, "
                "and is turned away: %s", codes.error_of(error).str(),
            )  # fmt: skip
        self._on_lost(consumer, partitions)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        with self._lock:
            self._take_away([(lost.topic, lost.partition) for lost in partitions])

    def _take_away(self, places: Sequence[Place]) -> None:
        for place in places:
            partition = self._partitions.pop(place, None)
            if partition is not None:
                partition.is_ours = False
                self._lost += [self._delivery(partition, record) for record in partition.in_hand()]

    def _raise_trouble(self, consumer: Consumer) -> None:
        if (fatal := self._trouble.fatal) is not None:
            self._trouble.fatal = None
            self._leave_group()
            self._raise_fatal(fatal)
        self._trouble.raise_noted()
        if self._trouble.brokers_are_away:
            # The client says when it has lost its brokers, and nothing when it has found them.
            try:
                with self._turns.turn():
                    consumer.list_topics(self._topics[0], timeout=_ANSWER_SECONDS_MAX)
            except KafkaException as away:
                raise TransportError(f"no broker of {self.name} answers: {codes.error_of(away).str()}") from away
            self._trouble.brokers_are_away = False

    def _raise_fatal(self, error: KafkaError) -> None:
        if "group.instance.id" in self._config:
            raise UsageError(
                f"{self.name}: {error.str()}; if another process has the same group.instance.id, give each one of its own"
            )
        raise TransportError(f"{self.name}: the client has given up, and is made anew: {error.str()}")

    def _leave_group(self) -> None:
        """What is finished is committed, and what is in hand is lost."""
        with self._turns.turn():
            consumer, self._consumer = self._consumer, None
        if consumer is not None:
            # The client gives up its partitions as in a revocation. It waits for brokers that are away, and nobody should
            # have to wait for it: the group finds out by itself.
            closing = threading.Thread(target=consumer.close, name="onceward-kafka-close", daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS_MAX)
            if closing.is_alive():
                logger.warning("%s could not leave its group in time; its partitions go to others when its session ends",
                               self.name)  # fmt: skip
        with self._lock:
            self._take_away([*self._partitions])
            if self._question is not None:
                # Nobody answers it any more; what it was about is not ours.
                self._question.answered.set()
            self._question = None

    def close(self) -> None:
        self._leave_group()
        self._lost = []
        if self._retries is not None:
            self._retries.close()
