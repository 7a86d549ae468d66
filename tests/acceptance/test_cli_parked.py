"""`onceward parked`, black-box: what is parked is shown, and sent again where that is safe."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import onceward, refused
from tests.support import rows
from tests.support.deliveries import delivery, order, order_aged
from tests.support.shop import effectful, transactional

from onceward.errors import EffectRefused, Reject
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1

Db = psycopg.Connection[Any]


def reject(_message: Message, _given: Any) -> None:
    raise Reject("no such\x1b[31m account")


def park(dsn: str, message: Message, handler: Any = reject) -> Message:
    """Delivered to a consumer that parks it."""
    with transactional(handler).open(dsn) as opened:
        opened.deliver(delivery(message))
    return message


def shown(dsn: str, *arguments: str) -> Any:
    done = onceward("parked", *arguments, "--database", dsn, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


# ---- list ------------------------------------------------------------------------------------------------------------


def test_an_empty_list_is_good_news(dsn: str) -> None:
    done = onceward("parked", "list", "--database", dsn)
    assert (done.returncode, done.stdout) == (0, "nothing is parked\n")
    assert shown(dsn, "list") == []


def test_the_list_is_a_table_with_the_reason_and_without_what_would_steer_a_terminal(dsn: str) -> None:
    message = park(dsn, order(subject="o-1"))
    done = onceward("parked", "list", "--database", dsn)
    assert done.returncode == 0
    title, line = done.stdout.splitlines()
    assert title.split() == ["PARKED", "AT", "CONSUMER", "ID", "TYPE", "REASON", "TRIES", "DETAIL"]
    assert all(word in line for word in (message.id, rows.CONSUMER, "order.placed", "rejected", "no such\\x1b[31m account"))
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("setting", ["datestyle TO 'German'", "timezone TO 'Asia/Tokyo'"])
def test_another_datestyle_or_timezone_of_the_database_changes_nothing(setting: str, dsn: str, db: Db) -> None:
    message = park(dsn, order())
    before = onceward("parked", "show", message.id, "--database", dsn).stdout, shown(dsn, "list")
    db.execute(f"ALTER DATABASE {db.info.dbname} SET {setting}".encode())
    assert (onceward("parked", "show", message.id, "--database", dsn).stdout, shown(dsn, "list")) == before


def test_the_list_as_json_is_newest_first_bounded_and_of_one_consumer(dsn: str) -> None:
    messages = [park(dsn, order()) for _ in range(3)]
    listed = shown(dsn, "list", "--limit", "2")
    assert [entry["message_id"] for entry in listed] == [messages[2].id, messages[1].id]
    assert {"consumer", "message_id", "reason", "detail", "attempts", "parked_at", "body_bytes"} <= set(listed[0])
    assert shown(dsn, "list", "--consumer", "another") == []
    assert "may be more" in onceward("parked", "list", "--limit", "2", "--database", dsn).stdout


# ---- show ------------------------------------------------------------------------------------------------------------


def test_a_message_is_shown_with_its_body_decoded(dsn: str) -> None:
    message = park(dsn, order({"amount": 100, "name": "Zoë"}))
    done = onceward("parked", "show", message.id.upper(), "--database", dsn)
    assert done.returncode == 0
    assert '"name": "Zoë"' in done.stdout
    assert f"id: {message.id}" in done.stdout
    (entry,) = shown(dsn, "show", message.id)
    assert (entry["body"], entry["body_cut"]) == ({"amount": 100, "name": "Zoë"}, False)


@pytest.mark.parametrize(
    ("body", "text"), [(b"no json", "no json"), (b"\xff\xfe", "shown in hex) fffe"), (b"\x1b[2Jx", "\\x1b[2Jx")]
)
def test_a_body_that_is_not_json_is_shown_as_it_is(dsn: str, body: bytes, text: str) -> None:
    message = park(dsn, Message(type="order.placed", body=body))
    assert text in onceward("parked", "show", message.id, "--database", dsn).stdout
    (entry,) = shown(dsn, "show", message.id)
    assert base64.b64decode(entry["body_base64"]) == body


@pytest.mark.parametrize(
    "body", [b'"' + b"x" * 100_000 + b'"', b"x" * 100_000, b"\xff" * 100_000], ids=["json", "text", "bytes"]
)
def test_a_long_body_is_cut_and_said_so(dsn: str, body: bytes) -> None:
    message = park(dsn, Message(type="order.placed", body=body))
    done = onceward("parked", "show", message.id, "--database", dsn)
    assert len(done.stdout) < 6_000
    assert "(cut: " in done.stdout
    assert f"{len(body)} bytes" in done.stdout
    (entry,) = shown(dsn, "show", message.id)
    assert (entry["body_cut"], entry["body_bytes"], len(entry["body_base64"])) == (True, len(body), 5464)


def test_the_effects_of_a_message_are_shown(dsn: str) -> None:
    def charge_and_reject(_message: Message, once: Once) -> None:
        once.effect("charge", lambda _request, key: {"id": "ch_1", "key": key}, request={"amount": 1}, provider=STRIPE_V1)
        raise Reject("after all")

    message = order()
    with effectful(charge_and_reject).open(dsn) as opened:
        opened.deliver(delivery(message))
    assert "charge: done, key ow1:" in onceward("parked", "show", message.id, "--database", dsn).stdout
    (entry,) = shown(dsn, "show", message.id)
    (intent,) = entry["intents"]
    assert (intent["name"], intent["state"], intent["answer"]["id"]) == ("charge", "done", "ch_1")


def test_what_is_not_there_is_not_found(dsn: str) -> None:
    for verb in ("show", "redrive"):
        done = onceward("parked", verb, "no-such-id", "--database", dsn)
        assert done.returncode == 1
        assert "nothing is parked" in done.stderr


# ---- redrive ---------------------------------------------------------------------------------------------------------


def test_a_redrive_of_a_refused_message_says_what_will_happen(dsn: str) -> None:
    """Its refusal is recorded: without that sentence, a person would redrive it in a circle."""

    def decline(_request: Any, _key: str) -> None:
        raise EffectRefused({"code": "card_declined"})

    def charge(_message: Message, once: Once) -> None:
        once.effect("charge", decline, request={"amount": 1}, provider=STRIPE_V1)

    first, second = order(), order()
    with effectful(charge).open(dsn) as opened:
        for message in (first, second):
            opened.deliver(delivery(message))
    done = onceward("parked", "redrive", first.id, "--database", dsn)
    assert done.returncode == 0
    assert "its provider refused 'charge'" in done.stdout
    assert "`EffectRefused` again" in done.stdout
    assert "'charge'" in shown(dsn, "redrive", second.id)["expect"]


def test_a_redriven_message_is_pending_again_and_in_the_outbox_under_its_own_id(dsn: str, db: Db) -> None:
    message = park(dsn, order(subject="o-1"))
    done = onceward("parked", "redrive", message.id, "--database", dsn)
    assert done.returncode == 0, done
    assert rows.books(db, message) == ("pending", 2, 0, [], 0)
    (row,) = rows.outbox(db)
    assert (row.id, row.type, row.aggregateid, bytes(row.payload)) == (message.id, message.type, "o-1", message.body)
    with transactional().open(dsn) as opened:
        opened.deliver(delivery(message))
        opened.deliver(delivery(message))
    assert rows.books(db, message) == ("done", 3, 0, [], 1)


def test_an_untimed_id_is_listed_shown_and_redriven_as_it_is_written(dsn: str, db: Db) -> None:
    message = order(id="Evt-\u00c4 7")
    with transactional(reject, untimed_ids=True).open(dsn) as opened:
        opened.deliver(delivery(message))
    assert [entry["message_id"] for entry in (*shown(dsn, "list"), *shown(dsn, "show", message.id))] == [message.id] * 2
    half = onceward("parked", "redrive", "Evt", "--database", dsn)
    assert half.returncode != 0
    assert message.id in half.stderr
    assert onceward("parked", "redrive", message.id, "--database", dsn).returncode == 0
    assert [row.id for row in rows.outbox(db)] == [message.id]
    assert [entry["message_id"] for entry in shown(dsn, "decisions", message.id)] == [message.id]


def test_a_second_redrive_finds_nothing(dsn: str) -> None:
    message = park(dsn, order())
    first = shown(dsn, "redrive", message.id)
    assert first == {
        "consumer": rows.CONSUMER, "message_id": message.id, "token": 2, "refused": "", "expect": "", "redriven": True,
        "decision": "redrive", "decided": True,
    }  # fmt: skip
    again = onceward("parked", "redrive", message.id, "--database", dsn, "--json")
    assert again.returncode == 1
    outcome = json.loads(again.stdout)
    assert outcome["redriven"] is False
    assert re.fullmatch(
        r"nothing is parked there under this id: .+ decided 'redrive' for payments at .+ UTC", outcome["refused"]
    )


def test_what_has_no_inbox_row_is_refused_with_the_reason(dsn: str, db: Db) -> None:
    message = park(dsn, order_aged(db, 40 * 86_400))
    done = onceward("parked", "redrive", message.id, "--database", dsn)
    assert done.returncode == 1
    assert "outside window" in done.stderr
    assert "without an inbox row" in done.stderr
    assert rows.outbox(db) == []
    assert [row.reason for row in rows.parked(db)] == ["outside window"]


def test_the_other_body_of_an_id_is_refused_and_the_first_may_go(dsn: str, db: Db) -> None:
    message = park(dsn, order({"amount": 1}))
    other = park(dsn, order({"amount": 2}, id=message.id))
    assert [entry["reason"] for entry in shown(dsn, "show", message.id)] == ["rejected", "conflict"]
    fingerprint = other.fingerprint().hex()
    done = onceward("parked", "redrive", message.id, "--fingerprint", fingerprint[:12], "--database", dsn)
    assert (done.returncode, "another payload" in done.stderr) == (1, True)
    assert shown(dsn, "redrive", message.id)["redriven"]
    assert [bytes(row.payload) for row in rows.outbox(db)] == [message.body]


def test_what_its_handler_committed_itself_is_redriven_only_by_who_has_looked(dsn: str, db: Db) -> None:
    def commit(message: Message, tx: Db) -> None:
        rows.write_effect(tx, message)
        tx.execute("COMMIT")

    message = park(dsn, order(), commit)
    done = onceward("parked", "redrive", message.id, "--database", dsn)
    assert (done.returncode, "--checked" in done.stderr, rows.outbox(db)) == (1, True, [])
    assert onceward("parked", "redrive", message.id, "--checked", "--database", dsn).returncode == 0
    assert rows.state(db, message) == "pending"


def test_an_id_that_is_parked_for_several_consumers_needs_a_name(dsn: str, db: Db) -> None:
    message = park(dsn, order())
    db.execute("INSERT INTO onceward.parked SELECT 'another', message_id, fingerprint, reason, detail, attempts, source,"
               " headers, body FROM onceward.parked")  # fmt: skip
    refused(onceward("parked", "redrive", message.id, "--database", dsn), "--consumer another")
    done = onceward("parked", "redrive", message.id, "--database", dsn, "--consumer", rows.CONSUMER)
    assert done.returncode == 0, done
