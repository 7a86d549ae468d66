"""One form for every queue, so that moving a consumer from one to another is a change of one line.

    pgmq:NAME                                          in the database that is named beside it; a bare NAME means the same
    sqs://NAME                                         region, credentials and endpoint are boto3's to find
    sqs:https://sqs.REGION.amazonaws.com/ACCOUNT/NAME  the queue's own URL
    amqp://USER:PASSWORD@HOST:PORT/VHOST?queue=NAME    amqps too; the rest of the URL is read by pika
    kafka://HOST:PORT,HOST:PORT/TOPIC?group=NAME       what else follows is a setting of librdkafka, by its own name

What is made here are factories: a client is built in the process that uses it. Whoever needs more than a URL can say builds
the client, and gives it to the transport.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from onceward.errors import TransportError, UsageError
from onceward.transport import Sink, Source

__all__ = ["QueueUrl", "parse", "sink_at", "split"]

VISIBILITY_SECONDS: Final = 30
FORMS: Final = "pgmq:NAME, sqs://NAME, amqp://HOST/VHOST?queue=NAME or kafka://HOST:PORT/TOPIC"
# For a stand-in of SQS: as AWS_ENDPOINT_URL_SQS, but heard by nothing else in the process.
SQS_ENDPOINT: Final = "ONCEWARD_SQS_ENDPOINT"
CREATION: Final = {"partitions": 1, "replication": -1}  # of a Kafka topic; -1: what its cluster does by default
SCHEME: Final = "(?:pgmq|sqs|amqps?|kafka):"
Targets = str | dict[str, list[str]]  # of a sink: the name of one queue for all types, or the names for each type


@dataclass(frozen=True, slots=True)
class QueueUrl(ABC):
    """One queue at one server, as a URL names it. Each client is imported only where it is used."""

    name: str
    extra: ClassVar[str]
    client: ClassVar[str]

    def __post_init__(self) -> None:
        if find_spec(self.client) is None:
            raise UsageError(f"this queue needs {self.client}: pip install 'onceward[{self.extra}]'")

    @property
    def server(self) -> tuple[str, ...]:
        """What tells two servers apart."""
        return (self.extra,)

    @abstractmethod
    def source(self, *, consumer: str, visibility_seconds: int = VISIBILITY_SECONDS) -> Callable[[], Source]:
        """A factory of its source, for the consumer of this name. `visibility_seconds`: the lease, where it has one."""

    @abstractmethod
    def sink(self, targets: Targets) -> Callable[[], Sink]:
        """A factory of a sink at its server."""

    def check(self) -> None:
        """Raises `UsageError` when it is not there, `TransportError` when its server does not answer."""
        try:
            self._check()
        except TransportError as error:
            raise TransportError(f"{self.where} does not answer for {self.name!r}: {error}") from error

    @property
    @abstractmethod
    def where(self) -> str:
        """Its server, for people: without a password."""

    @abstractmethod
    def _check(self) -> None: ...

    @abstractmethod
    def create(self) -> bool:
        """It exists, durable; True when this call made it."""


@dataclass(frozen=True, slots=True)
class PgmqQueue(QueueUrl):
    """`pgmq:NAME`. `database`: where its tables are, and pgmq itself: creating a queue does not install it."""

    database: str
    extra: ClassVar[str] = "pgmq"
    client: ClassVar[str] = "psycopg"  # its own package is needed only to install it

    @property
    def where(self) -> str:
        return "the database of pgmq"

    def source(self, *, consumer: str, visibility_seconds: int = VISIBILITY_SECONDS) -> Callable[[], Source]:  # noqa: ARG002
        from onceward.transports import pgmq  # noqa: PLC0415

        return lambda: pgmq.Source(self.name, self.database, visibility_seconds=visibility_seconds)

    def sink(self, targets: Targets) -> Callable[[], Sink]:
        from onceward.transports import pgmq  # noqa: PLC0415

        return lambda: pgmq.Sink(targets, self.database)

    def _check(self) -> None:
        from onceward.transports import pgmq  # noqa: PLC0415

        pgmq.check_queue(self.database, self.name)

    def create(self) -> bool:
        import psycopg  # noqa: PLC0415

        from onceward.transports import pgmq  # noqa: PLC0415

        with psycopg.connect(self.database, autocommit=True) as conn:
            made = pgmq.create_queue(conn, self.name)
        self.check()  # one that was there already may be UNLOGGED
        return made


@dataclass(frozen=True, slots=True)
class SqsQueue(QueueUrl):
    """`sqs://NAME`, or `sqs:` with the queue's own URL."""

    extra: ClassVar[str] = "sqs"
    client: ClassVar[str] = "boto3"

    @property
    def where(self) -> str:
        return "SQS"

    def source(self, *, consumer: str, visibility_seconds: int = VISIBILITY_SECONDS) -> Callable[[], Source]:  # noqa: ARG002
        from onceward.transports import sqs  # noqa: PLC0415

        return lambda: sqs.Source(sqs_client(), self.name, visibility_seconds=visibility_seconds)

    def sink(self, targets: Targets) -> Callable[[], Sink]:
        from onceward.transports import sqs  # noqa: PLC0415

        return lambda: sqs.Sink(sqs_client(), targets)

    def _check(self) -> None:
        from onceward.transports import sqs  # noqa: PLC0415

        sqs.check_queue(sqs_client(), self.name)

    def create(self) -> bool:
        from onceward.transports import sqs  # noqa: PLC0415

        return sqs.create_queue(sqs_client(), self.name)


def sqs_client() -> Any:
    import boto3  # noqa: PLC0415

    return boto3.client("sqs", endpoint_url=os.environ.get(SQS_ENDPOINT) or None)


@dataclass(frozen=True, slots=True)
class RabbitmqQueue(QueueUrl):
    """`amqp://HOST/VHOST?queue=NAME`. `url`: the rest of it, which is pika's."""

    url: str = field(repr=False)  # it may hold a password
    extra: ClassVar[str] = "rabbitmq"
    client: ClassVar[str] = "pika"

    @property
    def server(self) -> tuple[str, ...]:
        return (self.extra, self.url)

    @property
    def where(self) -> str:
        return f"RabbitMQ at {urlsplit(self.url).hostname}:{urlsplit(self.url).port or 5672}"

    def source(self, *, consumer: str, visibility_seconds: int = VISIBILITY_SECONDS) -> Callable[[], Source]:  # noqa: ARG002
        from onceward.transports import rabbitmq  # noqa: PLC0415

        return lambda: rabbitmq.Source(self._parameters(), self.name)

    def sink(self, targets: Targets) -> Callable[[], Sink]:
        from onceward.transports import rabbitmq  # noqa: PLC0415

        return lambda: rabbitmq.Sink(self._parameters(), targets)

    def _check(self) -> None:
        from onceward.transports import rabbitmq  # noqa: PLC0415

        rabbitmq.check_queue(self._parameters(), self.name)

    def create(self) -> bool:
        from onceward.transports import rabbitmq  # noqa: PLC0415

        try:
            rabbitmq.check_queue(self._parameters(), self.name)
            is_new = False
        except UsageError:
            is_new = True
        # Also where it is there: its delay queues may be missing, or its arguments others than ours.
        rabbitmq.create_queue(self._parameters(), self.name)
        return is_new

    def _parameters(self) -> Any:
        import pika  # noqa: PLC0415

        return pika.URLParameters(self.url)


@dataclass(frozen=True, slots=True)
class KafkaTopic(QueueUrl):
    """`kafka://HOST:PORT,HOST:PORT/TOPIC`. `settings`: of librdkafka, by its names; `group` is short for `group.id`.

    `partitions` and `replication` are numbers for the topic's creation.
    """

    brokers: str
    settings: Mapping[str, str] = field(repr=False, hash=False)
    extra: ClassVar[str] = "kafka"
    client: ClassVar[str] = "confluent_kafka"

    @property
    def server(self) -> tuple[str, ...]:
        # The settings, too: of two URLs with different ones, a client would have to ignore one's.
        return (self.extra, self.brokers, *(f"{name}={value}" for name, value in sorted(self._config().items())))

    @property
    def where(self) -> str:
        return f"Kafka at {self.brokers}"

    def source(self, *, consumer: str, visibility_seconds: int = VISIBILITY_SECONDS) -> Callable[[], Source]:  # noqa: ARG002
        from onceward.transports import kafka  # noqa: PLC0415

        config = {"group.id": self.settings.get("group", consumer), **self._config()}
        return lambda: kafka.Source(config, [self.name])

    def sink(self, targets: Targets) -> Callable[[], Sink]:
        from onceward.transports import kafka  # noqa: PLC0415

        return lambda: kafka.Sink(self._config(), targets)

    def _check(self) -> None:
        from onceward.transports import kafka  # noqa: PLC0415

        kafka.check_topic(self._config(), self.name)

    def create(self) -> bool:
        from onceward.transports import kafka  # noqa: PLC0415

        partitions, replication = (int(self.settings.get(name, default)) for name, default in CREATION.items())
        return kafka.create_topic(self._config(), self.name, partitions=partitions, replication=replication)

    def _config(self) -> dict[str, Any]:
        others = {name: value for name, value in self.settings.items() if name not in ("group", *CREATION)}
        return {"bootstrap.servers": self.brokers, **others}


def parse(text: str, *, database: str) -> QueueUrl:
    """The queue that `text` names. `database`: where pgmq's are.

    Raises `UsageError`, with the right form, for what names no queue, or where the client of its kind is not installed.
    The server is not asked.
    """
    scheme, colon, rest = text.partition(":")
    if not colon:
        return PgmqQueue(_named(text, text), database)
    match scheme:
        case "pgmq":
            return PgmqQueue(_named(rest.removeprefix("//"), text), database)
        case "sqs":
            return SqsQueue(_named(rest.removeprefix("//"), text))
        case "amqp" | "amqps":
            return _rabbitmq_queue(text)
        case "kafka":
            return _kafka_topic(text)
        case _:
            raise UsageError(f"{text!r}: there is no queue of the kind {scheme!r}; write {FORMS}")


def _rabbitmq_queue(text: str) -> RabbitmqQueue:
    parts = urlsplit(text)
    pairs = parse_qsl(parts.query)
    name = next((value for key, value in pairs if key == "queue"), "")
    rest = urlencode([(key, value) for key, value in pairs if key != "queue"])
    # What goes into an error message is not the URL: it may hold a password.
    return RabbitmqQueue(_named(name, f"{parts.scheme}://{parts.hostname}"), urlunsplit(parts._replace(query=rest)))


def _kafka_topic(text: str) -> KafkaTopic:
    # Not the host and port of urlsplit: there may be several brokers.
    parts, shown = urlsplit(text), without_secrets(text)
    if not parts.netloc:
        raise UsageError(f"{shown!r} names no broker; write kafka://HOST:PORT/TOPIC")
    settings = dict(parse_qsl(parts.query))
    if wrong := [name for name in CREATION if not settings.get(name, "1").isdecimal()]:
        raise UsageError(f"{shown!r}: {wrong[0]} is not a whole number; write {FORMS}")
    return KafkaTopic(_named(unquote(parts.path.strip("/")), shown), parts.netloc, settings)


def _named(name: str, text: str) -> str:
    if not name:
        raise UsageError(f"{text!r} names no queue; write {FORMS}")
    return name


def sink_at(targets: str | Mapping[str, Sequence[str]], *, database: str) -> Callable[[], Sink]:
    """A factory of a sink: all types go to one queue, or each type to its queues, by their URLs.

    Raises `UsageError` as `parse` does, and when the queues are not all at one server: a relay sends to one.
    """
    if isinstance(targets, str):
        queue = parse(targets, database=database)
        return queue.sink(queue.name)
    queues = {url: parse(url, database=database) for urls in targets.values() for url in urls}
    if len({queue.server for queue in queues.values()}) != 1:
        raise UsageError("these queues are not all at one server: a relay sends to one; run another relay for the others")
    named = {message_type: [queues[url].name for url in urls] for message_type, urls in targets.items()}
    return next(iter(queues.values())).sink(named)


def without_secrets(text: str) -> str:
    """A URL, or whatever else names a queue, as it may be logged: no user, no password, no setting of a client."""
    if not text.startswith(("amqp", "kafka")) or "://" not in text:
        return text
    parts = urlsplit(text)
    queue = urlencode([(key, value) for key, value in parse_qsl(parts.query) if key == "queue"])
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=queue))


def split(text: str) -> list[str]:
    """`A,B,C` as queues. Of URLs, a comma ends one only where the next begins: Kafka's brokers have commas, too."""
    pattern = rf",\s*(?={SCHEME})" if re.match(SCHEME, text) else ","
    return [name.strip() for name in re.split(pattern, text)]
