"""The recorder: a process between the workers and a broker, which sees what passes and keeps it.

A broker does not say afterwards what was ever stored in it, or taken away. So every connection of a worker goes through
here: what the broker has confirmed, and what a worker has acknowledged, is a line in a file. No worker knows of it.

It also strikes: it cuts the connection by which the ack of a message is just sent, before the broker sees it.

Run as a process of its own: `python -m onceward_proof.brokers.recorder PROTOCOL PORT FILE`. Its first line of output is the
port that it listens on. A line of input `QUEUE ORDER` arms a cut, and is answered by a line. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TextIO

Wire = Literal["http", "amqp"]
Noted = Literal["stored", "removed", "cut"]
CHUNK_BYTES: Final = 65_536


class Content(NamedTuple):
    """What a message is to the recorder: whose it is, and in which queue."""

    queue: str
    order: str


@dataclass(slots=True)
class Log:
    """What has passed, of all connections."""

    file: TextIO
    received: dict[str, Content] = field(default_factory=dict)  # of a queue whose acks may come by another connection
    to_be_cut: set[Content] = field(default_factory=set)

    def note(self, what: Noted, content: Content, **more: Any) -> None:
        """It is in the file, with the time: the reader may come at any moment."""
        self.file.write(json.dumps({"what": what, **content._asdict(), "at": time.time(), **more}) + "\n")
        self.file.flush()

    def take_cut(self, acked: Iterable[Content]) -> Content | None:
        """The first of these messages whose ack is to be cut off, which it will be once."""
        content = next((content for content in acked if content in self.to_be_cut), None)
        if content is not None:
            self.to_be_cut.discard(content)
        return content


class Acks(NamedTuple):
    """The acks in one chunk of what a worker sends."""

    asked: list[Content]  # in the chunk
    final: bool  # they stand once the broker has the chunk; False: it has yet to answer


class Interpreter(Protocol):
    """Understands one connection."""

    def from_worker(self, chunk: bytes) -> Acks:
        """What is acknowledged in this chunk."""
        ...

    def from_broker(self, chunk: bytes) -> None:
        """What the broker confirms is noted."""
        ...


InterpreterFactory = Callable[[Log], Interpreter]


def order_of(body: bytes | str) -> str:
    """The order that a message of the service is about; '' for a message of anybody else."""
    try:
        data = json.loads(body)
    except ValueError:
        return ""
    return str(data.get("id", "")) if isinstance(data, Mapping) else ""


class Recorder:
    """Carries connections to the broker's port, and reads along."""

    def __init__(self, interpret: InterpreterFactory, port: int, log: Log) -> None:
        self._interpret = interpret
        self._port = port
        self._log = log

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker's connection, until either end closes it."""
        interpreter = self._interpret(self._log)
        with suppress(OSError):
            theirs_reader, theirs_writer = await asyncio.open_connection("127.0.0.1", self._port)
            pumps = [
                asyncio.create_task(self._from_worker(reader, theirs_writer, interpreter)),
                asyncio.create_task(self._from_broker(theirs_reader, writer, interpreter)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            # Aborted, not closed: what a broker that is gone, or is to be cut off, has not got yet, it must not get.
            theirs_writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            for ended in await asyncio.gather(*pumps, return_exceptions=True):
                # What it does not understand must not be hidden: the witness would seem to have seen nothing.
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    raise ended
        writer.close()

    async def _from_worker(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, interpreter: Interpreter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            acks = interpreter.from_worker(chunk)
            if (cut := self._log.take_cut(acks.asked)) is not None:
                # The whole chunk is lost, as it would be on a wire: what else is in it comes again, too.
                writer.transport.abort()
                self._log.note("cut", cut)
                return
            writer.write(chunk)
            await writer.drain()
            for content in acks.asked if acks.final else ():
                self._log.note("removed", content)

    async def _from_broker(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, interpreter: Interpreter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            # Noted before the worker hears of it: what it does next must not seem to have come first.
            interpreter.from_broker(chunk)
            writer.write(chunk)
            await writer.drain()


async def record(interpret: InterpreterFactory, port: int, file: Path) -> None:
    """Until the input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with file.open("a", encoding="utf-8") as lines:
        log = Log(lines)
        server = await asyncio.start_server(Recorder(interpret, port, log).carry, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        while line := await reader.readline():
            queue, _, order = line.decode().rstrip("\n").partition(" ")
            log.to_be_cut.add(Content(queue, order))
            print("armed", flush=True)
        server.close()


def main() -> None:
    wire, port, file = sys.argv[1:]
    # Each wire's own module is imported by nobody else: its client library is an extra.
    interpret: InterpreterFactory = import_module(f"onceward_proof.brokers.{wire}_wire").interpret
    asyncio.run(record(interpret, int(port), Path(file)))


if __name__ == "__main__":
    main()
