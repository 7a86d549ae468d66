"""doctor on a Kafka: what was set wrong there on purpose is found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tests.support.brokers import fresh, installed
from tests.support.diagnoses import NEEDS, NEEDS_OF_ONE_BROKER, unknown, wrong

from onceward.doctor.kafka import gather, judge
from onceward.errors import TransportError, UsageError

Make = Callable[..., str]


@pytest.fixture
def make(kafka_bootstrap: str) -> Make:
    """Makes a topic with these settings; gives its name."""
    return lambda **settings: made_at(kafka_bootstrap, **settings)


def made_at(bootstrap: str, **settings: str) -> str:
    name = fresh("orders")
    config = {setting.replace("_", "."): value for setting, value in settings.items()}
    topic: Any = NewTopic(name, num_partitions=2, replication_factor=1, config=config)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([topic])[name].result()
    # A group's first offset makes the topic that all offsets are in.
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": name, "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(name, 0, 0)], asynchronous=False)
    consumer.close()
    return name


def test_on_one_broker_nothing_is_replicated_and_that_is_said(kafka_bootstrap: str, make: Make) -> None:
    assert wrong(judge(gather(kafka_bootstrap, make(), {}), NEEDS)) == {
        "kafka.replication_factor": "error",
        "kafka.min_insync_replicas": "error",
        "kafka.offsets_replication_factor": "warning",
    }


def test_a_topic_that_is_set_well_for_development_has_no_findings(kafka_bootstrap: str, make: Make) -> None:
    diagnoses = [*judge(gather(kafka_bootstrap, make(), {}), NEEDS_OF_ONE_BROKER)]
    assert wrong(diagnoses) == {}
    assert unknown(diagnoses) == set()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"unclean_leader_election_enable": "true"}, {"kafka.unclean_leader_election": "error"}),
        ({"cleanup_policy": "compact"}, {"kafka.cleanup_policy": "error"}),
        ({"retention_ms": "3600000"}, {"kafka.retention": "warning"}),
        ({"retention_bytes": "1000000"}, {"kafka.retention_bytes": "warning"}),
        ({"retention_ms": "1209600000"}, {"kafka.offsets_retention": "warning"}),  # the broker keeps offsets for 7 days
        ({"retention_ms": "3456000000"}, {"kafka.offsets_retention": "warning", "window": "error"}),
    ],
)
def test_each_wrong_setting_is_found_by_name(
    settings: dict[str, str], found: dict[str, str], kafka_bootstrap: str, make: Make
) -> None:
    assert wrong(judge(gather(kafka_bootstrap, make(**settings), {}), NEEDS_OF_ONE_BROKER)) == found


def test_the_retention_of_the_dead_letters_is_added(kafka_bootstrap: str, make: Make) -> None:
    topic, dead_letter = (gather(kafka_bootstrap, make(**one), {}) for one in ({}, {"retention_ms": "2160000000"}))
    diagnoses = [*judge(topic, NEEDS_OF_ONE_BROKER, dead_letter=dead_letter)]
    assert wrong(diagnoses)["window"] == "error"


def test_what_a_broker_says_for_all_topics_is_seen() -> None:
    """Offsets that are forgotten sooner than messages, and leaders that may be behind: settings of a broker of our own."""
    settings = {"offsets.retention.minutes": "60", "unclean.leader.election.enable": "true"}
    with installed("kafka").start(settings=settings) as server:
        facts = gather(server.url, made_at(server.url), {})
    assert wrong(judge(facts, NEEDS_OF_ONE_BROKER)) == {
        "kafka.offsets_retention": "warning",
        "kafka.unclean_leader_election": "error",
    }


def test_a_topic_that_is_not_there_is_a_usage_error(kafka_bootstrap: str) -> None:
    with pytest.raises(UsageError, match="onceward queue create"):
        gather(kafka_bootstrap, fresh("nowhere"), {})


@pytest.mark.kafka
def test_brokers_that_do_not_answer_are_said() -> None:
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
        gather("127.0.0.1:1", "orders", {}, answer_seconds_max=1.0)
