"""Topics: made, looked at before they are used, and their limits read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from onceward.errors import TransportError, UsageError
from onceward.transports.kafka import codes
from onceward.transports.kafka.settings import Config, admin_config

logger = logging.getLogger("onceward.kafka")
_ANSWER_SECONDS_MAX: Final = 5.0
_FOR_EVER: Final = -1


class Limits(NamedTuple):
    """What the topics' own settings say; None: for ever, or not known."""

    retention_seconds: float | None
    message_bytes_max: int | None


_UNKNOWN: Final = Limits(None, None)


def create_topic(
    config: Config, name: str, *, partitions: int = 1, replication: int = -1, settings: Mapping[str, str] | None = None
) -> bool:
    """The topic exists; True when this call made it.

    `replication`: how many brokers keep it (-1: the cluster's default). `settings` are the topic's, like `retention.ms`.
    """
    admin = _admin(config)
    topic = NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(settings or {}))
    try:
        admin.create_topics([topic], request_timeout=_ANSWER_SECONDS_MAX)[name].result()
    except KafkaException as error:
        if codes.error_of(error).code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise _made_plain(error, f"the topic {name!r} could not be made") from error
    return True


def check_topic(config: Config, *names: str) -> None:
    """Raises `UsageError` when one of these topics is not there, `TransportError` when no broker answers."""
    known = list_topics(config)
    for name in names:
        if name not in known:
            raise missing_topic(name)


def list_topics(config: Config) -> set[str]:
    """The topics that this user may see. Raises `TransportError` when no broker answers."""
    try:
        # All of them: asked for by its name, a topic that is not there may be made by the broker.
        return set(_admin(config).list_topics(timeout=_ANSWER_SECONDS_MAX).topics)
    except KafkaException as error:
        raise _made_plain(error, "the topics could not be listed") from error


def missing_topic(name: str) -> UsageError:
    """What to do about it."""
    return UsageError(
        f"there is no Kafka topic {name!r} (or this user may not see it): make it with "
        f"onceward.transports.kafka.create_topic(config, {name!r}, partitions=...)"
    )


def read_limits(config: Config, names: Sequence[str]) -> Limits:
    """The longest retention and the smallest largest message of these topics.

    Raises `TransportError` when no broker answers. What this user may not read is not known, and said so in the log.
    """
    admin = _admin(config)  # kept until it has answered: it ends with its last reference
    asked = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in names], request_timeout=_ANSWER_SECONDS_MAX
    )
    try:
        found = [_limits({key: entry.value for key, entry in answer.result().items()}) for answer in asked.values()]
    except KafkaException as error:
        if codes.error_of(error).code() in codes.AWAY:
            raise _made_plain(error, "the settings of the topics could not be read") from error
        logger.warning(
            "the settings of the topics %s could not be read, so their retention is not compared with the window: %s",
            ", ".join(names), error,
        )  # fmt: skip
        return _UNKNOWN
    retentions = [limits.retention_seconds for limits in found]
    sizes = [limits.message_bytes_max for limits in found if limits.message_bytes_max is not None]
    return Limits(
        None if None in retentions else max(seconds for seconds in retentions if seconds is not None),
        min(sizes, default=None),
    )


def _limits(settings: Mapping[str, Any]) -> Limits:
    retention = int(settings["retention.ms"])
    # A topic that is only compacted keeps the last message of each key for ever.
    kept = retention == _FOR_EVER or "delete" not in settings["cleanup.policy"]
    return Limits(None if kept else retention / 1000, int(settings["max.message.bytes"]))


def _admin(config: Config) -> AdminClient:
    try:
        return AdminClient(admin_config(config))
    except KafkaException as error:
        raise UsageError(f"this configuration does not make a client: {codes.error_of(error).str()}") from error


def _made_plain(error: KafkaException, what: str) -> TransportError | UsageError:
    return (TransportError if codes.error_of(error).code() in codes.AWAY else UsageError)(
        f"{what}: {codes.error_of(error).str()}"
    )
