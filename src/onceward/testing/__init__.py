"""For your own tests: a Postgres without a server, real brokers, a connection that can be cut, a suite for transports.

postgres     `Cluster`: a real Postgres of the test's own, killed and restarted at will
servers      `ElasticMQ`, `RabbitMQ`, `Kafka`: real brokers, killed and restarted at will
proxy        `Proxy`: a TCP proxy before a Postgres, cut at will or around one statement
transport    `TransportSuite`: what every Source and Sink must do

The first two need `pip install 'onceward[testing]'`, the others only the library.
"""
