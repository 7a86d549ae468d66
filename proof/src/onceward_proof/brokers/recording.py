"""The recorder as the proof has it: a process beside a broker, its file, and the cuts that it is told to make."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onceward_proof.brokers.broker import Passed
from onceward_proof.brokers.recorder import Noted, Wire


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorder at work; `port` is the way through it."""

    port: int
    file: Path
    process: subprocess.Popen[str]

    def cut_at_ack(self, queue: str, order: str) -> None:
        """The connection by which the next ack of this order's message is sent breaks: the broker never sees it."""
        if self.process.stdin is None or self.process.stdout is None:
            raise AssertionError("a recorder has an input and an output")
        print(queue, order, file=self.process.stdin, flush=True)
        # The worker goes on only when this has been heard: its ack would be faster.
        self.process.stdout.readline()

    def passed(self, names: Mapping[str, str]) -> Passed:
        """What passed the queues of these message types."""
        types = {queue: message_type for message_type, queue in names.items()}
        times: dict[Noted, dict[tuple[str, str], list[float]]] = {"stored": {}, "removed": {}, "cut": {}}
        for line in self._lines():
            if line["queue"] in types:
                times[line["what"]].setdefault((types[line["queue"]], line["order"]), []).append(line["at"])
        stored = {message: at[0] for message, at in times["stored"].items()}
        return Passed(stored, times["removed"], frozenset(times["cut"]))

    def processed(self, queue: str) -> list[tuple[str, Any]]:
        """The orders whose messages were removed from this queue, each with what the first was sent as; oldest first."""
        lines = [line for line in self._lines() if line["queue"] == queue]
        sent = {line["order"]: line["sent"] for line in reversed(lines) if line["what"] == "stored"}
        removed = dict.fromkeys(line["order"] for line in lines if line["what"] == "removed")
        return [(order, sent[order]) for order in removed if order in sent]

    def _lines(self) -> Iterator[Any]:
        with self.file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


@contextmanager
def start_recorder(wire: Wire, port: int, folder: Path) -> Iterator[Recording]:
    """A recorder carries connections to this port of the broker; it is gone afterwards."""
    file = folder / "recorded.jsonl"
    file.touch()
    command = [sys.executable, "-m", "onceward_proof.brokers.recorder", wire, str(port), str(file)]
    with (
        (folder / "recorder.log").open("ab") as log,
        # A session of its own: Ctrl-C is the controller's to handle. Its input ends with this process, and so does it.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        if process.stdin is None or process.stdout is None:
            raise AssertionError("a recorder has an input and an output")
        yield Recording(int(process.stdout.readline()), file, process)
        process.stdin.close()
