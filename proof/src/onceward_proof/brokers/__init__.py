"""The queues that a proof can run on, each behind one small interface, so that every variant has the same edges on all.

broker.py    the interface: a server that is killed, fresh queues for a variant, a way to them for a worker, a witness
find.py      the broker of a name
pgmq.py      a queue in Postgres, on a cluster of its own
"""
