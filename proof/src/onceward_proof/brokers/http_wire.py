"""What passes between a worker and an SQS server: JSON over HTTP, one request at a time on each connection."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from onceward_proof.brokers.recorder import Acks, Content, Log, order_of

_HEAD_END: Final = b"\r\n\r\n"
_MESSAGE: Final = ("MessageBody", "MessageAttributes")  # what a message is, wherever it is sent
_OK: Final = b" 200 "


class Exchange(NamedTuple):
    """One whole request or answer: the words of its first line and its headers, and its body."""

    head: bytes
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body) if self.body else {}


@dataclass(slots=True)
class Parser:
    """Cuts a stream of HTTP into whole requests, or answers."""

    _buffer: bytes = b""

    def feed(self, chunk: bytes) -> list[Exchange]:
        """Those that are whole with this chunk."""
        self._buffer += chunk
        whole = []
        while (exchange := self._next()) is not None:
            whole.append(exchange)
        return whole

    def _next(self) -> Exchange | None:
        head, found, rest = self._buffer.partition(_HEAD_END)
        length = int(header(head, b"content-length") or 0)
        if not found or len(rest) < length:
            return None
        self._buffer = rest[length:]
        return Exchange(head, rest[:length])


def header(head: bytes, name: bytes) -> bytes:
    """The value of this header; empty when it is not there."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


@dataclass(slots=True)
class SqsInterpreter:
    """Understands SQS's JSON protocol."""

    log: Log
    _requests: Parser = field(default_factory=Parser)
    _answers: Parser = field(default_factory=Parser)
    _open: deque[tuple[str, Any]] = field(default_factory=deque)  # what was asked, and not answered yet

    def from_worker(self, chunk: bytes) -> Acks:
        asked: list[Content] = []
        for request in self._requests.feed(chunk):
            action = header(request.head, b"x-amz-target").decode().rpartition(".")[2]
            document = request.document
            handles = _deleted(action, document).values()
            asked += [self.log.received[handle] for handle in handles if handle in self.log.received]
            self._open.append((action, document))
        # Nothing is gone before the server says so: `from_broker` notes it.
        return Acks(asked, final=False)

    def from_broker(self, chunk: bytes) -> None:
        for answer in self._answers.feed(chunk):
            action, asked = self._open.popleft()
            if _OK in answer.head.partition(b"\r\n")[0]:
                self._answered(action, asked, answer.document)

    def _answered(self, action: str, asked: Any, answer: Any) -> None:
        queue = str(asked.get("QueueUrl", "")).rpartition("/")[2]
        done = {entry["Id"] for entry in answer.get("Successful", ())} | {""}
        for number, sent in _sent(action, asked).items():
            if number in done:
                content = Content(queue, order_of(sent["MessageBody"]))
                self.log.note("stored", content, sent={name: sent[name] for name in _MESSAGE if name in sent})
        for number, handle in _deleted(action, asked).items():
            if number in done and handle in self.log.received:
                self.log.note("removed", self.log.received[handle])
        if action == "ReceiveMessage":
            for message in answer.get("Messages", ()):
                self.log.received[message["ReceiptHandle"]] = Content(queue, order_of(message["Body"]))


def _sent(action: str, asked: Any) -> dict[str, Any]:
    """The messages that a request sends, by the entry's id; '' where there is one without."""
    match action:
        case "SendMessage":
            return {"": asked}
        case "SendMessageBatch":
            return {entry["Id"]: entry for entry in asked["Entries"]}
        case _:
            return {}


def _deleted(action: str, asked: Any) -> dict[str, str]:
    """The receipt handles whose messages a request deletes, by the entry's id; '' where there is one without."""
    match action:
        case "DeleteMessage":
            return {"": asked["ReceiptHandle"]}
        case "DeleteMessageBatch":
            return {entry["Id"]: entry["ReceiptHandle"] for entry in asked["Entries"]}
        case _:
            return {}


interpret = SqsInterpreter
