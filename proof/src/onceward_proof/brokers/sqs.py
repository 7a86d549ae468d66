"""SQS, standard and FIFO queues: an ElasticMQ of the proof's own, with a recorder before it as the witness."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from onceward.testing.servers import ElasticMQ
from onceward.transport import Sink, Source
from onceward.transports import sqs
from onceward_proof.brokers.broker import Passed
from onceward_proof.brokers.installed import need_installed
from onceward_proof.brokers.recording import Recording, start_recorder
from onceward_proof.prove.faults import ServerFault
from onceward_proof.workers.setting import QUEUES, Setting

_COUNTS: Final = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
FIFO: Final = ".fifo"
MOVE_SECONDS_MAX: Final = 2.0
LOOK_SECONDS: Final = 0.02


def dead_of(queue: str) -> str:
    """The dead-letter queue of a queue: FIFO, if that is."""
    stem = queue.removesuffix(FIFO)
    return f"{stem}-dead{queue.removeprefix(stem)}"


class SqsQueues:
    """One variant's queues. Their address is the recorder's."""

    def __init__(self, names: Mapping[str, str], server: ElasticMQ, recording: Recording) -> None:
        self.names = names
        self.address = f"http://127.0.0.1:{recording.port}"
        self._recording = recording
        # The proof's own questions go to the server itself: what the recorder sees is the workers'.
        self._client = make_client(server.url)
        self._urls: dict[str, str] = {}
        for name in names.values():
            sqs.create_queue(self._client, name, dead_letter=dead_of(name))
            for queue in (name, dead_of(name)):
                self._urls[queue] = self._client.get_queue_url(QueueName=queue)["QueueUrl"]

    def waiting(self) -> Mapping[str, int] | None:
        try:
            return {f"queue {name}": self._count(url) for name, url in self._urls.items()}
        except (BotoCoreError, ClientError):
            return None

    def _count(self, url: str) -> int:
        attributes = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=list(_COUNTS))["Attributes"]
        return sum(int(attributes[name]) for name in _COUNTS)

    def passed(self) -> Passed:
        return self._recording.passed(self.names)

    def cut_at_ack(self, message_type: str, order: str) -> None:
        self._recording.cut_at_ack(self.names[message_type], order)

    def redrive(self, number: int) -> str:
        """By SQS's own move task, of a message that is in the dead-letter queue although it was processed after all."""
        queue = self.names["order.placed"]
        processed = self._recording.processed(queue)
        if not processed:
            return ""
        order, sent = processed[number % len(processed)]
        try:
            self._client.send_message(QueueUrl=self._urls[dead_of(queue)], **sent)
            return order if self._move_back(queue) else ""
        except (BotoCoreError, ClientError):
            return ""

    def _move_back(self, queue: str) -> bool:
        """All that is in its dead-letter queue is in `queue` again, under new ids of SQS's."""
        source = self._arn(dead_of(queue))
        self._client.start_message_move_task(SourceArn=source, DestinationArn=self._arn(queue))
        deadline = time.monotonic() + MOVE_SECONDS_MAX
        while time.monotonic() < deadline:
            tasks = self._client.list_message_move_tasks(SourceArn=source, MaxResults=1)["Results"]
            if tasks and tasks[0]["Status"] == "COMPLETED":
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def _arn(self, queue: str) -> str:
        url = self._urls[queue]
        return str(self._client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"])


@dataclass(frozen=True, slots=True)
class RunningSqs:
    """ElasticMQ, and the recorder that workers reach it by."""

    server: ElasticMQ
    recording: Recording
    suffix: str
    fault: ServerFault = "kill-broker"
    recovery_seconds: float = 20.0

    def make_queues(self, variant: str) -> SqsQueues:
        names = {message_type: f"{name}-{variant}{self.suffix}" for message_type, name in QUEUES.items()}
        return SqsQueues(names, self.server, self.recording)


class Sqs:
    """SQS; `fifo`: its FIFO queues."""

    def __init__(self, *, fifo: bool) -> None:
        self._suffix = FIFO if fifo else ""

    def check(self) -> None:
        need_installed(ElasticMQ, "sqs")

    @contextmanager
    def start(self, folder: Path, postgres_settings: Mapping[str, str]) -> Iterator[RunningSqs]:  # noqa: ARG002 - no Postgres
        with ElasticMQ.start(folder / "elasticmq") as server, start_recorder("http", server.port, folder) as recording:
            yield RunningSqs(server, recording, self._suffix)

    def warm_up(self, setting: Setting) -> None:
        # It reads half a megabyte of descriptions: 100 ms of every restart. It opens no connection before its first call.
        make_client(setting.queue_address)

    def source(self, setting: Setting, message_type: str, member: str) -> Source:  # noqa: ARG002 - SQS knows no members
        client = make_client(setting.queue_address)
        return sqs.Source(client, setting.queues[message_type], visibility_seconds=setting.visibility_seconds)

    def sink(self, address: str, queues: Mapping[str, str]) -> Sink:
        return sqs.Sink(make_client(address), queues)


@cache
def _session() -> boto3.Session:
    """One for a process and all that is forked from it: it keeps what it has read of the service's description."""
    return boto3.Session(aws_access_key_id="proof", aws_secret_access_key="proof", region_name="us-east-1")  # noqa: S106


def make_plain_client(url: str) -> Any:
    """A client of SQS at this address, as boto3 makes it, with its retries."""
    return _session().client("sqs", endpoint_url=url, config=Config(proxies={}))


def make_client(url: str) -> Any:
    """A client of SQS at this address. Its own retries are off: each request that a fault strikes is one."""
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, proxies={}, max_pool_connections=20
    )
    return _session().client("sqs", endpoint_url=url, config=config)
