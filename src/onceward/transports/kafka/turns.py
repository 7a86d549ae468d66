"""Who may use the client, which lets in one call at a time; and what one thread asks it and another one may hear."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, TopicPartition

from onceward.transports.kafka.partitions import Partition


class Turns:
    """One thread at a time uses the client, and one that has waited comes before one that has just had its turn.

    The client lets in one call at a time by itself, but a poll that follows a poll shuts out a commit for as long as a
    receive lasts; and a revocation inside that poll would wait for the very thread that wants to commit.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._using = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, the client is this thread's."""
        with self._next:
            self._using.acquire()
        try:
            yield
        finally:
            self._using.release()

    @contextmanager
    def turn_if_free(self) -> Iterator[bool]:
        """The same, unless another thread has its turn: False."""
        is_ours = self._using.acquire(blocking=False)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._using.release()


class Question:
    """A commit that was asked for: at which offsets, and what the brokers had against it."""

    def __init__(self, offsets: dict[Partition, int]) -> None:
        self.offsets = offsets
        self.errors: dict[Partition, KafkaError] = {}
        self.answered = threading.Event()

    def asked(self) -> list[TopicPartition]:
        """As the client wants to hear it."""
        return [TopicPartition(partition.topic, partition.number, offset) for partition, offset in self.offsets.items()]
