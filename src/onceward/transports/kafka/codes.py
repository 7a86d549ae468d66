"""Which errors of the client mean what. Those with an underscore are the client's own, the others come from a broker."""

# ruff: noqa: SLF001 - the underscore belongs to the names that the client offers

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

ALL_BROKERS_AWAY: Final = KafkaError._ALL_BROKERS_DOWN
SILENT_TOO_LONG: Final = KafkaError._MAX_POLL_EXCEEDED
FATAL: Final = KafkaError._FATAL
NOT_ANSWERED: Final = KafkaError._PURGE_INFLIGHT
TOO_LARGE: Final = KafkaError.MSG_SIZE_TOO_LARGE
UNKNOWN_TOPIC: Final = frozenset(
    {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
_DENIED: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
# No other try of the same entry mends these.
UNSENDABLE: Final = (
    UNKNOWN_TOPIC | _DENIED | {TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.TOPIC_EXCEPTION, KafkaError._INVALID_ARG}
)
# Of a source, when they come before anything was assigned to it.
MISCONFIGURED: Final = _DENIED | {
    KafkaError.INVALID_GROUP_ID,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.TOPIC_EXCEPTION,
}
# A commit by a member that the group does not know any more, or that is just being assigned anew.
REFUSED: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._FENCED,
    }
)
# No broker answers.
AWAY: Final = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
# What a client mends by itself, and says in its own log.
PASSING: Final = AWAY - {ALL_BROKERS_AWAY} | {KafkaError._PARTITION_EOF, KafkaError._FAIL}


def is_fatal(error: KafkaError) -> bool:
    """The client that says so is of no use any more."""
    return error.fatal() or error.code() == FATAL


def error_of(exception: KafkaException) -> KafkaError:
    """What the client's exception carries."""
    error: KafkaError = exception.args[0]
    return error
