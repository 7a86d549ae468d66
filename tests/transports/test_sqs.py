"""SQS: the conformance suite for standard and FIFO queues, and what is peculiar to it."""

from __future__ import annotations

from itertools import count
from typing import Any
import os
import boto3
import pytest
from botocore.config import Config

from onceward.testing.transport import Rig, TransportSuite
from onceward.transports import sqs

_queues = count(1)


def make_client(endpoint: str) -> Any:
    return boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def sqs_endpoint():
    return os.environ["ONCEWARD_SQS_ENDPOINT"]


class TestSqsStandard(TransportSuite):
    suffix = ""

    @pytest.fixture(autouse=True)
    def server(self, sqs_endpoint: str) -> None:
        self.client = make_client(sqs_endpoint)

    def make(self) -> Rig:
        queue = f"conformance_{os.getpid()}_{next(_queues)}{self.suffix}"
        assert sqs.create_queue(self.client, queue)
        return Rig(
            source=lambda: sqs.Source(self.client, queue, visibility_seconds=1),
            sink=lambda: sqs.Sink(self.client, queue),
        )


class TestSqsFifo(TestSqsStandard):
    suffix = ".fifo"
