"""Real brokers without Docker: private ones that die and come back, and the set that `onceward servers` shares."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import confluent_kafka as kafka
import pika
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tests.acceptance.processes import environment, onceward, refused
from tests.support.brokers import installed
from tests.support.waiting import until

from onceward.errors import UsageError
from onceward.testing.postgres.owners import Started, sweep_leftovers
from onceward.testing.servers import ElasticMQ, Kafka, RabbitMQ, ServerFailed
from onceward.testing.servers.installing import servers_folder
from onceward.testing.servers.shared import SharedName

CHECKOUT = Path(__file__).parents[2]
BODIES = [f"message {number}" for number in range(20)]
# An owner of its own: starts a server, tells its pid, and waits to be killed.
OWNER = """
    import sys
    from onceward.testing.servers import ElasticMQ

    server = ElasticMQ.start()
    print(server.pid, server.folder, flush=True)
    sys.stdin.read()
"""

# Tests of others: each needs one broker.
THREE = """
def test_one(sqs_endpoint): pass
def test_two(rabbitmq_url): pass
def test_three(kafka_bootstrap): pass
"""


@pytest.mark.sqs
def test_a_killed_elasticmq_comes_back_with_what_it_acknowledged() -> None:
    installed("sqs")
    with ElasticMQ.start() as server:
        client = sqs(server)
        queue = client.create_queue(QueueName="orders")["QueueUrl"]
        for body in BODIES:
            client.send_message(QueueUrl=queue, MessageBody=body)
        killed = server.pid
        server.kill()
        assert not server.is_alive
        server.restart()
        assert server.pid != killed
        # At once: not one client may be told that its queue does not exist.
        assert client.list_queues()["QueueUrls"] == [queue]
        received: set[str] = set()
        while len(received) < len(BODIES):
            answer = client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=2)
            messages = {message["Body"] for message in answer.get("Messages", [])}
            assert messages, f"{len(received)} of {len(BODIES)} came back"
            received |= messages
        assert received == {*BODIES}


def sqs(server: ElasticMQ) -> Any:
    return boto3.Session("any", "any", region_name="us-east-1").client("sqs", endpoint_url=server.url)


@pytest.mark.rabbitmq
def test_a_killed_rabbitmq_comes_back_with_what_it_confirmed() -> None:
    installed("rabbitmq")
    with RabbitMQ.start() as server:
        with pika.BlockingConnection(pika.URLParameters(server.url)) as conn:
            channel = conn.channel()
            channel.confirm_delivery()
            channel.queue_declare("orders", durable=True, arguments={"x-queue-type": "quorum"})
            server.sync()
            for body in BODIES:
                persistent = pika.BasicProperties(delivery_mode=2)
                channel.basic_publish("", "orders", body.encode(), persistent, mandatory=True)
            server.kill()
            # The connection is cut, which pika learns at its next word.
            with pytest.raises(pika.exceptions.AMQPError):
                conn.process_data_events(time_limit=5)
        server.restart()
        with pika.BlockingConnection(pika.URLParameters(server.url)) as conn:
            received = [body.decode() for _, _, body in _consumed(conn, "orders", len(BODIES))]
        assert received == BODIES


def _consumed(conn: pika.BlockingConnection, queue: str, many: int) -> Iterator[tuple[object, object, bytes]]:
    messages = conn.channel().consume(queue, auto_ack=True, inactivity_timeout=10)
    for _ in range(many):
        method, properties, body = next(messages)
        assert body is not None, "no message within 10 s"
        yield method, properties, body


@pytest.mark.rabbitmq
def test_a_late_delivery_closes_the_channel_where_the_instance_says_so() -> None:
    installed("rabbitmq")
    with (
        RabbitMQ.start(consumer_timeout_seconds=1) as server,
        pika.BlockingConnection(pika.URLParameters(server.url)) as conn,
    ):
        channel = conn.channel()
        channel.queue_declare("orders", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "orders", b"late")
        until(lambda: channel.basic_get("orders")[0], "the message to be there")
        until(lambda: conn.process_data_events(time_limit=0.1) or channel.is_closed, "the server to close the channel")


@pytest.mark.kafka
def test_a_killed_kafka_comes_back_with_what_it_acknowledged() -> None:
    installed("kafka")
    with Kafka.start() as server:
        admin = AdminClient({"bootstrap.servers": server.url})
        admin.create_topics([NewTopic("orders", 1, 1)])["orders"].result()
        producer = kafka.Producer({"bootstrap.servers": server.url, "acks": "all"})
        for body in BODIES:
            producer.produce("orders", body.encode())
        assert producer.flush(20) == 0
        server.kill()
        server.restart()
        consumer = kafka.Consumer(
            {"bootstrap.servers": server.url, "group.id": "look", "auto.offset.reset": "earliest"}
        )  # fmt: skip
        with closing(consumer):
            consumer.subscribe(["orders"])
            received = [until(lambda: consumer.poll(1)) for _ in BODIES]
        assert [message and message.value() for message in received] == [body.encode() for body in BODIES]


def test_a_server_leads_a_session_of_its_own_and_keeps_its_ports(elasticmq: ElasticMQ) -> None:
    """Ctrl-C in a terminal reaches the session of the terminal."""
    assert os.getsid(elasticmq.pid) == elasticmq.pid != os.getsid(0)
    url = elasticmq.url
    elasticmq.restart()
    assert elasticmq.url == url
    assert elasticmq.answers()


@pytest.fixture(scope="module")
def elasticmq() -> Iterator[ElasticMQ]:
    installed("sqs")
    with ElasticMQ.start() as server:
        yield server


def test_a_taken_port_is_named_with_the_process_that_has_it(elasticmq: ElasticMQ) -> None:
    with pytest.raises(UsageError, match=rf"port {elasticmq.port} .* is taken by pid {elasticmq.pid} \(java\)"):
        ElasticMQ.start(port=elasticmq.port)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, elasticmq: ElasticMQ) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(UsageError, match="holds no server of ours"):
        ElasticMQ.start(tmp_path)
    with pytest.raises(UsageError, match=f"runs on .* already .pid {elasticmq.pid}"):
        ElasticMQ.start(elasticmq.folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter"]


def test_a_server_that_does_not_start_says_what_its_log_says(elasticmq: ElasticMQ) -> None:
    with pytest.raises(ServerFailed, match=r"(?s)ElasticMQ ended at its start.*sqs-limits"):
        ElasticMQ.start(settings={"rest-sqs.sqs-limits": "none-at-all"})


def test_a_kept_folder_gives_its_port_and_its_data_back(tmp_path: Path, elasticmq: ElasticMQ) -> None:
    with ElasticMQ.start(tmp_path / "kept") as first:
        queue = sqs(first).create_queue(QueueName="orders")["QueueUrl"]
        first.sync()
    with ElasticMQ.start(tmp_path / "kept") as second:
        assert second.port == first.port
        assert queue in sqs(second).list_queues()["QueueUrls"]


def test_a_server_ends_with_an_owner_that_is_killed(elasticmq: ElasticMQ) -> None:
    command = [sys.executable, "-c", re.sub(r"(?m)^    ", "", OWNER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        server = Started.of(int(pid))
        assert server is not None
        owner.kill()
    until(lambda: not server.alive(), "the server to end")
    # Its folder goes with the next start, whoever makes it, which begins with this.
    sweep_leftovers()
    assert not Path(folder).exists()


@pytest.fixture
def shared_folder(tmp_path: Path) -> Path:
    """A set of this test's own: the programs are those of this machine."""
    installed("sqs")
    for found in servers_folder().glob("elasticmq-*"):
        (tmp_path / found.name).symlink_to(found)
    return tmp_path


def servers(*words: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return onceward("servers", *words, cwd=None, ONCEWARD_SERVERS_DIR=str(folder), **more)


def facts(done: subprocess.CompletedProcess[str]) -> dict[SharedName, dict[str, object]]:
    return {server["name"]: server for server in json.loads(done.stdout)["servers"]}


def test_with_nothing_up_status_says_so(tmp_path: Path) -> None:
    done = servers("status", "--json", folder=tmp_path)
    assert done.returncode == 1
    assert {name: server["state"] for name, server in facts(done).items()} == dict.fromkeys(
        ("sqs", "rabbitmq", "kafka"), "down"
    )
    assert servers("down", folder=tmp_path).returncode == 0


@pytest.mark.sqs
def test_up_starts_once_and_down_ends_it(shared_folder: Path) -> None:
    up = servers("up", "sqs", folder=shared_folder)
    try:
        assert up.returncode == 0, up
        exported = re.fullmatch(r"export ONCEWARD_SQS_ENDPOINT=(http://127\.0\.0\.1:\d+)\n", up.stdout)
        assert exported is not None, up.stdout
        status = servers("status", "sqs", "--json", folder=shared_folder)
        first = facts(status)["sqs"]
        assert (status.returncode, first["state"], first["url"]) == (0, "up", exported[1])
        assert facts(servers("up", "sqs", "--json", folder=shared_folder))["sqs"]["pid"] == first["pid"]
        assert servers("status", "all", folder=shared_folder).returncode == 1
    finally:
        assert servers("down", folder=shared_folder).returncode == 0
    assert isinstance(first["pid"], int)
    assert Started.of(first["pid"]) is None
    assert servers("status", "sqs", folder=shared_folder).returncode == 1


def test_down_leaves_a_process_alone_that_only_has_the_pid(tmp_path: Path) -> None:
    """Pids are used again: the moment that the process started must be the recorded one, too."""
    record = tmp_path / "shared" / "sqs" / "server.json"
    record.parent.mkdir(parents=True)
    stranger = {"pid": os.getpid(), "moment": "1"}
    record.write_text(json.dumps({"ports": {"SQS": 1}, "settings": {}, "process": stranger}))
    assert servers("status", "sqs", folder=tmp_path).returncode == 1
    done = servers("down", "sqs", folder=tmp_path)
    assert done.returncode == 0
    assert "did not run" in done.stderr
    assert not record.exists()


@pytest.mark.parametrize(("there", "missing"), [((), "java"), (("java",), "mvn")])
def test_a_missing_program_is_named_with_the_command_that_brings_it(
    there: tuple[str, ...], missing: str, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in there:
        (programs / name).touch(mode=0o755)
    refused(servers("install", "sqs", folder=tmp_path, PATH=str(programs)), f"`{missing}` was not found", "apt-get install")


def test_a_download_that_fails_shows_what_maven_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = servers("install", "sqs", folder=tmp_path, MAVEN_OPTS=f"-Dmaven.repo.local={tmp_path / 'file'}")
    assert done.returncode == 2
    assert "cannot be installed" in done.stderr
    assert "[ERROR]" in done.stderr


def test_an_unknown_server_is_refused(tmp_path: Path) -> None:
    refused(servers("up", "redis", folder=tmp_path), "redis")
    refused(servers("up", "sqs", "kafka", "--port", "20000", folder=tmp_path), "--port")


@pytest.mark.parametrize("ci", ["", "true"])
def test_without_its_broker_a_test_says_what_to_type(ci: str, tmp_path: Path) -> None:
    """At once: it is skipped on a laptop, and fails where CI is set."""
    (tmp_path / "test_three.py").write_text(THREE)
    options = ["-c", str(CHECKOUT / "pyproject.toml"), "-p", "tests.support.brokers", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-m", "sqs or kafka", str(tmp_path / "test_three.py")],
        cwd=CHECKOUT, env=environment(ONCEWARD_SERVERS_DIR=str(tmp_path), CI=ci),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "./run servers up sqs" in done.stdout, done
    assert "./run servers up kafka" in done.stdout
    assert "./run servers up rabbitmq" not in done.stdout, "a mark chooses the tests of a broker"
    assert done.returncode == (1 if ci else 0)


def test_status_shows_that_the_environment_names_a_server_of_ones_own(tmp_path: Path) -> None:
    done = servers("status", "sqs", "--json", folder=tmp_path, ONCEWARD_SQS_ENDPOINT="http://mine")
    assert facts(done)["sqs"]["given"] == "http://mine"
