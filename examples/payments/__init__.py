"""The reference payment service: one producer and two consumers, naive and hardened side by side.

    place an order ──order.placed──▶ charge the card, mark it paid ──order.paid──▶ book it: balance = balance + amount

`naive.py` is what one writes first. `hardened.py` is the same service on Onceward. `card.py` is what both call. Between
them stand five repairs that people make, each with what it still gets wrong: `resend.py`, `ack_first.py`,
`select_then_act.py`, `textbook.py`, `no_key.py`. `sqs_tutorial.py`, `rabbitmq_tutorial.py` and `kafka_tutorial.py` are the
naive service in each client's own idiom.
"""
