"""Real brokers for tests and development, without Docker: `ElasticMQ` (SQS), `RabbitMQ` and `Kafka`.

    from onceward.testing.servers import ElasticMQ

    with ElasticMQ.start() as server:
        client = boto3.client("sqs", endpoint_url=server.url, region_name="us-east-1", ...)
        ...
        server.kill()        # SIGKILL, as a crash of the machine would end it
        server.restart()     # on the same ports, with what it had acknowledged

Needs `pip install 'onceward[testing]'`, and Linux or macOS. The first start on a machine fetches the programs: of ElasticMQ
and Kafka by Maven, into a cache (ONCEWARD_SERVERS_DIR); RabbitMQ by apt-get, where root asks for it. `onceward servers up`
starts a set that all tests of a machine share.
"""

from onceward.testing.servers.elasticmq import ElasticMQ
from onceward.testing.servers.installing import InstallFailed
from onceward.testing.servers.kafka import Kafka
from onceward.testing.servers.rabbitmq import RabbitMQ
from onceward.testing.servers.server import Server, ServerFailed
from onceward.testing.servers.shared import SHARED, ServerState, Shared

__all__ = [
    "SHARED", "ElasticMQ", "InstallFailed", "Kafka", "RabbitMQ", "Server", "ServerFailed", "ServerState", "Shared",
]  # fmt: skip
