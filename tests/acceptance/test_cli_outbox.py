"""`onceward outbox`, black-box: what is not sent is shown, sent again, or given up with a reason."""

from __future__ import annotations

import getpass
import json
import os
import pty
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import SECONDS_MAX, environment, onceward, refused
from tests.support import rows
from tests.support.deliveries import order
from tests.support.queues import ListSink, relaying
from tests.support.waiting import Background, until

from onceward.message import Message
from onceward.outbox import publish
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
WHY = ("--reason", "sent by hand")


def put(db: Db, *messages: Message) -> list[int]:
    """Their positions in the outbox."""
    with db.transaction():
        for message in messages:
            publish(db, message)
    return [row.position for row in rows.outbox(db)][-len(messages) :]


def set_aside(dsn: str, db: Db, background: Background, *messages: Message) -> list[int]:
    """These rows failed once, and their relay sets aside at once."""
    positions, sink = put(db, *messages), ListSink()
    sink.refuse |= {message.id for message in messages}
    with relaying(background, dsn, sink, attempts_max=1):
        until(lambda: all(row.set_aside_at for row in rows.outbox(db) if row.position in positions))
    return positions


def shown(dsn: str, *arguments: str) -> Any:
    done = onceward("outbox", *arguments, "--database", dsn, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def decisions(db: Db) -> list[tuple[Any, ...]]:
    return db.execute("SELECT decision, position, reason, decided_by FROM onceward.decisions ORDER BY id").fetchall()


# ---- list and show ---------------------------------------------------------------------------------------------------


def test_an_empty_outbox_is_good_news(dsn: str) -> None:
    assert onceward("outbox", "list", "--database", dsn).stdout == "the outbox is empty\n"
    assert onceward("outbox", "list", "--set-aside", "--database", dsn).stdout == "no such rows are in the outbox\n"
    assert shown(dsn, "list") == []


def test_the_list_says_what_fails_and_why_and_what_is_set_aside(dsn: str, db: Db, background: Background) -> None:
    aside = order(subject="o-1")
    [position] = set_aside(dsn, db, background, aside)
    db.execute("UPDATE onceward.outbox SET aggregateid = 'o-1' || chr(27) || '[31m'")  # by SQL: `publish` lets none through
    put(db, order(subject="o-2"), order(subject="o-2"))
    done = onceward("outbox", "list", "--database", dsn)
    title, first, second, third = done.stdout.splitlines()
    assert title.split() == [
        "POSITION", "ID", "TYPE", "SUBJECT", "AGE", "TRIES", "NEXT", "TRY", "SET", "ASIDE", "BEHIND", "ERROR",
    ]  # fmt: skip
    assert all(word in first for word in (str(position), aside.id, "o-1\\x1b", "never", "TransportError: refused"))
    assert [line.split()[-2] for line in (second, third)] == ["1", "0"]
    assert "\x1b" not in done.stdout
    assert [entry["position"] for entry in shown(dsn, "list", "--set-aside")] == [position]
    assert shown(dsn, "list", "--failing") == []
    assert "may be more" in onceward("outbox", "list", "--limit", "2", "--database", dsn).stdout
    [entry] = shown(dsn, "list", "--set-aside", "--failing")
    assert (entry["state"], entry["attempts"], entry["behind"], entry["retry_at"]) == ("set aside", 1, 0, None)


def test_a_row_is_shown_by_its_position_or_its_id_with_what_to_do(dsn: str, db: Db, background: Background) -> None:
    message = order({"amount": 7}, subject="o-1")
    [position] = set_aside(dsn, db, background, message)
    for place in (str(position), message.id):
        text = onceward("outbox", "show", place, "--database", dsn).stdout
        assert all(part in text for part in (message.id, '"amount": 7', "refused", f"`onceward outbox retry {position}`"))
        [entry] = shown(dsn, "show", place)
        assert (entry["body"], entry["body_cut"], entry["error"]) == ({"amount": 7}, False, "TransportError: refused")


@pytest.mark.parametrize("verb", ["show", "retry", "discard"])
def test_what_is_not_there_and_what_is_half_typed_are_not_found(verb: str, dsn: str, db: Db) -> None:
    message = order()
    put(db, message)
    more = WHY if verb == "discard" else ()
    done = onceward("outbox", verb, "4711", *more, "--database", dsn)
    assert (done.returncode, "nothing is in the outbox under 4711" in done.stderr) == (1, True)
    done = onceward("outbox", verb, message.id[:-2], *more, "--database", dsn)
    assert (done.returncode, message.id in done.stderr) == (1, True)
    assert (len(rows.outbox(db)), decisions(db)) == (1, [])


# ---- retry -----------------------------------------------------------------------------------------------------------


def test_a_retried_row_is_sent_under_its_own_id(dsn: str, db: Db, background: Background) -> None:
    message = order(subject="o-1")
    [position] = set_aside(dsn, db, background, message)
    done = onceward("outbox", "retry", str(position), "--database", dsn)
    assert done.returncode == 0, done
    assert "it comes late" in done.stdout
    assert decisions(db) == [("retry", position, "", getpass.getuser())]
    pgmq.create_queue(db, "orders")
    assert onceward("relay", "--queues", "orders", "--until-empty", "--database", dsn).returncode == 0
    assert rows.scalar(db, "SELECT headers->>'id' FROM pgmq.q_orders") == message.id


def test_all_that_is_set_aside_is_retried(dsn: str, db: Db, background: Background) -> None:
    positions = set_aside(dsn, db, background, order(), order())
    outcomes = shown(dsn, "retry", "--all-set-aside", "--by", "ann", "--reason", "the queue is there")
    assert [(outcome["position"], outcome["decided"], outcome["refused"]) for outcome in outcomes] == [
        (position, True, "") for position in positions
    ]
    assert decisions(db) == [("retry", position, "the queue is there", "ann") for position in positions]
    assert onceward("outbox", "retry", "--all-set-aside", "--database", dsn).stdout == "nothing is set aside\n"
    assert shown(dsn, "retry", "--all-set-aside") == []


def test_a_retry_of_what_has_not_failed_is_refused_and_one_wrong_word_decides_nothing(
    dsn: str, db: Db, background: Background
) -> None:
    [failed] = set_aside(dsn, db, background, order())
    [waiting] = put(db, order())
    assert onceward("outbox", "retry", str(failed), "4711", "--database", dsn).returncode == 1
    assert decisions(db) == []
    done = onceward("outbox", "retry", str(waiting), str(failed), str(failed), "--database", dsn)
    assert (done.returncode, "has not failed" in done.stderr, len(decisions(db))) == (1, True, 1)


def test_a_retry_needs_rows_or_all_of_them(dsn: str) -> None:
    refused(onceward("outbox", "retry", "--database", dsn), "--all-set-aside")
    refused(onceward("outbox", "retry", "1", "--all-set-aside", "--database", dsn), "one of the two")


# ---- discard ---------------------------------------------------------------------------------------------------------


def test_a_discarded_row_is_gone_and_kept_with_its_reason(dsn: str, db: Db, background: Background) -> None:
    message = order()
    [position] = set_aside(dsn, db, background, message)
    done = onceward("outbox", "discard", message.id, *WHY, "--by", "ann", "--yes", "--database", dsn)
    assert done.returncode == 0, done
    assert "it may have been sent although no confirmation came" in done.stdout
    assert (rows.outbox(db), decisions(db)) == ([], [("discard", position, "sent by hand", "ann")])
    again = onceward("outbox", "discard", str(position), *WHY, "--yes", "--database", dsn)
    assert (again.returncode, "ann discarded it (sent by hand)" in again.stderr) == (1, True)


def test_an_id_that_is_there_twice_needs_a_position(dsn: str, db: Db) -> None:
    message = order()
    first, second = put(db, message, message)
    done = onceward("outbox", "discard", message.id, *WHY, "--yes", "--database", dsn)
    refused(done, "several rows", f"{first}, {second}")
    assert onceward("outbox", "discard", str(second), *WHY, "--yes", "--database", dsn).returncode == 0
    assert [row.position for row in rows.outbox(db)] == [first]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--yes",), "--reason"),
        (("--yes", "--reason", " "), "give the reason"),
        (("--yes", *WHY, "--by", ""), "name who decides"),
        (WHY, "--yes"),
    ],
)
def test_a_discard_that_lacks_something_is_refused(arguments: tuple[str, ...], word: str, dsn: str, db: Db) -> None:
    [position] = put(db, order())
    refused(onceward("outbox", "discard", str(position), *arguments, "--database", dsn), word)
    assert (len(rows.outbox(db)), decisions(db)) == (1, [])


@pytest.mark.parametrize(("typed", "code"), [("discard", 0), ("yes", 1), ("", 1)])
def test_at_a_terminal_the_word_is_asked_for(typed: str, code: int, dsn: str, db: Db) -> None:
    [position] = put(db, order())
    ours, theirs = pty.openpty()
    os.write(ours, f"{typed}\n".encode())
    command = [sys.executable, "-m", "onceward", "outbox", "discard", str(position), *WHY, "--database", dsn]
    done = subprocess.run(
        command, stdin=theirs, capture_output=True, text=True, timeout=SECONDS_MAX, check=False, env=environment()
    )
    assert (done.returncode, len(rows.outbox(db))) == (code, code), done
    assert "it may have been sent although no confirmation came" in done.stderr
    assert "type 'discard' to go on" in done.stderr


# ---- the relay, and status -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hold", "left"), [((), 1), (("--hold-subjects",), 2)])
def test_the_relay_sets_aside_after_its_bound_unless_subjects_must_hold(
    hold: tuple[str, ...], left: int, dsn: str, db: Db
) -> None:
    """The type of the first has no queue."""
    pgmq.create_queue(db, "orders")
    put(db, Message(type="order.odd", subject="o-1"), order(subject="o-1"))
    done = onceward(
        "relay", "--queues", "order.placed=orders", "--attempts-max", "1", *hold, "--until-empty", "--database", dsn
    )
    assert (done.returncode, len(rows.outbox(db))) == (1, left), done
    assert ("set aside and not tried again: run `onceward outbox list --set-aside`" in done.stderr) == (not hold)
    assert ("waits for a retry" in done.stderr) == bool(hold)


def status(dsn: str) -> Any:
    done = onceward("status", "--json", "--database", dsn)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def test_the_status_counts_what_waits_what_fails_and_what_needs_a_person(dsn: str, db: Db, background: Background) -> None:
    assert (status(dsn)["outbox"]["oldest_seconds"], status(dsn)["needs_person"]) == (None, False)
    assert onceward("status", "--strict", "--database", dsn).returncode == 0
    set_aside(dsn, db, background, order(), order())
    put(db, order(), order())
    shown(dsn, "retry", str(rows.outbox(db)[0].position))
    db.execute("UPDATE onceward.outbox SET attempts = 3 WHERE position = (SELECT max(position) FROM onceward.outbox)")
    now = status(dsn)
    assert {key: now["outbox"][key] for key in ("waiting", "failing", "set_aside")} == {
        "waiting": 2, "failing": 1, "set_aside": 1,
    }  # fmt: skip
    assert now["outbox"]["oldest_seconds"] >= 0
    assert now["decisions"] == [{"about": "outbox", "decision": "retry", "count": 1}]
    assert (now["parked"], now["needs_person"], now["schema"]) == ([], True, "onceward")
    text = onceward("status", "--strict", "--database", dsn)
    assert text.returncode == 1
    assert "2 waiting, 1 failing" in text.stdout
    assert "1 x retry (outbox)" in text.stdout


def test_the_status_counts_parked_messages_by_consumer_and_reason(dsn: str, db: Db) -> None:
    db.execute(
        "INSERT INTO onceward.parked (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)"
        " SELECT 'charges', n::text, '', CASE WHEN n < 3 THEN 'rejected' ELSE 'from the future' END, '', 0, 's', '{}', ''"
        " FROM generate_series(1, 3) AS n"
    )
    counts = [(entry["consumer"], entry["reason"], entry["count"]) for entry in status(dsn)["parked"]]
    assert counts == [("charges", "from the future", 1), ("charges", "rejected", 2)]
    text = onceward("status", "--database", dsn).stdout
    assert "parked       3" in text
    assert "partitions   made until 20" in text
