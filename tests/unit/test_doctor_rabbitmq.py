"""What doctor says of a RabbitMQ queue, from what the management plugin says of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest
from tests.support.diagnoses import NEEDS, NEEDS_OF_ONE_BROKER, mends, unknown, wrong

from onceward.doctor import Needs
from onceward.doctor.rabbitmq import CHECKS, Api, RabbitmqFacts, Target, Unreachable, judge
from onceward.errors import UsageError

ARGUMENTS = {
    "x-queue-type": "quorum", "x-delivery-limit": 100, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead",
    "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
}  # fmt: skip
FACTS = RabbitmqFacts(
    name="orders", version=(3, 13, 7), arguments=ARGUMENTS, members=3, nodes=3, targets=[Target("dead", durable=True)],
    consumer_timeout_seconds=1800,
)  # fmt: skip
BARE = replace(FACTS, arguments={"x-queue-type": "quorum"}, targets=())


def arguments(**changes: Any) -> RabbitmqFacts:
    named = {f"x-{name.replace('_', '-')}": value for name, value in changes.items()}
    return replace(FACTS, arguments={**ARGUMENTS, **named})


def test_a_queue_that_is_set_well_has_no_findings() -> None:
    assert wrong(judge(FACTS, NEEDS)) == {}
    assert unknown(judge(FACTS, NEEDS)) == set()


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (replace(FACTS, kind="classic"), {"rabbitmq.queue_type": "error"}),
        (replace(FACTS, durable=False), {"rabbitmq.durable": "error"}),
        (replace(FACTS, auto_delete=True), {"rabbitmq.auto_delete": "error"}),
        (replace(FACTS, exclusive=True), {"rabbitmq.auto_delete": "error"}),
        (arguments(expires=60_000), {"rabbitmq.expires": "error"}),
        (replace(FACTS, members=1, nodes=1), {"rabbitmq.members": "warning"}),
        (
            arguments(max_length=10, overflow="drop-head"),
            {"rabbitmq.overflow": "error", "rabbitmq.dead_letter_strategy": "error"},
        ),
        (arguments(max_length=10), {}),
        (arguments(message_ttl=60_000), {"rabbitmq.message_ttl": "warning"}),  # there are dead letters, at least
        (replace(FACTS, alarms=["disk on rabbit@a"]), {"rabbitmq.alarm": "error"}),
        (arguments(delivery_limit=3), {"rabbitmq.delivery_limit": "error"}),
        (arguments(delivery_limit=20), {"rabbitmq.delivery_limit": "warning"}),
        (arguments(delivery_limit=None), {"rabbitmq.delivery_limit": "warning"}),
        (replace(arguments(delivery_limit=None), version=(4, 1, 0)), {"rabbitmq.delivery_limit": "warning"}),
        (replace(FACTS, targets=()), {"rabbitmq.dead_letter_exchange": "error"}),
        (arguments(dead_letter_strategy=None), {"rabbitmq.dead_letter_strategy": "error"}),
        (replace(FACTS, targets=[Target("dead", durable=False)]), {"rabbitmq.dead_letter_queue": "error"}),
        (replace(FACTS, consumer_timeout_seconds=8), {"rabbitmq.consumer_timeout": "error"}),
        (arguments(consumer_timeout=8000), {"rabbitmq.consumer_timeout": "error"}),
    ],
)
def test_each_wrong_setting_is_found_by_name(facts: RabbitmqFacts, found: dict[str, str]) -> None:
    assert wrong(judge(facts, NEEDS)) == found


def test_without_a_limit_nothing_needs_a_dead_letter_exchange() -> None:
    """So a queue as `onceward queue create` makes it has one warning; from RabbitMQ 4 on, a limit is there unasked."""
    assert wrong(judge(BARE, NEEDS)) == {"rabbitmq.delivery_limit": "warning"}
    assert wrong(judge(replace(BARE, version=(4, 1, 0)), NEEDS)) == {
        "rabbitmq.delivery_limit": "warning",
        "rabbitmq.dead_letter_exchange": "error",
    }
    unlimited = {**BARE.arguments, "x-delivery-limit": -1}
    assert wrong(judge(replace(BARE, version=(4, 1, 0), arguments=unlimited), NEEDS)) == {
        "rabbitmq.delivery_limit": "warning"
    }


def test_one_node_is_accepted_for_development() -> None:
    assert wrong(judge(replace(FACTS, members=1, nodes=1), NEEDS_OF_ONE_BROKER)) == {}


def test_a_policy_counts_where_the_queue_has_no_argument() -> None:
    policy = {name.removeprefix("x-"): value for name, value in ARGUMENTS.items() if name != "x-queue-type"}
    assert wrong(judge(replace(BARE, policy=policy, targets=FACTS.targets), NEEDS)) == {}
    assert wrong(judge(replace(FACTS, policy={"delivery-limit": 3}), NEEDS)) == {"rabbitmq.delivery_limit": "error"}


def test_a_consumer_timeout_that_nobody_has_said_is_unknown() -> None:
    assert unknown(judge(replace(FACTS, consumer_timeout_seconds=None), NEEDS)) == {"rabbitmq.consumer_timeout"}


def test_a_consumer_timeout_must_be_longer_than_a_claim_also_before_anything_was_measured() -> None:
    assert wrong(judge(replace(FACTS, consumer_timeout_seconds=20), Needs())) == {"rabbitmq.consumer_timeout": "error"}


def test_without_the_management_plugin_nothing_is_left_out() -> None:
    facts = Unreachable(name="orders", url="http://host:15672", error="connection refused")
    assert unknown(judge(facts, NEEDS)) == {check.name for check in CHECKS}


def test_a_policy_that_mends_keeps_what_is_right_in_the_one_in_force() -> None:
    facts = replace(BARE, policy={"max-length": 5, "overflow": "drop-head", "message-ttl": 1000}, targets=FACTS.targets)
    words = shlex.split(mends(judge(facts, NEEDS))["rabbitmq.overflow"])
    assert words[:4] == ["rabbitmqctl", "set_policy", "-p", "/"]
    assert json.loads(words[-1]) == {
        "max-length": 5, "overflow": "reject-publish", "dead-letter-strategy": "at-least-once", "delivery-limit": 100,
    }  # fmt: skip


def test_an_argument_cannot_be_changed_so_the_queue_is_made_again() -> None:
    assert mends(judge(arguments(delivery_limit=3), NEEDS))["rabbitmq.delivery_limit"].startswith("onceward queue create")


def test_the_management_plugin_is_looked_for_beside_the_queue() -> None:
    assert Api.at("amqp://u:p%40ss@host:5673/shop", None).url == "http://host:15672"
    assert Api.at("amqps://host", None).url == "https://host:15671"
    named = Api.at("amqp://host", "http://admin:secret@other:8080/rabbit/")
    assert named.url == "http://other:8080/rabbit"
    assert named.authorization != Api.at("amqp://host", None).authorization
    with pytest.raises(UsageError, match="--management"):
        Api.at("amqp://host", "file:///etc/passwd")
