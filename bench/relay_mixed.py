"""The relay under rows of mixed sizes, one of them poison, with a slow sink, killed again and again. Run by hand:

    python bench/relay_mixed.py                                   10,000 rows from 1 kB to 32 MB, 0.5 s a message, ten kills
    python bench/relay_mixed.py --rows 300 --large 2 --seconds 0.02 --kills 3

The sink's log is a file that is synced before a message is confirmed. Counted at the end, from the log: everything but the
poison is there, of each subject in its order (a message's first line counts), and how much memory the relay took at its
most. The sizes are skewed: most rows 1 kB, some up to 1 MB, `--large` of 32 MB. It needs a few GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import psycopg

from onceward import Message, migrate, publish
from onceward.errors import TransportError
from onceward.message import uuid7
from onceward.relay_loop import relay
from onceward.retry import Backoff
from onceward.testing.postgres import Cluster
from onceward.transport import Traits

MB: Final = 1_000_000
SUBJECTS: Final = 500  # shared out among the lanes by the size of a batch: a lane that locks a subject has all of it
LARGE_BYTES: Final = 32 * MB
LANES: Final = 50
POISON: Final = "poison"


class Mix(NamedTuple):
    """What is put into the outbox, and what is done to the relay."""

    rows: int = 10_000
    large: int = 20
    seconds: float = 0.5
    kills: int = 10
    lanes: int = LANES
    seed: int = 1


class Verdict(NamedTuple):
    """What the log says. `missing` and `overtaken` must be empty, and `poison_sent` false."""

    sent: int
    doubled: int
    missing: list[int]
    overtaken: list[str]
    poison_sent: bool
    peak_bytes: int
    seconds: float

    @property
    def holds(self) -> bool:
        return not (self.missing or self.overtaken or self.poison_sent)


class LogSink:
    """Takes its time for each message, and has it in a synced file before it confirms. The poison ends the connection."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.traits = Traits(lease_seconds=30, settle_fenced=False, counts_deliveries=False)
        self._log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._seconds = seconds

    def publish(self, messages: Sequence[Message]) -> Sequence[BaseException | None]:
        if any(message.type == POISON for message in messages):
            raise TransportError("the connection was cut")
        for message in messages:
            time.sleep(self._seconds)
            os.write(self._log, f"{message.source} {message.subject} {len(message.body)}\n".encode())
        os.fsync(self._log)
        return [None] * len(messages)

    def close(self) -> None:
        os.close(self._log)


def fill(dsn: str, mix: Mix) -> list[int]:
    """The outbox has the rows; their payloads' sizes, in order. `source` carries each row's number to the log."""
    chance = random.Random(mix.seed)
    sizes = [chance.choice((1_000,) * 90 + (50_000,) * 9 + (MB,)) for _ in range(mix.rows)]
    for number in chance.sample(range(mix.rows), mix.large):
        sizes[number] = LARGE_BYTES
    poison = mix.rows // 3
    with psycopg.connect(dsn, autocommit=True) as conn:
        for number, size in enumerate(sizes):
            kind = POISON if number == poison else "mixed"
            subject = POISON if number == poison else f"subject-{number % SUBJECTS}"
            message = Message(type=kind, subject=subject, source=str(number), id=uuid7(), body=chance.randbytes(size))
            with conn.transaction():
                publish(conn, message)
    return sizes


def run(mix: Mix, folder: Path) -> Verdict:
    """Fill, relay under kills until only the poison is left, and count."""
    log, began = folder / "sent.log", time.monotonic()
    with Cluster.start(name="mixed", settings={"max_wal_size": "4GB"}) as cluster:
        with psycopg.connect(cluster.dsn, autocommit=True) as conn:
            migrate(conn)
        sizes = fill(cluster.dsn, mix)
        peak_bytes = _relay_under_kills(cluster.dsn, mix, log)
    return judge(log, sizes, peak_bytes, time.monotonic() - began)


def _relay_under_kills(dsn: str, mix: Mix, log: Path) -> int:
    """The most memory that any of the relays had. Kills come at random instants, spread over how far the outbox is."""
    chance, peak_bytes, kills = random.Random(mix.seed + 1), 0, 0
    process = _start(dsn, mix, log)
    with psycopg.connect(dsn, autocommit=True) as conn:
        while (waiting := _waiting(conn)) > 1:
            peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
            if kills < mix.kills and waiting < mix.rows * (1 - (kills + 0.5) / (mix.kills + 1)):
                time.sleep(chance.uniform(0, 4 * mix.seconds))
                process.send_signal(signal.SIGKILL)
                process.wait()
                process, kills = _start(dsn, mix, log), kills + 1
            if process.poll() is not None:
                raise RuntimeError(f"the relay has ended by itself, with {process.returncode}")
            time.sleep(0.05)
    peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
    process.terminate()
    process.wait()
    return peak_bytes


def _start(dsn: str, mix: Mix, log: Path) -> subprocess.Popen[bytes]:
    options = {"dsn": dsn, "log": str(log), "seconds": mix.seconds, "lanes": mix.lanes}
    return subprocess.Popen([sys.executable, __file__, "--relay", json.dumps(options)])


def _waiting(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM onceward.outbox").fetchone()
    return 0 if row is None else int(row[0])


def _peak_bytes(pid: int) -> int:
    """VmHWM: what the process had in memory at its most."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def judge(log: Path, sizes: list[int], peak_bytes: int, seconds: float) -> Verdict:
    """From the log alone: first lines count, a repeated one is a double (which the inbox would turn away)."""
    lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    first = dict.fromkeys((int(number), subject) for number, subject, size in lines if int(size) == sizes[int(number)])
    poison = len(sizes) // 3
    sent = {number for number, _ in first}
    newest: dict[str, int] = {}
    overtaken = []
    for number, subject in first:
        if number < newest.get(subject, -1):
            overtaken.append(f"{subject}: {number} after {newest[subject]}")
        newest[subject] = max(number, newest.get(subject, -1))
    missing = [number for number in range(len(sizes)) if number not in sent and number != poison]
    return Verdict(len(sent), len(lines) - len(sent), missing, overtaken, poison in sent, peak_bytes, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in Mix()._asdict().items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--relay", type=json.loads, help=argparse.SUPPRESS)
    options = vars(parser.parse_args(arguments))
    child = options.pop("relay")
    if child is not None:
        relay(
            sink=lambda: LogSink(Path(child["log"]), child["seconds"]), database=child["dsn"], lanes=child["lanes"],
            batch=max(1, SUBJECTS // child["lanes"]), backoff=Backoff(seconds_max=30), stop=threading.Event(),
        )  # fmt: skip
        return 0
    with TemporaryDirectory() as folder:
        verdict = run(Mix(**options), Path(folder))
    print(
        f"{verdict.sent:,} sent, {verdict.doubled:,} of them again; missing {verdict.missing}, overtaken "
        f"{verdict.overtaken}, poison sent: {verdict.poison_sent}; memory at most {verdict.peak_bytes / MB:.0f} MB; "
        f"{verdict.seconds:.0f} s"
    )
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
