"""`examples/second_door`: runs as it says, holds what it promises, and is what `docs/second-door.md` shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import SECONDS_MAX, environment
from tests.support.rows import scalar

from onceward import IntentResult, LeaseLost, Message, RecordResult, TakeResult
from second_door import jobs
from second_door.__main__ import place, prepare, send_twice
from second_door.card import CardProvider
from second_door.handlers import CHARGES, INTENTS, ask
from second_door.loop import DELIVERIES_MAX, run, work_once

Db = psycopg.Connection[Any]
EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = (Path(__file__).parents[2] / "docs" / "second-door.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(db: Db) -> Db:
    prepare(db)
    return db


def visible(conn: Db) -> None:
    """As if the time had passed that jobs are hidden for."""
    conn.execute("UPDATE jobs SET visible_at = clock_timestamp()")


def lapse(conn: Db) -> None:
    """As if the time had passed that claims are held for."""
    conn.execute("UPDATE onceward.inbox SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'pending'")


def queued(conn: Db, dsn: str, amount: int = 100) -> str:
    """An order whose message is in the queue, twice."""
    order_id = place(conn, amount)
    send_twice(conn, dsn)
    return order_id


def order(conn: Db, order_id: str) -> tuple[str, str | None, int]:
    """(status, charge, balance)."""
    row = conn.execute(
        "SELECT status, charge_id, balance FROM orders JOIN accounts ON order_id = id WHERE id = %s", (order_id,)
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def dead_letters(conn: Db) -> list[str]:
    return [row[0] for row in conn.execute("SELECT reason FROM dead_letters ORDER BY job_id")]


class Failing(CardProvider):
    """Charges, and then its answer is lost; for as long as `failures` last."""

    def __init__(self, failures: int = 1) -> None:
        super().__init__()
        self.failures = failures

    def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        answer = super().charge(request, key)
        if self.failures:
            self.failures -= 1
            raise TimeoutError("no answer")
        return answer


@pytest.mark.parametrize("program", ["second_door", "second_door_async"])
def test_the_program_runs_as_its_page_says(program: str, empty_dsn: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, "--database", empty_dsn, "--orders", "3"],
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False, cwd=EXAMPLES, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "3 orders, 12 deliveries: every message came twice\n3 orders are paid, 3 cards were charged, 300 is booked\n"
    )
    assert done.stdout in PAGE


def test_an_order_is_charged_and_booked_once_however_often_its_messages_come(shop: Db, dsn: str) -> None:
    card, order_id = CardProvider(), queued(shop, dsn)
    assert run(shop, card, until_empty=True) == 2
    send_twice(shop, dsn)
    assert run(shop, card, until_empty=True) == 2
    assert order(shop, order_id) == ("paid", "ch_1", 100)
    assert card.requests == 1


def test_a_call_whose_answer_was_lost_is_asked_again_under_its_key(shop: Db, dsn: str) -> None:
    card, order_id = Failing(), queued(shop, dsn)
    run(shop, card, until_empty=True)
    visible(shop)
    run(shop, card, until_empty=True)
    assert order(shop, order_id)[:2] == ("paid", "ch_1")
    assert (card.requests, len(card.charges)) == (2, 1)


def test_a_crash_between_the_answer_and_the_finish_costs_no_second_call(shop: Db, dsn: str) -> None:
    """The answer is recorded; the redelivery waits for the lease, and gets the answer from its row."""
    card, order_id = CardProvider(), queued(shop, dsn)
    job = jobs.receive(shop)
    assert job is not None
    message = Message.from_wire(job.headers, job.body)
    take = CHARGES.claim(shop, message)
    ask(shop, message, take, card)
    run(shop, card, until_empty=True)
    assert order(shop, order_id)[0] == "placed", "the lease is alive"
    lapse(shop)
    visible(shop)
    run(shop, card, until_empty=True)
    assert (order(shop, order_id)[:2], card.requests) == (("paid", "ch_1"), 1)


def test_a_card_that_was_declined_is_not_asked_again(shop: Db, dsn: str) -> None:
    card, order_id = CardProvider(), queued(shop, dsn, amount=99_999)
    run(shop, card, until_empty=True)
    assert (order(shop, order_id), card.requests) == (("declined", None, 0), 1)
    assert scalar(shop, "SELECT count(*) FROM onceward.outbox") == 0


@pytest.mark.parametrize("charged", [True, False])
def test_past_the_keys_window_the_charge_is_looked_up_and_never_made(charged: bool, shop: Db, dsn: str) -> None:
    card, order_id = Failing(), queued(shop, dsn)
    work_once(shop, card)
    if not charged:
        card.charges.clear()
    shop.execute("UPDATE onceward.intents SET started_at = clock_timestamp() - interval '25 hours'")
    visible(shop)
    run(shop, card, until_empty=True)
    assert card.requests == 1
    if charged:
        assert (order(shop, order_id)[:2], dead_letters(shop)) == (("paid", "ch_1"), [])
    else:
        reasons = ["nobody knows whether the card was charged: look it up, and record the answer"] * 2
        assert (order(shop, order_id)[0], dead_letters(shop)) == ("placed", reasons)


def test_what_was_set_aside_goes_on_once_a_person_has_recorded_the_answer(shop: Db, dsn: str) -> None:
    card, order_id = Failing(), queued(shop, dsn)
    work_once(shop, card)
    card.charges.clear()
    shop.execute("UPDATE onceward.intents SET started_at = clock_timestamp() - interval '25 hours'")
    visible(shop)
    run(shop, card, until_empty=True)
    message = Message.from_wire(*shop.execute("SELECT headers, body FROM dead_letters").fetchall()[0])
    INTENTS.record(shop, message, n=1, answer={"id": "ch_by_hand"})
    shop.execute("INSERT INTO jobs (headers, body) SELECT headers, body FROM dead_letters")
    run(shop, card, until_empty=True)
    assert (order(shop, order_id)[:2], card.requests) == (("paid", "ch_by_hand"), 1)


def test_a_deploy_that_changes_the_request_charges_nothing_a_second_time(shop: Db, dsn: str) -> None:
    card, _ = Failing(), queued(shop, dsn)
    work_once(shop, card)
    shop.execute("UPDATE onceward.intents SET request_fingerprint = '\\x00'")
    visible(shop)
    run(shop, card, until_empty=True)
    assert card.requests == 1
    assert all("another request is recorded there" in reason for reason in dead_letters(shop))
    assert len(dead_letters(shop)) == 2


def test_a_worker_that_was_taken_over_writes_nothing_and_leaves_its_job(shop: Db, dsn: str) -> None:
    class Slow(CardProvider):
        """Another worker takes the message over while this one waits for its answer."""

        def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
            answer = super().charge(request, key)
            lapse(shop)
            assert CHARGES.claim(shop, message).result is TakeResult.TAKEN
            return answer

    card, order_id = Slow(), queued(shop, dsn)
    headers, body = shop.execute("SELECT headers, body FROM jobs").fetchall()[0]
    message = Message.from_wire(headers, body)
    work_once(shop, card)
    assert order(shop, order_id)[0] == "placed"
    assert scalar(shop, "SELECT count(*) FROM jobs") == 2


def test_two_answers_to_one_effect_are_set_aside(shop: Db, dsn: str) -> None:
    class Forgetful(CardProvider):
        """Forgets the key while it is asked: another worker is given another charge."""

        def charge(self, request: dict[str, Any], key: str) -> dict[str, Any]:
            answer = super().charge(request, key)
            other = INTENTS.record(shop, message, n=1, answer={"id": "ch_other"})
            assert other.result is RecordResult.RECORDED
            return answer

    card, order_id = Forgetful(), queued(shop, dsn)
    headers, body = shop.execute("SELECT headers, body FROM jobs").fetchall()[0]
    message = Message.from_wire(headers, body)
    work_once(shop, card)
    [reason] = dead_letters(shop)
    assert "ch_1" in reason
    assert "ch_other" in reason
    assert order(shop, order_id)[0] == "placed"


def test_another_body_under_a_known_id_and_what_is_no_message_are_set_aside(shop: Db, dsn: str) -> None:
    queued(shop, dsn)
    shop.execute('UPDATE jobs SET body = \'{"id": "else", "amount": 1}\' WHERE id = (SELECT max(id) FROM jobs)')
    shop.execute("INSERT INTO jobs (headers, body) VALUES ('{}', '')")
    run(shop, CardProvider(), until_empty=True)
    conflict, malformed = dead_letters(shop)
    assert conflict.startswith("conflict: ")
    assert malformed == "envelope without id and type"


def test_what_fails_again_and_again_is_set_aside(shop: Db, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    card = Failing(failures=2 * DELIVERIES_MAX)
    queued(shop, dsn)
    for _ in range(2 * DELIVERIES_MAX):
        assert work_once(shop, card)
        visible(shop)
    assert not work_once(shop, card)
    assert dead_letters(shop) == [f"failed {DELIVERIES_MAX} times: no answer"] * 2
    assert len(card.charges) == 1


def test_an_intent_under_a_lapsed_claim_says_that_the_lease_is_lost(shop: Db, dsn: str) -> None:
    queued(shop, dsn)
    job = jobs.receive(shop)
    assert job is not None
    message = Message.from_wire(job.headers, job.body)
    take = CHARGES.claim(shop, message)
    lapse(shop)
    with pytest.raises(LeaseLost):
        ask(shop, message, take, CardProvider())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_each_block_of_the_page_is_the_examples_own_code(block: str) -> None:
    sources = [file.read_text(encoding="utf-8") for file in EXAMPLES.glob("second_door*/*.py")]
    assert any(block.strip() in source for source in sources)


def test_the_page_names_every_result() -> None:
    for kind in (TakeResult, IntentResult, RecordResult):
        assert [member.name for member in kind if f"`{member.name}`" not in PAGE] == []
