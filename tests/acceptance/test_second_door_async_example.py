"""`examples/second_door_async`: several workers on one event loop, and what is left when a task is cancelled in a call."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from tests.acceptance.test_second_door_example import Failing, dead_letters, lapse, order, queued, visible

from onceward import Message, TakeResult
from second_door.__main__ import prepare, send_twice
from second_door.card import CardProvider
from second_door_async.handlers import CHARGES, AsyncCards
from second_door_async.loop import run

Db = psycopg.Connection[Any]


@pytest.fixture
def shop(db: Db) -> Db:
    prepare(db)
    return db


def run_all(dsn: str, card: CardProvider) -> int:
    return asyncio.run(run(dsn, AsyncCards(card), until_empty=True))


def test_orders_are_charged_and_booked_once_by_several_workers_at_once(shop: Db, dsn: str) -> None:
    card = CardProvider()
    placed = [queued(shop, dsn) for _ in range(5)]
    run_all(dsn, card)
    send_twice(shop, dsn)
    run_all(dsn, card)
    assert [order(shop, one)[0::2] for one in placed] == [("paid", 100)] * 5
    assert (card.requests, len(card.charges), dead_letters(shop)) == (5, 5, [])


def test_a_call_whose_answer_was_lost_is_asked_again_under_its_key(shop: Db, dsn: str) -> None:
    card, order_id = Failing(), queued(shop, dsn)
    for _ in range(2):
        run_all(dsn, card)
        visible(shop)
    assert order(shop, order_id)[:2] == ("paid", "ch_1")
    assert (card.requests, len(card.charges)) == (2, 1)


def test_a_card_that_was_declined_is_not_asked_again(shop: Db, dsn: str) -> None:
    card, order_id = CardProvider(), queued(shop, dsn, amount=99_999)
    run_all(dsn, card)
    assert (order(shop, order_id), card.requests) == (("declined", None, 0), 1)


def test_a_task_that_is_cancelled_in_its_call_is_a_crash_that_the_redelivery_repairs(shop: Db, dsn: str) -> None:
    class Silent(AsyncCards):
        """Charges, and never answers."""

        async def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
            await super().charge(request, key)
            charged.set()
            return await asyncio.Future()

    async def cancel_once_charged() -> None:
        working = asyncio.create_task(run(dsn, Silent(card), workers=1))
        await charged.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    charged, card, order_id = asyncio.Event(), CardProvider(), queued(shop, dsn)
    asyncio.run(cancel_once_charged())
    assert order(shop, order_id)[0] == "placed"
    lapse(shop)
    visible(shop)
    run_all(dsn, card)
    assert (order(shop, order_id)[:2], card.requests, len(card.charges)) == (("paid", "ch_1"), 2, 1)


def test_a_worker_that_was_taken_over_writes_nothing(shop: Db, dsn: str) -> None:
    class Slow(AsyncCards):
        """Another worker takes the message over while this one waits for its answer."""

        async def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
            answer = await super().charge(request, key)
            lapse(shop)
            headers, body = shop.execute("SELECT headers, body FROM jobs").fetchall()[0]
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                taken = await CHARGES.claim(other, Message.from_wire(headers, body))
            assert taken.result is TakeResult.TAKEN
            return answer

    order_id = queued(shop, dsn)
    asyncio.run(run(dsn, Slow(CardProvider()), workers=1, until_empty=True))
    assert order(shop, order_id)[0] == "placed"
