"""ElasticMQ: a server that speaks SQS, standard and FIFO."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, Final
from urllib.error import URLError
from urllib.request import urlopen

from onceward.testing.servers.java import JavaServer

_ANSWER_SECONDS_MAX: Final = 2.0
# WRITE_DELAY=0: H2 else writes twice a second, and a kill loses messages whose send was acknowledged.
_CONF: Final = """\
include classpath("application.conf")
node-address {{ protocol = http, host = 127.0.0.1, port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "127.0.0.1", sqs-limits = strict }}
rest-stats {{ enabled = false }}
aws {{ region = us-east-1, accountId = 000000000000 }}
generate-node-address = false
queues {{}}
queues-storage {{ enabled = true, path = "{folder}/queues.conf" }}
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
    and may not delete; ElasticMQ refuses. Needs Java 17 and, for the first start, Maven.
    """

    title = "ElasticMQ"
    ports_preferred: ClassVar = {"SQS": 19324}
    pom = Path(__file__).with_name("elasticmq.pom.xml")
    heap_mb = 256

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _configure(self) -> None:
        lines = [f"{name} = {value}\n" for name, value in self._record.settings.items()]
        conf = _CONF.format(port=self.port, folder=self.folder) + "".join(lines)
        (self.folder / "elasticmq.conf").write_text(conf)

    def _main(self) -> list[str]:
        return [f"-Dconfig.file={self.folder / 'elasticmq.conf'}", "org.elasticmq.server.Main"]

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/?Action=ListQueues", timeout=_ANSWER_SECONDS_MAX) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except (URLError, HTTPException, OSError):
            return False
