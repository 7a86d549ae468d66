"""Records are sent, and each is confirmed or its error is known."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from onceward.errors import TransportError, UsageError
from onceward.transports.kafka import codes
from onceward.transports.kafka.settings import Config, producer_config
from onceward.transports.kafka.wire import Outgoing

_FULL_WAIT_SECONDS: Final = 0.1


class Sender:
    """One producer, made when it is first needed, and again after a fatal error. One caller at a time."""

    def __init__(self, config: Config) -> None:
        """Raises `UsageError` for a configuration that cannot be had."""
        self._config = producer_config(config, self._note)
        self._producer: Producer | None = None
        self._fatal: KafkaError | None = None
        self._lock = threading.Lock()

    def limit(self, message_bytes_max: int) -> None:
        """No batch is larger than this. To be called before anything is sent."""
        # A topic that takes less than the client sends refuses a batch of small messages as a whole.
        self._config["message.max.bytes"] = message_bytes_max

    def send(self, records: Sequence[Outgoing]) -> list[KafkaError | None]:
        """One entry each: None = the brokers have stored it, else why not. Returns within the client's delivery timeout."""
        with self._lock:
            errors = self._send(records)
            # The client sends a batch or refuses it whole: of several, most are refused for the size of their neighbour.
            for index, error in enumerate(errors):
                if error is not None and error.code() == codes.TOO_LARGE and len(records) > 1:
                    errors[index] = self._send([records[index]])[0]
        return errors

    def _send(self, records: Sequence[Outgoing]) -> list[KafkaError | None]:
        producer = self._made()
        sending = _Sending(len(records))
        for index, record in enumerate(records):
            self._produce(producer, record, sending, index)
        # Each is confirmed or given up within delivery.timeout.ms. A flush does not wait for linger.ms.
        while sending.open and self._fatal is None:
            producer.flush(1.0)
        if self._fatal is not None:
            self._give_up()
        return [error if isinstance(error, KafkaError) else None for error in sending.answers]

    def _produce(self, producer: Producer, record: Outgoing, sending: _Sending, index: int) -> None:
        headers: Any = record.headers
        answered = partial(sending.answer, index)
        while True:
            try:
                producer.produce(record.topic, record.value, record.key, headers=headers, on_delivery=answered)
            except BufferError:
                # The client holds as much as it may: its queue moves on as it is served.
                producer.poll(_FULL_WAIT_SECONDS)
            except KafkaException as error:
                sending.answer(index, codes.error_of(error), None)
                return
            else:
                return

    def _made(self) -> Producer:
        if self._fatal is not None:
            self._give_up()
        if self._producer is None:
            try:
                self._producer = Producer(self._config)
            except KafkaException as error:
                raise UsageError(f"this configuration does not make a producer: {codes.error_of(error).str()}") from error
        return self._producer

    def _note(self, error: KafkaError) -> None:
        if codes.is_fatal(error):
            self._fatal = error

    def _give_up(self) -> None:
        """The next call makes a new producer: this one sends nothing more."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(1.0)
        self._producer, self._fatal = None, None

    def close(self) -> None:
        with self._lock:
            # Nothing is in it: each call has waited for what it sent.
            self._producer = None


class _Sending:
    """The answers to one call."""

    def __init__(self, many: int) -> None:
        self.open = many
        # What was not answered when its producer died has this error too.
        self.answers: list[KafkaError | bool] = [KafkaError(codes.NOT_ANSWERED)] * many
        self._lock = threading.Lock()

    def answer(self, index: int, error: KafkaError | None, _: Any) -> None:
        """This record was stored, or not."""
        with self._lock:
            self.answers[index] = True if error is None else error
            self.open -= 1


def as_entry(error: KafkaError, topic: str) -> BaseException:
    """The error as an entry of `publish`."""
    text = f"Kafka did not store it in {topic!r}: {error.str()}"
    return UsageError(text) if error.code() in codes.UNSENDABLE else TransportError(text)
