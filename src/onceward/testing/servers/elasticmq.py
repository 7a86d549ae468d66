"""ElasticMQ: a server that speaks SQS, standard and FIFO."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, Final
from urllib.error import URLError
from urllib.request import urlopen

from onceward.testing.servers.installing import install_jars, jars_folder, program
from onceward.testing.servers.server import Server

_POM: Final = Path(__file__).with_name("elasticmq.pom.xml")
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


class ElasticMQ(Server):
    """A server that speaks SQS, strict about its limits, with its messages on disk.

    `settings` are lines of its configuration, as `{"rest-sqs.sqs-limits": "relaxed"}`. Its region is us-east-1, and any
    credentials do. It is stricter than SQS where a receipt handle is stale: SQS answers with success on a standard queue,
    and may not delete; ElasticMQ refuses. Needs Java 17 and, for the first start, Maven.
    """

    title = "ElasticMQ"
    ports_preferred: ClassVar = {"SQS": 19324}

    @classmethod
    def is_installed(cls) -> bool:
        return jars_folder(_POM).exists()

    @classmethod
    def install(cls) -> None:
        install_jars(_POM)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _configure(self) -> None:
        lines = [f"{name} = {value}\n" for name, value in self._record.settings.items()]
        conf = _CONF.format(port=self.port, folder=self.folder) + "".join(lines)
        (self.folder / "elasticmq.conf").write_text(conf)

    def _command(self) -> list[str]:
        java = program("java", "Java 17 or newer", "apt-get install openjdk-17-jre-headless")
        # The cheapest way to run a small JVM: no compiler that optimises, no threads that collect.
        return [
            java, "-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            f"-Dconfig.file={self.folder / 'elasticmq.conf'}", "-cp", f"{jars_folder(_POM)}/*", "org.elasticmq.server.Main",
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/?Action=ListQueues", timeout=_ANSWER_SECONDS_MAX) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except (URLError, HTTPException, OSError):
            return False
