"""Clients of an SQS server, fresh queues, and what passes between the two: watched, changed or answered by a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.support.brokers import fresh

from onceward.testing.proxy import Proxy
from onceward.transports import sqs

Client = Any  # boto3 has no types of its own


def make_client(endpoint: str, *, tries: int = 1) -> Client:
    return boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 - ElasticMQ knows none
        config=Config(retries={"total_max_attempts": tries}, max_pool_connections=32),
    )


def fresh_queue(client: Client, *, fifo: bool = False, **options: Any) -> str:
    """The name of a queue that was just made."""
    name = fresh("test") + (".fifo" if fifo else "")
    assert sqs.create_queue(client, name, **options)
    return name


@contextmanager
def proxied(endpoint: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the server, and the endpoint that leads through it."""
    address = urlsplit(endpoint)
    with Proxy(make_conninfo(host=address.hostname, port=address.port)) as proxy:
        yield proxy, f"http://127.0.0.1:{conninfo_to_dict(proxy.dsn)['port']}"


def requests_of(client: Client, operation: str) -> list[dict[str, Any]]:
    """A list to which each request of this operation is added from now on, before it is sent."""
    seen: list[dict[str, Any]] = []
    client.meta.events.register(
        f"provide-client-params.sqs.{operation}", lambda params, **_: seen.append(json.loads(json.dumps(params)))
    )
    return seen


def change_requests(client: Client, operation: str, change: Callable[[dict[str, Any]], None]) -> None:
    """`change` is given the parameters of each request of this operation, before it is made."""
    client.meta.events.register(f"provide-client-params.sqs.{operation}", lambda params, **_: change(params))


def answer(client: Client, operation: str, content: dict[str, Any], *, status: int = 200) -> None:
    """Requests of this operation are answered so, as AWS words it, and are not sent."""
    client.meta.events.register(
        f"before-send.sqs.{operation}", lambda request, **_: _response(request.url, content, status)
    )


def _response(url: str, content: dict[str, Any], status: int) -> AWSResponse:
    response = AWSResponse(url, status, {"content-type": "application/x-amz-json-1.0"}, None)
    # Read already: there is no connection to read it from.
    response._content = json.dumps(content).encode()
    return response
