"""Kafka topics as a sink."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from onceward.errors import TransportError, UsageError
from onceward.message import Message
from onceward.transport import Traits
from onceward.transports.kafka import codes
from onceward.transports.kafka.sender import Sender, as_entry
from onceward.transports.kafka.settings import MESSAGE_BYTES_MAX, Config
from onceward.transports.kafka.topics import list_topics, missing_topic, read_limits
from onceward.transports.kafka.wire import record_of

# Of a record, for what is not the body: each of six attributes and the key has at most 1,024 bytes, then names and lengths.
ENVELOPE_BYTES_MAX: Final = 8192
_HELD: Final = TransportError("held back: an earlier message of its subject was not sent")


class Sink:
    """Kafka topics as a sink. `topics` says where each message type goes: one topic, several, or all types to one."""

    def __init__(self, config: Config, topics: str | Mapping[str, str | Sequence[str]]) -> None:
        """Raises `UsageError` for what names no topic, and for a configuration that could lose or reorder messages."""
        if not topics or not isinstance(topics, str | Mapping):
            raise UsageError(
                "topics is the name of one topic for all types, or a mapping of types to topics, like "
                f"{{'order.paid': ['ledger', 'emails']}}; not {topics!r}"
            )
        self._config = config
        self._topics = topics
        self._sender = Sender(config)
        self._message_bytes_max = int(config.get("message.max.bytes", MESSAGE_BYTES_MAX))
        self._named = {*_all_names(topics)}
        self._known: set[str] = set()
        self._learning = threading.Lock()

    @property
    def traits(self) -> Traits:
        """Asks the brokers once for the largest message of each topic; while none answers, the client's own limit holds."""
        with suppress(TransportError, UsageError):  # raised again by publish, where it can be answered
            self._learn_topics()
        return Traits(
            lease_seconds=None,
            settle_fenced=True,
            counts_deliveries=False,
            publish_max=1000,
            body_bytes_max=self._message_bytes_max - ENVELOPE_BYTES_MAX,
        )

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """Sent in waves of at most one message for each subject.

        Pipelined, what comes behind a message could be stored although that one was given up.
        """
        if not messages:
            return []
        self._learn_topics()
        errors: list[BaseException | None] = [None] * len(messages)
        # Subjects behind an error: their later messages wait, wherever they would go.
        held: set[str] = set()
        waiting = list(range(len(messages)))
        is_first = True
        while waiting:
            wave, waiting = self._next_wave(waiting, messages, errors, held)
            self._send(wave, messages, errors, held)
            if is_first and wave and all(isinstance(errors[index], TransportError) for index in wave):
                raise TransportError(f"no message was confirmed, the first of {len(wave)} because: {errors[wave[0]]}")
            is_first = False
        return errors

    def _next_wave(
        self, waiting: Sequence[int], messages: Sequence[Message], errors: list[BaseException | None], held: set[str]
    ) -> tuple[list[int], list[int]]:
        """The indexes that are sent now, and those that wait for a later wave. What cannot be sent has its error."""
        wave: list[int] = []
        later: list[int] = []
        subjects: set[str] = set()
        for index in waiting:
            subject = messages[index].subject
            if subject in subjects:
                later.append(index)
                continue
            errors[index] = self._refuse(messages[index], held)
            if errors[index] is None:
                wave.append(index)
                if subject is not None:
                    subjects.add(subject)
        return wave, later

    def _send(
        self, wave: Sequence[int], messages: Sequence[Message], errors: list[BaseException | None], held: set[str]
    ) -> None:
        sent = [(index, topic) for index in wave for topic in self._targets(messages[index].type)]
        answers = self._sender.send([record_of(messages[index], topic) for index, topic in sent])
        for (index, topic), error in zip(sent, answers, strict=True):
            if error is None:
                continue
            errors[index] = as_entry(error, topic)
            _hold(messages[index], held)
            if error.code() in codes.UNKNOWN_TOPIC:
                self._known.discard(topic)

    def _refuse(self, message: Message, held: set[str]) -> BaseException | None:
        """Why this message cannot be sent, now or at all; its subject is held from then on. None: it can."""
        error = _HELD if message.subject in held else self._unsendable(message)
        if error is not None:
            _hold(message, held)
        return error

    def _unsendable(self, message: Message) -> BaseException | None:
        targets = self._targets(message.type)
        if not targets:
            return UsageError(f"no topic is named for messages of type {message.type!r}")
        bytes_max = self._message_bytes_max - ENVELOPE_BYTES_MAX
        if len(message.body) > bytes_max:
            return UsageError(f"a body of {len(message.body)} bytes is more than the {bytes_max} that this topic takes")
        missing = next((topic for topic in targets if topic not in self._known), None)
        return None if missing is None else missing_topic(missing)

    def _targets(self, message_type: str) -> Sequence[str]:
        target = self._topics if isinstance(self._topics, str) else self._topics.get(message_type, ())
        return (target,) if isinstance(target, str) else target

    def _learn_topics(self) -> None:
        """Which topics are there, and their limits. Raises `TransportError` when no broker answers."""
        with self._learning:
            if self._named <= self._known:
                return
            self._known = self._named & list_topics(self._config)
            limit = read_limits(self._config, sorted(self._known)).message_bytes_max if self._known else None
            if limit is not None and limit < self._message_bytes_max:
                self._message_bytes_max = limit
                self._sender.limit(limit)

    def close(self) -> None:
        self._sender.close()


def _hold(message: Message, held: set[str]) -> None:
    if message.subject is not None:
        held.add(message.subject)


def _all_names(topics: str | Mapping[str, str | Sequence[str]]) -> Iterator[str]:
    for target in (topics,) if isinstance(topics, str) else topics.values():
        if isinstance(target, str):
            yield target
        else:
            yield from target
