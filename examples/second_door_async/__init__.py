"""The second door for asyncio: the service of `second_door`, as a loop of coroutines.

    place an order ──order.placed──▶ charge the card, mark it paid ──order.paid──▶ book it: balance = balance + amount

`handlers.py` is what to read: it is that of `second_door` with `onceward.aio`, `async with` and `await`. The tables, the
provider and the relay's sink are those of `second_door`.

    PYTHONPATH=examples python -m second_door_async --database postgresql://localhost/play --orders 3
"""
