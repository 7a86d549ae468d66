"""The recorder understands what passes between a worker and a broker, in whatever pieces it comes, and cuts it off."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from onceward_proof.brokers.recorder import Content, Interpreter, Log, Recorder

spec = pytest.importorskip("pika.spec")
frame = pytest.importorskip("pika.frame")

CHARGES = "charges-naive"
ONE, TWO = Content(CHARGES, "O-1"), Content(CHARGES, "O-2")
Noted = list[tuple[str, str, str]]
Sizes = pytest.mark.parametrize("size", [1, 7, 10_000])


def a_log() -> Log:
    return Log(io.StringIO())


def noted(log: Log) -> Noted:
    """What is in the log's file, without the times."""
    assert isinstance(log.file, io.StringIO)
    lines = map(json.loads, log.file.getvalue().splitlines())
    return [(line["what"], line["queue"], line["order"]) for line in lines]


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def told_by_worker(interpreter: Interpreter, data: bytes, size: int) -> list[Content]:
    return [content for piece in in_pieces(data, size) for content in interpreter.from_worker(piece).asked]


def told_by_broker(interpreter: Interpreter, data: bytes, size: int) -> None:
    for piece in in_pieces(data, size):
        interpreter.from_broker(piece)


def body(order: str) -> str:
    return json.dumps({"id": order, "amount": 1})


# ---- SQS -------------------------------------------------------------------------------------------------------------


def request(action: str, **document: Any) -> bytes:
    text = json.dumps({"QueueUrl": f"http://127.0.0.1/0/{CHARGES}", **document}).encode()
    return b"POST / HTTP/1.1\r\nX-Amz-Target: AmazonSQS.%s\r\nContent-Length: %d\r\n\r\n%s" % (
        action.encode(), len(text), text,
    )  # fmt: skip


def answer(document: dict[str, Any], status: int = 200) -> bytes:
    text = json.dumps(document).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(text), text)


def sqs(log: Log) -> Interpreter:
    from onceward_proof.brokers.http_wire import interpret  # noqa: PLC0415

    return interpret(log)


@Sizes
def test_a_message_is_stored_when_sqs_says_so(size: int) -> None:
    log = a_log()
    connection = sqs(log)
    entries = [{"Id": "0", "MessageBody": body("O-1")}, {"Id": "1", "MessageBody": body("O-2")}]
    told_by_worker(connection, request("SendMessageBatch", Entries=entries), size)
    assert noted(log) == []
    told_by_broker(connection, answer({"Successful": [{"Id": "1"}], "Failed": [{"Id": "0"}]}), size)
    told_by_worker(connection, request("SendMessage", MessageBody=body("O-1")), size)
    told_by_broker(connection, answer({"message": "busy"}, 503), size)
    assert noted(log) == [("stored", *TWO)]


@Sizes
def test_a_message_is_removed_when_sqs_says_so_whoever_received_it(size: int) -> None:
    log = a_log()
    receiving, settling = sqs(log), sqs(log)
    told_by_worker(receiving, request("ReceiveMessage"), size)
    told_by_broker(receiving, answer({"Messages": [{"ReceiptHandle": "h", "Body": body("O-1")}]}), size)
    entries = [{"Id": "0", "ReceiptHandle": "h"}, {"Id": "1", "ReceiptHandle": "a stranger's"}]
    assert told_by_worker(settling, request("DeleteMessageBatch", Entries=entries), size) == [ONE]
    assert noted(log) == []
    told_by_broker(settling, answer({"Successful": [{"Id": "0"}, {"Id": "1"}]}), size)
    assert noted(log) == [("removed", *ONE)]


# ---- RabbitMQ --------------------------------------------------------------------------------------------------------


def method(what: Any, channel: int = 1) -> bytes:
    return bytes(frame.Method(channel, what).marshal())


def content(announced: Any, text: str, channel: int = 1) -> bytes:
    """A message on the wire, in two pieces of its body."""
    data = text.encode()
    parts = [frame.Body(channel, part).marshal() for part in (data[:5], data[5:])]
    header = frame.Header(channel, len(data), spec.BasicProperties()).marshal()
    return b"".join([method(announced, channel), header, *parts])


def publish(order: str, channel: int = 1) -> bytes:
    return content(spec.Basic.Publish(exchange="", routing_key=CHARGES), body(order), channel)


def deliver(order: str, tag: int, channel: int = 1) -> bytes:
    announced = spec.Basic.Deliver(consumer_tag="c", delivery_tag=tag, exchange="", routing_key=CHARGES)
    return content(announced, body(order), channel)


def rabbit(log: Log) -> Interpreter:
    from onceward_proof.brokers.amqp_wire import interpret  # noqa: PLC0415

    return interpret(log)


@Sizes
def test_a_message_is_stored_when_rabbitmq_confirms_it(size: int) -> None:
    log = a_log()
    connection = rabbit(log)
    told_by_worker(connection, b"AMQP" + struct.pack("BBBB", 0, 0, 9, 1) + publish("O-1") + publish("O-2"), size)
    told_by_broker(connection, method(spec.Basic.Nack(delivery_tag=1)), size)
    assert noted(log) == []
    told_by_broker(connection, method(spec.Basic.Ack(delivery_tag=2)), size)
    assert noted(log) == [("stored", *TWO)]


@Sizes
def test_one_confirm_may_be_of_all_before_it(size: int) -> None:
    log = a_log()
    connection = rabbit(log)
    told_by_worker(connection, publish("O-1") + publish("O-2"), size)
    told_by_broker(connection, method(spec.Basic.Ack(delivery_tag=2, multiple=True)), size)
    assert noted(log) == [("stored", *ONE), ("stored", *TWO)]


@Sizes
def test_an_ack_is_of_the_delivery_with_that_tag_on_that_channel(size: int) -> None:
    connection = rabbit(a_log())
    told_by_broker(connection, deliver("O-1", 1) + deliver("O-2", 1, channel=3), size)
    assert told_by_worker(connection, method(spec.Basic.Ack(delivery_tag=1), channel=3), size) == [TWO]
    assert told_by_worker(connection, method(spec.Basic.Ack(delivery_tag=1), channel=3), size) == []
    assert told_by_worker(connection, method(spec.Basic.Nack(delivery_tag=1)), size) == []


def test_tags_begin_again_on_a_channel_that_is_opened_again() -> None:
    connection = rabbit(a_log())
    told_by_broker(connection, deliver("O-1", 1), 10_000)
    told_by_worker(connection, method(spec.Channel.Open()), 10_000)
    assert told_by_worker(connection, method(spec.Basic.Ack(delivery_tag=1)), 10_000) == []


# ---- the cut ---------------------------------------------------------------------------------------------------------


async def carried(interpret: Callable[[Log], Interpreter], log: Log, chunks: Sequence[bytes]) -> bytes:
    """What a broker gets of what a worker sends through the recorder; the broker answers nothing."""
    got = bytearray()
    ended = asyncio.Event()

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1000):
                got.extend(chunk)
        except ConnectionError:
            pass
        writer.close()
        ended.set()

    behind = await asyncio.start_server(broker, "127.0.0.1", 0)
    recorder = Recorder(interpret, behind.sockets[0].getsockname()[1], log)
    before = await asyncio.start_server(recorder.carry, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*before.sockets[0].getsockname()[:2])
    for chunk in chunks:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0)
    writer.write_eof()
    await ended.wait()
    await reader.read()
    writer.close()
    before.close()
    behind.close()
    return bytes(got)


def test_the_ack_that_is_to_be_cut_never_reaches_the_broker() -> None:
    log = a_log()
    delete = request("DeleteMessage", ReceiptHandle="h")
    log.received["h"] = ONE
    log.to_be_cut.add(ONE)
    assert asyncio.run(carried(sqs, log, [delete])) == b""
    assert noted(log) == [("cut", *ONE)]
    assert asyncio.run(carried(sqs, log, [delete])) == delete, "the next one does"


def test_an_ack_that_rabbitmq_has_got_is_a_removal() -> None:
    log = a_log()
    ack = method(spec.Basic.Ack(delivery_tag=1))

    def interpret(log: Log) -> Interpreter:
        connection = rabbit(log)
        connection.from_broker(deliver("O-1", 1))
        return connection

    assert asyncio.run(carried(interpret, log, [ack])) == ack
    assert noted(log) == [("removed", *ONE)]
