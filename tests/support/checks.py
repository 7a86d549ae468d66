"""Assertions that an ordinary test expects to pass, and `test_guarantees_can_fail.py`, with a sabotage, to fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order
from tests.support.points import At, Gate, Recorder
from tests.support.queues import ListSink, relaying, relaying_weakened
from tests.support.shop import charging, of_shape
from tests.support.waiting import Background, until, until_any_blocked

from onceward.consumer import Consumer, OpenConsumer
from onceward.errors import Reject
from onceward.inbox import Inbox, InboxTable
from onceward.intents import Intents
from onceward.message import Message
from onceward.outbox import publish
from onceward.transport import ACK, LEAVE

Conn = Connection[Any]
Opened = Callable[..., OpenConsumer]
Statements = Mapping[str, tuple[str, str]]
NONE: Statements = {}


def weaken(opened: OpenConsumer, **statements: tuple[str, str]) -> OpenConsumer:
    """Each named statement with a part of it replaced; fails when the part is not there (the sabotage would be idle)."""
    inbox, intents = opened.runtime.inbox, opened.runtime.intents
    texts: dict[str, Any] = dict(inbox.statements)
    for name, (part, replacement) in statements.items():
        if part not in texts[name]:
            raise LookupError(f"{name} has no {part!r}")
        texts[name] = texts[name].replace(part, replacement)
    changed: Mapping[str, Any] = texts
    inbox.statements = intents.statements = changed
    return opened


def check_one_answer_is_kept(
    opened: Opened, db: Conn, *, padding: str = "", message: Message | None = None, statements: Statements = NONE
) -> None:
    """Another worker's answer came first, and differs: the first stays, and the message is parked with both."""
    message, provider = message or order(), Provider()
    first = {"id": "ch_first", "padding": padding}

    def answer_first() -> None:
        intents_of_the_other = Intents(rows.CONSUMER)
        intents_of_the_other.record(db, message, n=1, answer=first)

    seen = Recorder()
    consumer = weaken(opened(_charging(provider, padding), At("effect.answered", answer_first), seen), **statements)
    consumer.deliver(delivery(message))
    assert rows.intents(db, message)[0].answer == first
    assert seen.count("effect.recorded") == 0
    [entry] = rows.parked(db)
    assert entry.reason == "two answers"
    assert "ch_second" in entry.detail
    assert rows.books(db, message) == rows.Books(state="parked", token=1, attempts=0, parked=["two answers"], effects=0)


def check_a_late_finisher_writes_nothing(
    opened: Opened, db: Conn, background: Background, *, statements: Statements = NONE
) -> None:
    """The first worker sleeps past its lease, the second finishes, the first wakes: one effect, and it is the second's."""
    message, provider = order(), Provider()
    with Gate("effect.recorded") as gate:
        slow = weaken(opened(charging(provider, note="first"), gate), **statements)
        first = background(slow.deliver, delivery(message))
        gate.wait()
        rows.lapse(db, message)
        assert opened(charging(provider, note="second")).deliver(delivery(message, times=2)) == ACK
        gate.release()
        assert first.result() == LEAVE
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=0, parked=[], effects=1)
    assert rows.scalar(db, "SELECT note FROM effects") == "second"
    assert provider.calls == 1


def check_a_zombie_fails_nothing(opened: Opened, db: Conn, *, statements: Statements = NONE) -> None:
    """The handler fails after another worker has taken its message over: that one's claim and the count are untouched."""

    def fail(message: Message) -> None:
        rows.claim_by_another(db, message)
        raise RuntimeError("a zombie's")

    message = order()
    zombie = weaken(opened(of_shape("effectful", fail)), **statements)
    assert zombie.deliver(delivery(message)) == LEAVE
    assert rows.books(db, message) == rows.Books(state="pending", token=2, attempts=0, parked=[], effects=0)
    assert rows.inbox_row(db, message).leased


def check_a_zombie_parks_nothing(opened: Opened, db: Conn, *, statements: Statements = NONE) -> None:
    """The same, for a handler that rejects its message."""

    def reject(message: Message) -> None:
        rows.claim_by_another(db, message)
        raise Reject("a zombie's")

    message = order()
    zombie = weaken(opened(of_shape("effectful", reject)), **statements)
    assert zombie.deliver(delivery(message)) == LEAVE
    assert rows.books(db, message) == rows.Books(state="pending", token=2, attempts=0, parked=[], effects=0)


def check_a_take_over_has_one_winner(
    opened: Opened, db: Conn, lock: Conn, background: Background, shape: str, *, statements: Statements = NONE
) -> None:
    """All stand behind one lock on the lapsed row (`lock`: a session of its own), and are let go together."""
    message, seen = order(), Recorder()
    Inbox(rows.CONSUMER, worker="dead").claim(db, message)
    rows.lapse(db, message)
    lock.execute("SELECT 1 FROM onceward.inbox FOR UPDATE")
    consumer = weaken(opened(of_shape(shape), seen, threads=5), **statements)
    futures = [background(consumer.deliver, delivery(message)) for _ in range(5)]
    until_any_blocked(db, many=5)
    lock.rollback()
    actions = {future.result().action for future in futures}
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=0, parked=[], effects=1)
    assert seen.count("consumer.committed") == 1
    assert actions <= {"ack", "release"}


def check_a_lease_extended_meanwhile_is_not_taken_over(
    opened: Opened, db: Conn, holder: Conn, background: Background, shape: str, *, statements: Statements = NONE
) -> None:
    """The take finds the lease lapsed; its take-over waits for the row, and gets it when the heartbeat has been there.

    `holder`: the heartbeat's session. It locks the row first: behind an UPDATE, the INSERT of the take would wait already,
    and the look that follows would find the lease alive.
    """
    message, inbox = order(), Inbox(rows.CONSUMER, lease_seconds=40, worker="holder")
    token = inbox.claim(db, message).token
    rows.lapse(db, message)
    mine = {"consumer": rows.CONSUMER, "message_ids": [UUID(message.id)], "tokens": [token], "lease_seconds": 40}
    holder.execute("SELECT 1 FROM onceward.inbox FOR UPDATE")
    consumer = weaken(opened(of_shape(shape)), **statements)
    taking_over = background(consumer.deliver, delivery(message, times=2))
    until_any_blocked(db)
    assert holder.execute(InboxTable(rows.CONSUMER).statements["inbox_extend"], mine).fetchall()
    holder.commit()
    settlement = taking_over.result()
    assert settlement.action == "release"
    assert settlement.delay_seconds > 30
    assert rows.books(db, message) == rows.Books(state="pending", token=token, attempts=0, parked=[], effects=0)


def check_a_crashed_claim_is_taken_over(opened: Opened, db: Conn, shape: str, *, statements: Statements = NONE) -> None:
    """Claimed, and never heard of again: its redelivery is no duplicate (`0 rows inserted, so skip` would lose it)."""
    message = order()
    Inbox(rows.CONSUMER, worker="dead").claim(db, message)
    rows.lapse(db, message)
    assert weaken(opened(of_shape(shape)), **statements).deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(state="done", token=2, attempts=0, parked=[], effects=1)


def check_no_effect_starts_under_a_lapsed_lease(opened: Opened, db: Conn, *, statements: Statements = NONE) -> None:
    message, provider = order(), Provider()
    late = At("consumer.claimed", lambda: rows.lapse(db, message))
    assert weaken(opened(charging(provider), late), **statements).deliver(delivery(message)) == LEAVE
    assert (provider.calls, rows.intents(db, message)) == (0, [])
    assert rows.books(db, message) == rows.Books(state="pending", token=1, attempts=0, parked=[], effects=0)


def check_a_key_is_not_overtaken(
    dsn: str, db: Conn, background: Background, *, statements: Mapping[str, str] | None = None
) -> None:
    """While one relay is publishing a key's head, no other sends what is behind it; another key goes on."""
    first, second = ListSink(publish_max=1), ListSink()
    messages, free = [order(subject="k") for _ in range(4)], order(subject="free")
    with db.transaction():
        for message in messages:
            publish(db, message)
    with Gate("relay.taken") as gate, relaying(background, dsn, first, gate, lanes=1):
        gate.wait()
        with db.transaction():
            publish(db, free)
        other = relaying(background, dsn, second)
        with other if statements is None else relaying_weakened(background, dsn, second, statements):
            until(lambda: free.id in second.ids)
            overtaken = [message.id for message in second.messages if message.subject == "k"]
        gate.release()
        until(lambda: not rows.outbox(db))
    assert overtaken == []
    assert first.ids == [message.id for message in messages]


def check_a_foreign_commit_is_parked(opened: Opened, db: Conn, consumer: Consumer, message: Message, written: int) -> None:
    """The handler has ended our transaction by itself: parked, also from done, and turned away from then on."""
    worker = opened(consumer)
    assert worker.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books(
        state="parked", token=1, attempts=0, parked=["foreign commit"], effects=written
    )
    assert worker.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books(
        state="parked", token=1, attempts=0, parked=["foreign commit"], effects=written
    )


def check_a_swallowed_error_is_a_failed_attempt(opened: Opened, db: Conn, consumer: Consumer, message: Message) -> None:
    """The transaction is aborted inside, and COMMIT would answer ROLLBACK without an error: not done, not lost."""
    assert opened(consumer).deliver(delivery(message)).action == "release"
    state = "pending" if consumer.handlers["order.placed"].shape == "effectful" else None
    assert rows.books(db, message) == rows.Books(state=state, token=1 if state else None, attempts=1, parked=[], effects=0)


def _charging(provider: Provider, padding: str) -> Consumer:
    class Padded(Provider):
        def charge(self, request: Any, key: str) -> Any:
            return provider.charge(request, key) | {"id": "ch_second", "padding": padding}

    return charging(Padded())
