"""Kafka: what a topic, its brokers and the client settings of its URL say, and what is wrong with them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from onceward.doctor.diagnosis import Check, Diagnosis, Leg, spoken
from onceward.doctor.needs import Needs, judge_retention, judge_window
from onceward.errors import TransportError, UsageError

REPLICAS_MIN: Final = 3
IN_SYNC_MIN: Final = 2
POLL_INTERVAL_MS_MIN: Final = 60_000
ANSWER_SECONDS_MAX: Final = 10.0
_OFFSETS: Final = "__consumer_offsets"

REPLICAS: Final = Check(
    "kafka.replication_factor",
    Leg.QUEUE,
    "What a lost broker was the only one to have is lost, confirmed or not. With three copies, one broker may be lost"
    " and one more be restarted.",
)
IN_SYNC: Final = Check(
    "kafka.min_insync_replicas",
    Leg.QUEUE,
    "acks=all waits for the replicas that are in sync, and that may be one: a message is confirmed that only the "
    "leader has, and is lost with it.",
)
BEHIND: Final = Check(
    "kafka.replicas_in_sync",
    Leg.QUEUE,
    "A partition with fewer replicas in sync than min.insync.replicas refuses what is sent to it; one without a "
    "leader serves nobody.",
)
UNCLEAN: Final = Check(
    "kafka.unclean_leader_election",
    Leg.QUEUE,
    "A replica that is behind may become the leader: what it does not have is gone, although it was confirmed.",
)
CLEANUP: Final = Check(
    "kafka.cleanup_policy",
    Leg.QUEUE,
    "Compaction keeps only the last message of each key: the ones before it may be gone before they are consumed.",
)
RETENTION: Final = Check(
    "kafka.retention",
    Leg.QUEUE,
    "Kafka deletes messages by their age, consumed or not: an outage of the consumer that lasts longer loses them.",
)
RETENTION_BYTES: Final = Check(
    "kafka.retention_bytes",
    Leg.QUEUE,
    "Kafka deletes the oldest messages of a partition that has grown to this size, at whatever age, consumed or not: "
    "a burst loses them.",
)
ACKS: Final = Check(
    "kafka.acks",
    Leg.PRODUCER,
    "A message is confirmed before its copies exist: if the leader is lost then, so is the message.",
)
OFFSETS_RETENTION: Final = Check(
    "kafka.offsets_retention",
    Leg.CONSUMER,
    "The offsets of a group that is away for longer are forgotten: it then begins at its auto.offset.reset. With "
    "'earliest' the inbox turns away what was handled; with 'latest' what had come meanwhile is never seen.",
)
OFFSETS_REPLICAS: Final = Check(
    "kafka.offsets_replication_factor",
    Leg.CONSUMER,
    "With the only broker that has them, the offsets of every group are lost, and each group begins at its "
    "auto.offset.reset.",
)
OFFSET_RESET: Final = Check(
    "kafka.auto_offset_reset",
    Leg.CONSUMER,
    "A group without an offset (a new one, or one that was away for long) begins behind all messages that are there: "
    "these are never handled.",
)
AUTO_COMMIT: Final = Check(
    "kafka.enable_auto_commit",
    Leg.CONSUMER,
    "Offsets are committed by a clock, finished or not: a crash loses what was in hand.",
)
ISOLATION: Final = Check(
    "kafka.isolation_level",
    Leg.CONSUMER,
    "Messages of transactions that were aborted are handled: their producer has taken them back.",
)
POLL_INTERVAL: Final = Check(
    "kafka.max_poll_interval",
    Leg.TIMEOUT,
    "A process that hangs for longer loses its partitions, and its messages in hand are handled by another one as "
    "well. The consumer polls while its handlers run, so they need no longer interval.",
)


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """How many copies a partition has."""

    replicas: int
    in_sync: int
    has_leader: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFacts:
    """What the brokers say of a topic. None: without a limit, or not to be had, as each line says."""

    name: str
    bootstrap: str
    brokers: Sequence[int] = (1,)
    partitions: Sequence[PartitionFacts] = ()
    in_sync_min: int = 1
    unclean: bool = False
    cleanup: str = "delete"
    retention_seconds: float | None = None  # None: for ever
    retention_bytes: int | None = None  # None: any size
    offsets_retention_seconds: float | None = None  # None: the brokers do not say
    offsets_replicas: int | None = None  # None: there are no offsets yet
    settings: Mapping[str, str] = field(default_factory=dict)  # of the client, in the queue's URL


def gather(
    brokers: str, topic: str, settings: Mapping[str, str], *, answer_seconds_max: float = ANSWER_SECONDS_MAX
) -> TopicFacts:
    """The facts of a topic. Raises `UsageError` when there is none, `TransportError` when no broker answers."""
    from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import AdminClient, ResourceType  # noqa: PLC0415

    from onceward.transports.kafka.settings import admin_config  # noqa: PLC0415

    of_client = {name: value for name, value in settings.items() if name != "group"}  # the URL's own word
    client = AdminClient(admin_config({"bootstrap.servers": brokers, **of_client}))
    try:
        metadata = client.list_topics(timeout=answer_seconds_max)
        found = metadata.topics.get(topic)
        if found is None or found.error is not None:
            raise UsageError(f"there is no Kafka topic {topic!r} at {brokers}: `onceward queue create` makes it")
        of_topic = _described(client, ResourceType.TOPIC, topic)
    except KafkaException as error:
        raise TransportError(f"Kafka at {brokers} does not say how {topic!r} is set: {error}") from error
    try:
        of_broker = _described(client, ResourceType.BROKER, str(next(iter(metadata.brokers))))
    except KafkaException:
        of_broker = {}  # a user may be allowed to see a topic's settings, and not those of the brokers
    offsets = metadata.topics.get(_OFFSETS)
    offsets_minutes = of_broker.get("offsets.retention.minutes")
    return TopicFacts(
        name=topic,
        bootstrap=brokers,
        brokers=sorted(metadata.brokers),
        partitions=[PartitionFacts(len(p.replicas), len(p.isrs), p.leader >= 0) for p in found.partitions.values()],
        in_sync_min=int(of_topic["min.insync.replicas"]),
        unclean=of_topic["unclean.leader.election.enable"] == "true",
        cleanup=of_topic["cleanup.policy"],
        retention_seconds=_seconds(of_topic["retention.ms"]),
        retention_bytes=_limit(of_topic["retention.bytes"]),
        offsets_retention_seconds=None if offsets_minutes is None else float(offsets_minutes) * 60,
        offsets_replicas=min((len(p.replicas) for p in offsets.partitions.values()), default=None) if offsets else None,
        settings=settings,
    )


def _described(client: Any, kind: Any, name: str) -> dict[str, str]:
    """The settings in force of one topic or broker."""
    from confluent_kafka.admin import ConfigResource  # noqa: PLC0415 - an extra

    resource = ConfigResource(kind, name)
    [future] = client.describe_configs([resource], request_timeout=ANSWER_SECONDS_MAX).values()
    return {entry.name: entry.value for entry in future.result().values() if entry.value is not None}


def _limit(value: str) -> int | None:
    return None if int(value) < 0 else int(value)


def _seconds(milliseconds: str) -> float | None:
    limit = _limit(milliseconds)
    return None if limit is None else limit / 1000


def judge(facts: TopicFacts, needs: Needs, *, dead_letter: TopicFacts | None = None) -> Iterator[Diagnosis]:
    """What is right and what is wrong with them."""
    place = f"kafka:{facts.name}"
    yield from _judge_durability(facts, needs, place)
    yield from _judge_kept(facts, place)
    yield from _judge_offsets(facts, needs, place)
    yield from _judge_client(facts.settings, place)
    if dead_letter is not None:
        of_dead_letter = f"kafka:{dead_letter.name}"
        yield from _judge_durability(dead_letter, needs, of_dead_letter)
        yield from _judge_kept(dead_letter, of_dead_letter)
    yield from judge_window(place, _kept_together(facts, dead_letter), needs)


def _kept_together(facts: TopicFacts, dead_letter: TopicFacts | None) -> float | None:
    kept = [facts.retention_seconds, *([] if dead_letter is None else [dead_letter.retention_seconds])]
    return None if None in kept else sum(seconds for seconds in kept if seconds is not None)


def _judge_durability(facts: TopicFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    replicas = min((partition.replicas for partition in facts.partitions), default=0)
    yield from _judge_copies(facts, needs, place, replicas)
    worst = min((partition.in_sync for partition in facts.partitions), default=0)
    leaderless = sum(not partition.has_leader for partition in facts.partitions)
    if leaderless or worst < min(facts.in_sync_min, replicas):
        yield BEHIND.wrong(
            place, f"{leaderless} partitions without a leader, at worst {worst} replicas in sync",
            wanted=f"{facts.in_sync_min} in sync for every partition",
            mend=_command(facts, "kafka-topics.sh", "--describe", "--topic", facts.name, "--unavailable-partitions"),
        )  # fmt: skip
    else:
        yield BEHIND.right(place, f"at least {worst} of {replicas}")
    if facts.unclean:
        yield UNCLEAN.wrong(
            place, "allowed", wanted="not allowed", mend=_set(facts, "unclean.leader.election.enable=false")
        )
    else:
        yield UNCLEAN.right(place, "not allowed")


def _judge_copies(facts: TopicFacts, needs: Needs, place: str, replicas: int) -> Iterator[Diagnosis]:
    in_sync = f"{facts.in_sync_min} of {replicas}"
    if needs.one_broker:
        yield REPLICAS.right(place, f"{replicas}, accepted for development")
        yield IN_SYNC.right(place, f"{in_sync}, accepted for development")
        return
    if replicas < REPLICAS_MIN:
        yield REPLICAS.wrong(place, str(replicas), wanted=f"at least {REPLICAS_MIN}", mend=_reassign(facts))
    else:
        yield REPLICAS.right(place, str(replicas))
    if facts.in_sync_min < IN_SYNC_MIN:
        mend = _set(facts, f"min.insync.replicas={IN_SYNC_MIN}")
        yield IN_SYNC.wrong(place, in_sync, wanted=f"at least {IN_SYNC_MIN}", mend=mend)
    elif facts.in_sync_min >= replicas:
        mend = _set(facts, f"min.insync.replicas={max(IN_SYNC_MIN, replicas - 1)}")
        wanted = "fewer than there are replicas: else nothing can be sent while one broker is away"
        yield IN_SYNC.wrong(place, in_sync, wanted=wanted, mend=mend, severe=False)
    else:
        yield IN_SYNC.right(place, in_sync)


def _judge_kept(facts: TopicFacts, place: str) -> Iterator[Diagnosis]:
    if "compact" in facts.cleanup:
        yield CLEANUP.wrong(place, facts.cleanup, wanted="delete", mend=_set(facts, "cleanup.policy=delete"))
    else:
        yield CLEANUP.right(place, facts.cleanup)
    yield judge_retention(RETENTION, place, facts.retention_seconds, _set(facts, "retention.ms=604800000"))
    if facts.retention_bytes is None:
        yield RETENTION_BYTES.right(place, "any size")
    else:
        yield RETENTION_BYTES.wrong(
            place, f"{facts.retention_bytes} bytes for each partition", wanted="-1: age alone decides", severe=False,
            mend=_set(facts, "retention.bytes=-1"),
        )  # fmt: skip


def _judge_offsets(facts: TopicFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    kept, wanted = facts.offsets_retention_seconds, facts.retention_seconds
    if kept is None:
        look = shlex.join(
            ["kafka-configs.sh", "--bootstrap-server", facts.bootstrap, "--describe", "--entity-type", "brokers"]
        )
        yield OFFSETS_RETENTION.unknown(place, "the broker does not say", find_out=f"{look} --all")
    elif wanted is None or kept >= wanted:
        yield OFFSETS_RETENTION.right(place, spoken(kept))
    else:
        yield OFFSETS_RETENTION.wrong(
            place, f"{spoken(kept)}; the topic keeps messages for {spoken(wanted)}", wanted=f"at least {spoken(wanted)}",
            mend=f"offsets.retention.minutes={wanted / 60:.0f} in server.properties of every broker, then restart it",
            severe=False,
        )  # fmt: skip
    if facts.offsets_replicas is None:
        yield OFFSETS_REPLICAS.unknown(
            place, "no group has committed an offset yet", find_out="run the consumer once, then ask again"
        )
    elif facts.offsets_replicas >= REPLICAS_MIN or needs.one_broker:
        accepted = ", accepted for development" if facts.offsets_replicas < REPLICAS_MIN else ""
        yield OFFSETS_REPLICAS.right(place, f"{facts.offsets_replicas}{accepted}")
    else:
        yield OFFSETS_REPLICAS.wrong(
            place, str(facts.offsets_replicas), wanted=f"at least {REPLICAS_MIN}", severe=False,
            mend=_command(facts, "kafka-reassign-partitions.sh", "--topics-to-move-json-file", "moves.json", "--generate"),
        )  # fmt: skip


def _judge_client(settings: Mapping[str, str], place: str) -> Iterator[Diagnosis]:
    """The settings of the client that the queue's URL carries, where they are not what our adapter asks for."""
    asked = (
        (ACKS, "acks", {"all", "-1"}, "all, which the Sink asks for"),
        (AUTO_COMMIT, "enable.auto.commit", {"false"}, "false, which the Source asks for"),
        (ISOLATION, "isolation.level", {"read_committed"}, "read_committed, which the Source asks for"),
        (
            OFFSET_RESET,
            "auto.offset.reset",
            {"earliest", "smallest", "beginning", "error"},
            "earliest, which the Source asks for",
        ),
    )
    for check, name, good, otherwise in asked:
        value = settings.get(name)
        if value is None or value in good:
            yield check.right(place, value or otherwise)
        else:
            yield check.wrong(place, value, wanted=" or ".join(sorted(good)), mend=f"leave {name} out of the queue's URL")
    interval_ms = int(settings.get("max.poll.interval.ms", "300000"))
    found = spoken(interval_ms / 1000)
    if interval_ms >= POLL_INTERVAL_MS_MIN:
        yield POLL_INTERVAL.right(place, found)
    else:
        wanted = f"at least {spoken(POLL_INTERVAL_MS_MIN / 1000)}"
        mend = "leave max.poll.interval.ms out of the queue's URL (librdkafka's own is 5 min)"
        yield POLL_INTERVAL.wrong(place, found, wanted=wanted, mend=mend, severe=False)


def _set(facts: TopicFacts, setting: str) -> str:
    names = ("--entity-type", "topics", "--entity-name", facts.name)
    return _command(facts, "kafka-configs.sh", "--alter", *names, "--add-config", setting)


def _reassign(facts: TopicFacts) -> str:
    if len(facts.brokers) < REPLICAS_MIN:
        return f"add brokers until there are {REPLICAS_MIN}, then ask again (a cluster for development: --dev)"
    many = len(facts.brokers)
    moves = [
        {"topic": facts.name, "partition": n, "replicas": [facts.brokers[(n + k) % many] for k in range(REPLICAS_MIN)]}
        for n in range(len(facts.partitions))
    ]
    plan = shlex.quote(json.dumps({"version": 1, "partitions": moves}))
    execute = _command(facts, "kafka-reassign-partitions.sh", "--reassignment-json-file", "moves.json", "--execute")
    return f"echo {plan} >moves.json; {execute}"


def _command(facts: TopicFacts, program: str, *words: str) -> str:
    return shlex.join([program, "--bootstrap-server", facts.bootstrap, *words])
