"""Kafka, by its canonical client, confluent-kafka (`pip install 'onceward[kafka]'`).

A partition is ours while the group has assigned it to us; there is no lease. What is settled is never more than this: the
offset up to which everything in a partition is finished is committed, and no further. A commit follows durable facts only,
so that one which comes too late, or is accepted although it should not be, can repeat messages but never skip one.

`config` is librdkafka's own configuration, passed through. Only what would break this is refused: see `settings`.
"""

from onceward.transports.kafka.sink import Sink
from onceward.transports.kafka.source import Source
from onceward.transports.kafka.topics import check_topic, create_topic

__all__ = ["Sink", "Source", "check_topic", "create_topic"]
