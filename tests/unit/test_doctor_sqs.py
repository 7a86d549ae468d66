"""What doctor says of an SQS queue, from what SQS says of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from tests.support.diagnoses import NEEDS, mends, unknown, wrong

from onceward.doctor import Needs
from onceward.doctor.sqs import Absence, QueueFacts, SqsFacts, judge

DAY = 86_400
QUEUE = QueueFacts(
    name="orders", url="https://sqs.eu-west-1.amazonaws.com/1/orders", arn="arn:aws:sqs:eu-west-1:1:orders",
    visibility_seconds=30, retention_seconds=4 * DAY,
)  # fmt: skip
DEAD = replace(QUEUE, name="dead", url="https://sqs.eu-west-1.amazonaws.com/1/dead", retention_seconds=14 * DAY)
FACTS = SqsFacts(queue=QUEUE, dead_letter_arn="arn:aws:sqs:eu-west-1:1:dead", max_receive_count=100, dead_letter=DEAD)


def queue(**changes: object) -> SqsFacts:
    return replace(FACTS, queue=replace(QUEUE, **changes))  # type: ignore[arg-type]


def test_a_queue_that_is_set_well_has_no_findings() -> None:
    assert wrong(judge(FACTS, NEEDS)) == {}
    assert unknown(judge(FACTS, NEEDS)) == set()


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (queue(visibility_seconds=5), {"sqs.visibility_timeout": "warning"}),  # above the p99, below six averages
        (queue(visibility_seconds=4), {"sqs.visibility_timeout": "error"}),
        (queue(retention_seconds=3600), {"sqs.retention": "warning"}),
        (queue(retention_seconds=14 * DAY), {}),
        (
            SqsFacts(queue=QUEUE),
            {"sqs.redrive_policy": "warning"},
        ),
        (replace(FACTS, max_receive_count=3), {"sqs.max_receive_count": "error"}),
        (replace(FACTS, max_receive_count=10), {"sqs.max_receive_count": "warning"}),
        (replace(FACTS, dead_letter=Absence.DELETED), {"sqs.dead_letter_queue": "error"}),
        (replace(FACTS, dead_letter=replace(DEAD, retention_seconds=4 * DAY)), {"sqs.dead_letter_retention": "error"}),
        (queue(fifo=True, content_deduplication=True), {"sqs.content_based_deduplication": "warning"}),
        (
            replace(queue(fifo=True), dead_letter=replace(DEAD, fifo=True, retention_seconds=4 * DAY)),
            {},  # a FIFO queue's dead letter begins a retention of its own
        ),
    ],
)
def test_each_wrong_setting_is_found_by_name(facts: SqsFacts, found: dict[str, str]) -> None:
    assert wrong(judge(facts, NEEDS)) == found


def test_the_window_is_held_against_both_retentions_together() -> None:
    assert wrong(judge(FACTS, replace(NEEDS, window_seconds=18 * DAY))) == {}
    assert wrong(judge(FACTS, replace(NEEDS, window_seconds=17 * DAY))) == {"window": "error"}


def test_a_dead_letter_queue_that_cannot_be_read_is_unknown_and_counts_with_the_longest_retention() -> None:
    facts = replace(FACTS, dead_letter=Absence.FORBIDDEN)
    assert unknown(judge(facts, NEEDS)) == {"sqs.dead_letter_queue"}
    assert wrong(judge(facts, replace(NEEDS, window_seconds=17 * DAY))) == {"window": "error"}


def test_what_the_server_does_not_say_is_unknown() -> None:
    silent = replace(queue(retention_seconds=None), dead_letter=replace(DEAD, retention_seconds=None))
    assert unknown(judge(silent, NEEDS)) == {"sqs.retention", "sqs.dead_letter_retention", "window"}
    assert wrong(judge(silent, NEEDS)) == {}


def test_without_measured_handlers_the_leases_are_unknown() -> None:
    assert unknown(judge(FACTS, Needs())) == {"lease", "sqs.visibility_timeout"}


def test_the_lease_that_run_asks_for_is_judged_beside_the_queues_own() -> None:
    assert wrong(judge(FACTS, replace(NEEDS, visibility_seconds=3))) == {"lease": "error"}


def test_the_command_that_mends_can_be_run_as_it_is() -> None:
    facts = replace(queue(visibility_seconds=4, endpoint="http://localhost:9324"), max_receive_count=3)
    commands = mends(judge(facts, NEEDS))
    assert commands["sqs.visibility_timeout"] == (
        "aws --endpoint-url http://localhost:9324 sqs set-queue-attributes"
        " --queue-url https://sqs.eu-west-1.amazonaws.com/1/orders --attributes VisibilityTimeout=6"
    )
    attributes = json.loads(shlex.split(commands["sqs.max_receive_count"])[-1])
    policy = {"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:1:dead", "maxReceiveCount": "100"}
    assert json.loads(attributes["RedrivePolicy"]) == policy
