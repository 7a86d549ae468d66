"""The configuration of each client, made from the caller's.

Passed through as it is, with defaults where the client's own would lose or reorder messages. What cannot be had is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError

from onceward.errors import UsageError

Config = Mapping[str, Any]
POLL_SECONDS_MAX: Final = 300.0  # librdkafka's default
DELIVERY_SECONDS_MAX: Final = 30.0
MESSAGE_BYTES_MAX: Final = 1_000_000  # librdkafka's default
_CONSUMER_DEFAULTS: Final = {
    # A consumer that joins for the first time, or comes after its offset has expired, must not skip what is there.
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
}
_PRODUCER_DEFAULTS: Final = {
    "acks": "all",
    # One publish waits for its slowest entry; the client's own default is five minutes.
    "delivery.timeout.ms": int(DELIVERY_SECONDS_MAX * 1000),
    # As Kafka's own clients in Java: a subject has one partition, whoever sends.
    "partitioner": "murmur2_random",
}
_ALIASES: Final = {
    "acks": "request.required.acks",
    "delivery.timeout.ms": "message.timeout.ms",
    "auto.offset.reset": "auto.offset.reset",
}
# What one client takes and the others would warn about at each start.
_CONSUMER_ONLY: Final = (
    "group.", "auto.", "enable.auto.", "enable.partition.eof", "session.timeout", "heartbeat.", "max.poll.", "isolation.",
    "partition.assignment.", "fetch.", "queued.", "coordinator.", "check.crcs",
)  # fmt: skip
_PRODUCER_ONLY: Final = (
    "acks", "request.required.acks", "enable.idempotence", "enable.gapless", "delivery.", "message.timeout", "linger.",
    "queue.buffering.", "batch.", "compression.", "partitioner", "sticky.", "transactional.", "transaction.",
    "message.send.max.retries", "retries",
)  # fmt: skip
ErrorCallback = Callable[[KafkaError], None]
_client_logger = logging.getLogger("onceward.kafka.client")


class _ClientLog:
    """The client's own log lines, none of them above INFO: what matters of them comes as an error as well."""

    def log(self, level: int, text: str, *args: object) -> None:
        # Each connection that fails is a line, hundreds of them in an outage.
        most = logging.DEBUG if args and args[0] == "FAIL" else logging.INFO
        _client_logger.log(min(level, most), text, *args)


def consumer_config(config: Config, on_error: ErrorCallback) -> dict[str, Any]:
    """The consumer's. Raises `UsageError` for what would commit by itself, or without a group."""
    if not config.get("group.id"):
        raise UsageError("config names no group.id: give each consumer one of its own, for instance the consumer's name")
    for name in ("enable.auto.commit", "enable.auto.offset.store"):
        if is_true(config.get(name, False)):
            raise UsageError(
                f"{name} is true in config: offsets would be committed whose messages are not finished, and a crash would "
                "lose these; leave it out"
            )
    defaults: dict[str, Any] = dict(_CONSUMER_DEFAULTS)
    if config.get("group.protocol") != "consumer":
        # Under the newer protocol the broker chooses, and the client refuses this property.
        defaults["partition.assignment.strategy"] = "cooperative-sticky"
    forced = {"enable.auto.commit": False, "enable.auto.offset.store": False}
    return _with_callbacks(_filled(without(config, _PRODUCER_ONLY), defaults) | forced, on_error)


def producer_config(config: Config, on_error: ErrorCallback) -> dict[str, Any]:
    """The producer's. Raises `UsageError` for what would confirm too early, reorder, or needs another protocol."""
    acks = config.get("acks", config.get("request.required.acks", "all"))
    if str(acks) not in ("all", "-1"):
        raise UsageError(
            f"acks is {acks!r} in config: a message that one broker has confirmed is lost with that broker; leave it out"
        )
    if not is_true(config.get("enable.idempotence", True)):
        raise UsageError(
            "enable.idempotence is false in config: what the client sends again would come twice, and behind what was sent "
            "later; leave it out"
        )
    if "transactional.id" in config:
        raise UsageError("transactional.id is in config: a sink confirms each message by itself; leave it out")
    return _with_callbacks(
        _filled(without(config, _CONSUMER_ONLY), _PRODUCER_DEFAULTS) | {"enable.idempotence": True}, on_error
    )


def admin_config(config: Config) -> dict[str, Any]:
    """For questions about topics, and for making them."""
    return _with_callbacks(without(config, _CONSUMER_ONLY + _PRODUCER_ONLY), lambda _: None)


def poll_seconds_max(config: Config) -> float:
    """How long a member of the group may be silent."""
    return float(config.get("max.poll.interval.ms", POLL_SECONDS_MAX * 1000)) / 1000


def without(config: Config, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The configuration without what belongs to another kind of client."""
    return {name: value for name, value in config.items() if not name.startswith(prefixes)}


def is_true(value: object) -> bool:
    """As librdkafka reads it: True, "true", "t", "1"."""
    return str(value).lower() in ("true", "t", "1")


def _filled(config: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    missing = {name: value for name, value in defaults.items() if name not in config and _ALIASES.get(name) not in config}
    return missing | config


def _with_callbacks(config: dict[str, Any], on_error: ErrorCallback) -> dict[str, Any]:
    theirs = config.get("error_cb")

    def both(error: KafkaError) -> None:
        on_error(error)
        if theirs is not None:
            theirs(error)

    return {"logger": _ClientLog()} | config | {"error_cb": both}
