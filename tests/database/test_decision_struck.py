"""The session of somebody who decides is ended at each statement of the decision: all of it stands, or nothing does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import Provider, delivery, order
from tests.support.shop import charging

from onceward.consumer import OpenConsumer
from onceward.decisions import Decided, Decider, discard_parked, list_decisions, redrive, settle, settle_as_not_happened
from onceward.message import Message

Opened = Callable[..., OpenConsumer]
Db = psycopg.Connection[Any]
Decide = Callable[[Db, Message, Provider], Decided]


class Struck(psycopg.Cursor[Any]):
    """Its session is ended before the statement of this number is sent."""

    left = 0  # statements; for all cursors of the one connection under test
    dsn = ""

    def execute(self, *arguments: Any, **options: Any) -> Any:
        Struck.left -= 1
        if Struck.left == 0:
            with psycopg.connect(self.dsn, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [self.connection.info.backend_pid])
        return super().execute(*arguments, **options)


def _settle(conn: Db, message: Message, provider: Provider) -> Decided:
    (answer,) = provider.charges.values()
    return settle(conn, message.id, consumer=rows.CONSUMER, effect="charge", answer=answer)


def _did_not_happen(conn: Db, message: Message, _provider: Provider) -> Decided:
    return settle_as_not_happened(conn, message.id, consumer=rows.CONSUMER, effect="charge", force=True)


def _redrive(conn: Db, message: Message, _provider: Provider) -> Decided:
    return redrive(conn, message.id, consumer=rows.CONSUMER)


def _discard(conn: Db, message: Message, _provider: Provider) -> Decided:
    return discard_parked(conn, message.id, consumer=rows.CONSUMER, decider=Decider(reason="cancelled"))


# Whether the provider has charged, who decides how, and where the message is once it was delivered again.
DECISIONS: dict[str, tuple[bool, Decide, str]] = {
    "settle": (True, _settle, "done"),
    "did not happen": (False, _did_not_happen, "done"),
    "did not happen, which is wrong": (True, _did_not_happen, "done"),
    "redrive": (True, _redrive, "done"),
    "discard": (False, _discard, "discarded"),
}


def held(consumer: OpenConsumer, db: Db, provider: Provider, *, charged: bool) -> Message:
    """A message that is parked, because nobody knows whether its card was charged."""
    message = order()
    (provider.after if charged else provider.before).append(ConnectionError("cut"))
    consumer.deliver(delivery(message))
    rows.age_intents(db, message, timedelta(hours=25))
    looks, provider.find = provider.find, lambda *_: None  # type: ignore[method-assign]
    consumer.deliver(delivery(message, times=2))
    provider.find = looks  # type: ignore[method-assign]
    assert [row.reason for row in rows.parked(db)] == ["unknown"]
    return message


@pytest.mark.parametrize("what", DECISIONS)
def test_a_decision_that_is_struck_at_any_statement_can_be_made_again(what: str, opened: Opened, db: Db, dsn: str) -> None:
    charged, decide, state = DECISIONS[what]
    Struck.dsn = dsn
    for number in count(1):
        provider = Provider()
        with opened(charging(provider, lookup=True)) as consumer:
            message = held(consumer, db, provider, charged=charged)
            before = (rows.intents(db, message), rows.inbox_row(db, message), len(rows.outbox(db)))
            Struck.left = number
            with psycopg.connect(dsn, autocommit=True, cursor_factory=Struck) as conn:
                try:
                    assert decide(conn, message, provider).stands
                except psycopg.OperationalError:
                    assert (rows.intents(db, message), rows.inbox_row(db, message), len(rows.outbox(db))) == before
                    assert list_decisions(db, message_id=message.id) == []
                    assert decide(db, message, provider).stands, "another can decide"
            assert not decide(db, message, provider).stands, "it is decided"
            assert len(list_decisions(db, message_id=message.id)) == 1
            consumer.deliver(delivery(message, times=3))
            assert rows.state(db, message) == state
            assert len(provider.charges) == (state == "done"), "charged once, under whatever key"
        if Struck.left > 0:
            break
    assert number > 3, "a decision has several statements, and each was struck"
