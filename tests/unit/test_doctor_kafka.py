"""What doctor says of a Kafka topic, from what its brokers say of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from tests.support.diagnoses import NEEDS, NEEDS_OF_ONE_BROKER, mends, unknown, wrong

from onceward.doctor.kafka import PartitionFacts, TopicFacts, judge

DAY = 86_400
FACTS = TopicFacts(
    name="orders", bootstrap="a:9092", brokers=(1, 2, 3), partitions=(PartitionFacts(3, 3), PartitionFacts(3, 2)),
    in_sync_min=2, retention_seconds=7 * DAY, offsets_retention_seconds=7 * DAY, offsets_replicas=3,
)  # fmt: skip
ALONE = replace(
    FACTS, brokers=(1,), partitions=(PartitionFacts(1, 1), PartitionFacts(1, 1)), in_sync_min=1, offsets_replicas=1
)


def test_a_topic_that_is_set_well_has_no_findings() -> None:
    assert wrong(judge(FACTS, NEEDS)) == {}
    assert unknown(judge(FACTS, NEEDS)) == set()


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (replace(FACTS, in_sync_min=1), {"kafka.min_insync_replicas": "error"}),
        (replace(FACTS, partitions=[PartitionFacts(3, 3)], in_sync_min=3), {"kafka.min_insync_replicas": "warning"}),
        (replace(FACTS, partitions=[PartitionFacts(3, 1)]), {"kafka.replicas_in_sync": "error"}),
        (replace(FACTS, partitions=[PartitionFacts(3, 3, has_leader=False)]), {"kafka.replicas_in_sync": "error"}),
        (replace(FACTS, unclean=True), {"kafka.unclean_leader_election": "error"}),
        (replace(FACTS, cleanup="compact,delete"), {"kafka.cleanup_policy": "error"}),
        (replace(FACTS, retention_seconds=3600), {"kafka.retention": "warning"}),
        (replace(FACTS, retention_bytes=1_000_000), {"kafka.retention_bytes": "warning"}),
        (replace(FACTS, offsets_retention_seconds=DAY), {"kafka.offsets_retention": "warning"}),
        (replace(FACTS, offsets_replicas=1), {"kafka.offsets_replication_factor": "warning"}),
        (replace(FACTS, settings={"acks": "1"}), {"kafka.acks": "error"}),
        (replace(FACTS, settings={"enable.auto.commit": "true"}), {"kafka.enable_auto_commit": "error"}),
        (replace(FACTS, settings={"isolation.level": "read_uncommitted"}), {"kafka.isolation_level": "error"}),
        (replace(FACTS, settings={"auto.offset.reset": "latest"}), {"kafka.auto_offset_reset": "error"}),
        (replace(FACTS, settings={"max.poll.interval.ms": "6000"}), {"kafka.max_poll_interval": "warning"}),
        (replace(FACTS, retention_seconds=31 * DAY, offsets_retention_seconds=31 * DAY), {"window": "error"}),
    ],
)
def test_each_wrong_setting_is_found_by_name(facts: TopicFacts, found: dict[str, str]) -> None:
    assert wrong(judge(facts, NEEDS)) == found


def test_one_broker_is_a_finding_unless_it_is_accepted() -> None:
    assert wrong(judge(ALONE, NEEDS)) == {
        "kafka.replication_factor": "error",
        "kafka.min_insync_replicas": "error",
        "kafka.offsets_replication_factor": "warning",
    }
    assert wrong(judge(ALONE, NEEDS_OF_ONE_BROKER)) == {}


def test_the_window_is_held_against_both_retentions_together() -> None:
    dead_letter = replace(FACTS, name="dead", retention_seconds=24 * DAY)
    assert wrong(judge(FACTS, NEEDS, dead_letter=dead_letter)) == {"window": "error"}


def test_a_topic_that_keeps_messages_for_ever_cannot_have_a_window_that_long() -> None:
    assert wrong(judge(replace(FACTS, retention_seconds=None), NEEDS)) == {}


def test_a_dead_letter_topic_is_judged_as_well() -> None:
    dead_letter = replace(FACTS, name="dead", unclean=True)
    [finding] = [d for d in judge(FACTS, NEEDS, dead_letter=dead_letter) if d.is_finding]
    assert (finding.check.name, finding.place) == ("kafka.unclean_leader_election", "kafka:dead")


def test_offsets_that_nobody_has_committed_are_unknown() -> None:
    assert unknown(judge(replace(FACTS, offsets_replicas=None), NEEDS)) == {"kafka.offsets_replication_factor"}


def test_the_command_that_adds_replicas_is_a_whole_plan() -> None:
    facts = replace(FACTS, partitions=(PartitionFacts(1, 1), PartitionFacts(1, 1)), in_sync_min=1)
    plan = json.loads(shlex.split(mends(judge(facts, NEEDS))["kafka.replication_factor"])[1])
    assert [move["replicas"] for move in plan["partitions"]] == [[1, 2, 3], [2, 3, 1]]
