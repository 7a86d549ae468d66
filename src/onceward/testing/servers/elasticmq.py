"""ElasticMQ: a server that speaks SQS, standard and FIFO."""

from __future__ import annotations

import re
import time
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, Final
from urllib.request import urlopen

from onceward.testing.servers.java import JavaServer

_ANSWER_SECONDS_MAX: Final = 2.0
_RESTORED_SECONDS_MAX: Final = 10.0
# ElasticMQ serves clients before it has its queues back: a moment long they do not exist, and what is sent in it to one of
# them overtakes what was there before. Only its log says what it had and what it has again.
_CHANGED: Final = re.compile(r"QueueManagerActor - (?:Creating queue CreateQueueData\((.+?),|Deleting queue (\S+))")
_RESTORED: Final = re.compile(r"QueueActor - Restored \d+ messages in queue (\S+)")
# WRITE_DELAY=0: H2 else writes twice a second, and a kill loses messages whose send was acknowledged.
_CONF: Final = """\
include classpath("application.conf")
node-address {{ protocol = http, host = 127.0.0.1, port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "127.0.0.1", sqs-limits = strict }}
rest-stats {{ enabled = false }}
aws {{ region = us-east-1, accountId = 000000000000 }}
generate-node-address = false
queues {{}}
messages-storage {{
  enabled = true
  driver-class = "org.h2.Driver"
  uri = "jdbc:h2:{folder}/messages;WRITE_DELAY=0"
  username = "sa"
  password = ""
}}
"""


class ElasticMQ(JavaServer):
    """A server that speaks SQS, strict about its limits, with its messages on disk.

    `settings` are lines of its configuration, as `{"rest-sqs.sqs-limits": "relaxed"}`. Its region is us-east-1, and any
    credentials do. It is stricter than SQS where a receipt handle is stale: SQS answers with success on a standard queue,
    and may not delete; ElasticMQ refuses. It answers before a new queue is on disk; `sync` waits for that. Needs Java 17
    and, for the first start, Maven.
    """

    title = "ElasticMQ"
    ports_preferred: ClassVar = {"SQS": 19324}
    pom = Path(__file__).with_name("elasticmq.pom.xml")
    heap_mb = 256
    _expected: frozenset[str] = frozenset()
    _lost: frozenset[str] = frozenset()
    _served_since: float | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sync(self) -> None:
        """The queues that have been made are on disk: from here on they survive a kill.

        It makes a queue `onceward-sync` and removes it, which a kill at once may undo.
        """
        # What is to be written waits in one line, and a message is acknowledged when it has been written.
        self._ask("/?Action=CreateQueue&QueueName=onceward-sync")
        self._ask("/000000000000/onceward-sync?Action=SendMessage&MessageBody=sync")
        self._ask("/000000000000/onceward-sync?Action=DeleteQueue")

    def _ask(self, path: str, seconds: float = 30.0) -> int:
        """The status of the answer. Raises `OSError` without one."""
        with urlopen(f"{self.url}{path}", timeout=seconds) as answer:  # noqa: S310 - loopback
            return int(answer.status)

    def _configure(self) -> None:
        lines = [f"{name} = {value}\n" for name, value in self._record.settings.items()]
        conf = _CONF.format(port=self.port, folder=self.folder) + "".join(lines)
        (self.folder / "elasticmq.conf").write_text(conf)
        said = self._log.read_text(errors="replace") if self._log.exists() else ""
        self._expected = _queues_of(said) - self._lost
        self._served_since = None

    def _main(self) -> list[str]:
        return [f"-Dconfig.file={self.folder / 'elasticmq.conf'}", "org.elasticmq.server.Main"]

    def _is_ready(self) -> bool:
        return self._serves() and self._has_its_queues()

    def _serves(self) -> bool:
        try:
            return self._ask("/?Action=ListQueues", _ANSWER_SECONDS_MAX) == 200
        except (HTTPException, OSError):
            return False

    def _has_its_queues(self) -> bool:
        """It has restored the queues that it had, with their messages."""
        if self._served_since is None:
            self._served_since = time.monotonic()
        missing = self._expected - self._restored()
        if missing and time.monotonic() - self._served_since > _RESTORED_SECONDS_MAX:
            # The kill came between the line of the log and the disk: these were never written, and do not come back.
            self._lost |= missing
            self._expected -= missing
        return not missing

    def _restored(self) -> set[str]:
        return {*_RESTORED.findall(self._log_since_start())}


def _queues_of(log: str) -> frozenset[str]:
    """The queues that exist where this log ends."""
    queues: set[str] = set()
    for created, deleted in _CHANGED.findall(log):
        queues.discard(deleted)
        queues |= {created} - {""}
    return frozenset(queues)
