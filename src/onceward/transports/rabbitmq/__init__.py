"""RabbitMQ: quorum queues by AMQP 0-9-1, with pika (`pip install 'onceward[rabbitmq]'`).

A delivery has no lease: it is ours until it is settled, or until the broker closes the channel on which it came. Then it
is delivered again, and its tag means nothing any more: it is lost, and no ack is ever sent for it.
AMQP has no delayed release. A copy, which the broker has confirmed, waits in a delay queue from which it is dead-lettered
back at least once; then the original is acknowledged. A crash between the two leaves a double, which the inbox turns away.
The envelope is CloudEvents in binary mode, with headers `cloudEvents_id` and so on.
"""

from onceward.transports.rabbitmq.link import ParametersOrFactory
from onceward.transports.rabbitmq.queues import check_queue, create_queue
from onceward.transports.rabbitmq.sink import Sink
from onceward.transports.rabbitmq.source import Source

__all__ = ["ParametersOrFactory", "Sink", "Source", "check_queue", "create_queue"]
