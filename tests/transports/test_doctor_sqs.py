"""doctor on a server that speaks SQS: what was set wrong there on purpose is found by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from tests.support.brokers import fresh
from tests.support.diagnoses import NEEDS, unknown, wrong

from onceward.doctor.sqs import SqsFacts, gather, judge
from onceward.errors import TransportError, UsageError

Make = Callable[..., str]
# ElasticMQ does not know how long it keeps messages.
NOT_SAID = {"sqs.retention", "sqs.dead_letter_retention", "window"}


def client_of(endpoint: str) -> Any:
    session = boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")  # noqa: S106
    return session.client("sqs", endpoint_url=endpoint, config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture
def client(sqs_endpoint: str) -> Any:
    return client_of(sqs_endpoint)


@pytest.fixture
def make(client: Any) -> Make:
    """Makes a queue, with a dead-letter queue after `receives`; gives its name."""

    def made(*, receives: int | None = 100, fifo: bool = False, dead: str | None = None, **attributes: str) -> str:
        name = fresh("orders") + (".fifo" if fifo else "")
        if fifo:
            attributes["FifoQueue"] = "true"
        if receives is not None:
            policy = {
                "deadLetterTargetArn": arn_of(client, dead or made(receives=None, fifo=fifo)),
                "maxReceiveCount": receives,
            }
            attributes["RedrivePolicy"] = json.dumps(policy)
        client.create_queue(QueueName=name, Attributes=attributes)
        return name

    return made


def arn_of(client: Any, name: str) -> str:
    url = client.get_queue_url(QueueName=name)["QueueUrl"]
    return str(client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"])


def test_a_queue_that_is_set_well_has_no_findings(client: Any, make: Make) -> None:
    diagnoses = [*judge(gather(client, make()), NEEDS)]
    assert wrong(diagnoses) == {}
    assert unknown(diagnoses) <= NOT_SAID


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"VisibilityTimeout": "5"}, {"sqs.visibility_timeout": "warning"}),
        ({"VisibilityTimeout": "2"}, {"sqs.visibility_timeout": "error"}),
        ({"receives": None}, {"sqs.redrive_policy": "warning"}),
        ({"receives": 3}, {"sqs.max_receive_count": "error"}),
        ({"receives": 20}, {"sqs.max_receive_count": "warning"}),
        ({"fifo": True, "ContentBasedDeduplication": "true"}, {"sqs.content_based_deduplication": "warning"}),
        ({"fifo": True}, {}),
    ],
)
def test_each_wrong_setting_is_found_by_name(
    settings: dict[str, Any], found: dict[str, str], client: Any, make: Make
) -> None:
    assert wrong(judge(gather(client, make(**settings)), NEEDS)) == found


def test_a_dead_letter_queue_that_was_deleted_is_found(client: Any, make: Make) -> None:
    dead = make(receives=None)
    name = make(dead=dead)
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=dead)["QueueUrl"])
    assert wrong(judge(gather(client, name), NEEDS)) == {"sqs.dead_letter_queue": "error"}


def test_a_dead_letter_queue_can_be_named(client: Any, make: Make) -> None:
    facts = gather(client, make(receives=None), dead_letter=make(receives=None))
    assert isinstance(facts, SqsFacts)
    assert facts.dead_letter is not None


def test_a_queue_that_is_not_there_is_a_usage_error(client: Any) -> None:
    with pytest.raises(UsageError, match="onceward queue create"):
        gather(client, fresh("nowhere"))


@pytest.mark.sqs
def test_a_server_that_does_not_answer_is_said() -> None:
    with pytest.raises(TransportError, match="SQS does not answer"):
        gather(client_of("http://127.0.0.1:1"), "orders")
