"""The queues that a proof can run on, each behind one small interface, so that every variant has the same edges on all.

broker.py    the interface: a server that is killed, fresh queues for a variant, a way to them for a worker, a witness
find.py      the broker of a name
installed.py whether a broker's programs are here
pgmq.py      a queue in Postgres, on a cluster of its own
sqs.py       SQS, standard and FIFO: an ElasticMQ
rabbitmq.py  a RabbitMQ
kafka.py     a Kafka, whose log is its own witness
recorder.py  a process between the workers and a broker that keeps nothing of what passed; recording.py starts and reads it
http_wire.py what the recorder understands of SQS; amqp_wire.py: of RabbitMQ
"""
