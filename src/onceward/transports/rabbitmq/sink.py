"""Messages to queues, or to an exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from onceward.errors import TransportError, UsageError
from onceward.message import Message
from onceward.transport import Traits
from onceward.transports.rabbitmq.envelope import properties_of
from onceward.transports.rabbitmq.link import Away, ParametersOrFactory, Refused, again
from onceward.transports.rabbitmq.publisher import UNCONFIRMED, Letter, Publisher

# What RabbitMQ 4 takes unless its `max_message_size` says otherwise; 3.x takes 128 MiB.
BODY_BYTES_MAX: Final = 16 * 1024 * 1024
SEND_BYTES_MAX: Final = 8 * 1024 * 1024  # of bodies that are on their way at once
_HELD: Final = TransportError("held back: an earlier message of its subject was not sent")


class Sink:
    """RabbitMQ as a sink. Every publish is mandatory, persistent, and confirmed by the broker.

    `queues` says where each message type goes: one queue, several, or all types to one. Or `exchange`: its bindings say so,
    and the routing key is the type. A message that no queue takes is an error, and so is one that a queue refuses.

    `body_bytes_max` is at most the server's `max_message_size`.
    """

    def __init__(
        self,
        parameters: ParametersOrFactory,
        queues: str | Mapping[str, str | Sequence[str]] | None = None,
        *,
        exchange: str | None = None,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        """Connects at the first `publish`. Raises `UsageError` for what names no target."""
        if (queues is None) == (exchange is None):
            raise UsageError("a sink has either queues= or exchange=")
        if exchange is None and (not queues or not isinstance(queues, str | Mapping)):
            raise UsageError(
                "queues is the name of one queue for all types, or a mapping of types to queues, like "
                f"{{'order.paid': ['ledger', 'emails']}}; not {queues!r}"
            )
        if exchange is not None and (not exchange or not isinstance(exchange, str)):
            raise UsageError(f"exchange is the name of an exchange, not {exchange!r}")
        self.traits = Traits(
            lease_seconds=None,
            settle_fenced=True,
            counts_deliveries=True,
            publish_max=1000,
            body_bytes_max=body_bytes_max,
        )
        self._queues = queues
        self._exchange = exchange
        self._body_bytes_max = body_bytes_max
        self._publisher = Publisher(parameters, "publish")

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        """In waves: of each subject, one message is sent, and the next one only when it is confirmed.

        All others are on their way at once. Raises `TransportError` when the broker is away and nothing was confirmed.
        """
        # Why each is not sent, from the first look on: what is not decided is not confirmed.
        errors: list[BaseException | None] = [UNCONFIRMED] * len(messages)
        held: set[str] = set()
        undecided = list(range(len(messages)))
        while undecided:
            wave, undecided = self._next_wave(undecided, messages, errors, held)
            for index, error in zip(wave, self._send([messages[index] for index in wave]), strict=True):
                errors[index] = error
                if error is not None and (subject := messages[index].subject) is not None:
                    held.add(subject)
                if isinstance(error, Away):
                    # One wait for a broker that is away is enough.
                    for behind in undecided:
                        errors[behind] = error
                    undecided = []
        away = next((error for error in errors if isinstance(error, Away)), None)
        if away is not None and all(isinstance(error, Away) or error is _HELD for error in errors):
            raise again(away)
        return errors

    def _next_wave(
        self,
        undecided: Sequence[int],
        messages: Sequence[Message],
        errors: list[BaseException | None],
        held: set[str],
    ) -> tuple[list[int], list[int]]:
        """The indexes to send now, and those to send later. What cannot be sent has its error, and holds its subject."""
        wave: list[int] = []
        later: list[int] = []
        before: set[str] = set()  # subjects of which one comes earlier
        body_bytes = 0
        for index in undecided:
            message = messages[index]
            full = bool(wave) and body_bytes + len(message.body) > SEND_BYTES_MAX
            if message.subject in before or full:
                later.append(index)
            elif (error := self._refuse(message, held)) is not None:
                errors[index] = error
                continue
            else:
                wave.append(index)
                body_bytes += len(message.body)
            if message.subject is not None:
                before.add(message.subject)
        return wave, later

    def _refuse(self, message: Message, held: set[str]) -> BaseException | None:
        """Why this message cannot be sent, now or at all; its subject is held from then on. None: it can."""
        error = _HELD if message.subject in held else self._unsendable(message)
        if error is not None and message.subject is not None:
            held.add(message.subject)
        return error

    def _unsendable(self, message: Message) -> BaseException | None:
        letters = self._letters(message)
        if not letters:
            return UsageError(f"no queue is named for messages of type {message.type!r}")
        if len(message.body) > self._body_bytes_max:
            return UsageError(
                f"a body of {len(message.body)} bytes is more than the {self._body_bytes_max} that this sink sends "
                "(body_bytes_max, at most the server's max_message_size)"
            )
        return next((error for letter in letters if (error := letter.flaw()) is not None), None)

    def _letters(self, message: Message) -> list[Letter]:
        """One for each queue that it goes to."""
        properties = properties_of(message)
        if self._exchange is not None:
            return [Letter(self._exchange, message.type, properties, message.body)]
        return [Letter("", queue, properties, message.body) for queue in self._targets(message.type)]

    def _targets(self, message_type: str) -> Sequence[str]:
        if isinstance(self._queues, Mapping):
            target = self._queues.get(message_type, ())
            return (target,) if isinstance(target, str) else target
        return () if self._queues is None else (self._queues,)

    def _send(self, messages: Sequence[Message]) -> list[BaseException | None]:
        """Together; where the broker closes the channel over one of them, one by one."""
        if not messages:
            return []
        errors = self._send_together(messages)
        if len(messages) > 1 and any(isinstance(error, Refused) for error in errors):
            return [
                self._send_together([message])[0] if isinstance(error, Refused) else error
                for message, error in zip(messages, errors, strict=True)
            ]
        return errors

    def _send_together(self, messages: Sequence[Message]) -> list[BaseException | None]:
        by_message = [self._letters(message) for message in messages]
        try:
            answers = iter(self._publisher.publish([letter for letters in by_message for letter in letters]))
        except TransportError as error:
            return [Away(str(error))] * len(messages)
        # A message has arrived when each of its queues has it.
        by_message_answers = [[next(answers) for _ in letters] for letters in by_message]
        return [next((error for error in each if error is not None), None) for each in by_message_answers]

    def close(self) -> None:
        self._publisher.close()
