"""`onceward parked settle | discard | decisions`, black-box: refusals say what to do, and write nothing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import SECONDS_MAX, environment, onceward, refused
from tests.support import rows
from tests.support.decisions import PAST_THE_WINDOW, park_unknown, reasons, snapshot
from tests.support.deliveries import Provider, ProviderError, delivery, order
from tests.support.shop import charging, effectful, transactional
from tests.support.waiting import until_any_blocked

from onceward.consumer import OpenConsumer
from onceward.decisions import redrive
from onceward.errors import Reject
from onceward.message import Message
from onceward.provider import idempotency_key

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
ANSWER = '{"id": "ch_1"}'
# The module of somebody's service. What its provider knows is in a file, so that each test can say it.
SHOP = """
import json, pathlib
from onceward import Consumer, EffectRefused, STRIPE_V1

charges = Consumer("payments")
ledger = Consumer("ledger")
no_lookup = Consumer("payments")
nothing = object()

def call(request, key):
    raise AssertionError("a look-up never calls")

def look_up(request, key):
    known = json.loads(pathlib.Path("provider.json").read_text())
    if known.get("error"):
        raise ConnectionError(known["error"])
    if known.get("refused"):
        raise EffectRefused(known["refused"])
    return known.get(key)

@charges.effectful("order.placed")
def charge(message, once):
    once.effect("charge", call, request=message.json(), provider=STRIPE_V1, lookup=look_up)

@no_lookup.effectful("order.placed")
def charge_without(message, once):
    once.effect("charge", call, request=message.json(), provider=STRIPE_V1)

@ledger.transactional("order.placed")
def book(message, tx):
    pass
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def held(opened: Opened, db: Db) -> Message:
    """A message that is parked: nobody knows whether its charge happened."""
    message = order(subject="o-1")
    park_unknown(opened, db, message, Provider(), charged=False)
    return message


def key_of(message: Message, generation: int = 1) -> str:
    return idempotency_key(rows.CONSUMER, message.id, "charge", generation=generation)


def provider_knows(shop: Path, **known: object) -> None:
    (shop / "provider.json").write_text(json.dumps(known))


def parked(dsn: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return onceward("parked", *arguments, "--database", dsn, cwd=cwd)


def said_no(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1, and one line on standard error that says why and what to do."""
    assert (done.returncode, done.stdout) == (1, ""), done
    [line] = done.stderr.splitlines()
    assert [word for word in words if word not in line] == [], line


SETTLE = ("--effect", "charge", "--answer", ANSWER)
NOT_HAPPENED = ("--effect", "charge", "--did-not-happen", "--yes")
DISCARD = ("--reason", "the customer has cancelled")
DECISIONS: dict[str, tuple[str, ...]] = {
    "redrive": ("redrive",), "settle": ("settle", *SETTLE), "did not happen": ("settle", *NOT_HAPPENED),
    "discard": ("discard", *DISCARD),
}  # fmt: skip
every_decision = pytest.mark.parametrize("words", DECISIONS.values(), ids=DECISIONS)


# ---- what stands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "words"), DECISIONS.items(), ids=DECISIONS)
def test_a_decision_is_said_as_json_and_kept_with_who_and_why(
    kind: str, words: tuple[str, ...], held: Message, dsn: str
) -> None:
    verb, *rest = words
    why = () if verb == "discard" else ("--reason", "asked them")
    done = parked(dsn, verb, held.id, *rest, "--by", "ann", *why, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    keys = {"consumer", "message_id", "decision", "token", "expect", "refused", "decided"}
    assert set(made) == keys | ({"redriven"} if verb == "redrive" else set())
    assert (made["decision"], made["decided"], made["refused"], made["token"]) == (
        kind,
        True,
        "",
        0 if verb == "discard" else 3,
    )
    [kept] = json.loads(parked(dsn, "decisions", "--json").stdout)
    assert (kept["kind"], kept["decided_by"], kept["message_id"]) == (kind, "ann", held.id)
    assert kept["reason"] == ("the customer has cancelled" if verb == "discard" else "asked them")
    assert kept["was"]["reason"] == "unknown"
    line = parked(dsn, "decisions", held.id).stdout
    assert all(word in line for word in ("ann", kind, held.id, "payments", kept["reason"]))


def test_without_a_name_it_is_the_user_of_the_system(held: Message, dsn: str, db: Db) -> None:
    done = onceward("parked", "redrive", held.id, "--database", dsn, LOGNAME="carol")
    assert done.returncode == 0
    assert rows.scalar(db, "SELECT decided_by FROM onceward.decisions") == "carol"
    assert "carol  redrive  " in parked(dsn, "decisions").stdout


def test_a_settled_message_goes_on(held: Message, dsn: str, db: Db) -> None:
    done = parked(dsn, "settle", held.id, *SETTLE)
    assert (done.returncode, done.stdout) == (
        0, f"{held.id} goes on with 'charge' as answered (token 3); a relay sends it\n",
    )  # fmt: skip
    assert [intent.answer for intent in rows.intents(db, held)] == [{"id": "ch_1"}]


def test_a_settled_refusal_says_that_it_will_be_raised(held: Message, dsn: str) -> None:
    done = parked(dsn, "settle", held.id, "--effect", "charge", "--answer", '"no"', "--refused")
    assert "expect: its provider refused 'charge'" in done.stdout


def test_a_discard_says_what_it_does_not_undo(held: Message, dsn: str) -> None:
    done = parked(dsn, "discard", held.id, *DISCARD)
    assert "is discarded for payments; `onceward parked decisions` keeps it" in done.stdout
    assert "expect: nobody knows whether 'charge' happened" in done.stdout


def test_what_is_shown_says_what_happened_how_to_find_out_and_what_ends_it(held: Message, dsn: str) -> None:
    shown = parked(dsn, "show", held.id).stdout
    for words in (
        "happened     An effect may or may not",
        "find out     Ask the provider",
        "ends it      `settle --answer",
    ):
        assert words in shown
    assert f"charge: unknown, key {key_of(held)}" in shown


def test_the_keys_of_before_a_decision_are_shown(held: Message, dsn: str, db: Db, opened: Opened) -> None:
    for _ in range(2):
        assert parked(dsn, "settle", held.id, *NOT_HAPPENED).returncode == 0
        rows.age_intents(db, held, PAST_THE_WINDOW)
        opened(charging(Provider())).deliver(delivery(held))
    former = [key_of(held, 2), key_of(held, 1)]
    assert f"key {key_of(held, 3)}, before a decision {former[0]}, before a decision {former[1]}" in (
        parked(dsn, "show", held.id).stdout
    )
    [entry] = json.loads(parked(dsn, "show", held.id, "--json").stdout)
    assert entry["intents"][0]["former_keys"] == former


def test_the_decisions_of_one_consumer_are_not_hidden_by_those_of_another(held: Message, dsn: str, db: Db) -> None:
    assert parked(dsn, "decisions").stdout == "nothing was decided\n"
    parked(dsn, "redrive", held.id)
    db.execute("INSERT INTO onceward.decisions (about, decision, consumer, message_id, reason, decided_by, was)"
               " VALUES ('parked', 'redrive', 'ledger', 'x', '', 'bob', '{}')")  # fmt: skip
    assert held.id in parked(dsn, "decisions", "--consumer", "payments", "--limit", "1").stdout
    assert json.loads(parked(dsn, "decisions", held.id, "--consumer", "ledger", "--json").stdout) == []


def test_what_others_wrote_does_not_steer_the_terminal(held: Message, dsn: str) -> None:
    parked(dsn, "redrive", held.id, "--by", "a\x1b[2Jnn", "--reason", "x\x1b[31m\ny")
    printed = parked(dsn, "decisions").stdout
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 1


# ---- bad input ---------------------------------------------------------------------------------------------------------


@every_decision
def test_a_message_that_is_not_parked_is_refused(words: tuple[str, ...], dsn: str, db: Db) -> None:
    verb, *rest = words
    before = snapshot(db)
    said_no(parked(dsn, verb, order().id, *rest), "nothing was decided", "nothing is parked there under this id")
    assert snapshot(db) == before


@every_decision
def test_a_message_that_another_has_decided_about_says_who_did_what(
    words: tuple[str, ...], held: Message, dsn: str
) -> None:
    verb, *rest = words
    assert parked(dsn, "discard", held.id, *DISCARD, "--by", "ann").returncode == 0
    said_no(parked(dsn, verb, held.id, *rest), "ann decided 'discard' for payments at 20")
    said_no(parked(dsn, verb, held.id, *rest, "--consumer", "payments"), "ann decided 'discard' at 20")


def test_a_discard_while_another_redrives_is_refused(held: Message, dsn: str, db: Db) -> None:
    """It waits for the other's transaction, and then finds the message gone."""
    with psycopg.connect(dsn) as other:
        other.execute("SELECT 1")
        assert redrive(other, held.id, consumer=rows.CONSUMER).stands
        command = [sys.executable, "-m", "onceward", "parked", "discard", held.id, *DISCARD, "--database", dsn]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as waiting:
            until_any_blocked(db)
            other.commit()
            _, errors = waiting.communicate(timeout=SECONDS_MAX)
    assert waiting.returncode == 1
    assert "decided 'redrive' at" in errors
    assert (rows.state(db, held), len(rows.outbox(db))) == ("pending", 1)


@pytest.mark.parametrize("verb", ["settle", "did not happen"])
def test_an_effect_that_does_not_exist_is_named_with_those_that_do(verb: str, held: Message, dsn: str, db: Db) -> None:
    before = snapshot(db)
    rest = ("--answer", ANSWER) if verb == "settle" else ("--did-not-happen", "--yes")
    said_no(parked(dsn, "settle", held.id, "--effect", "charg", *rest), "no effect 'charg'", "'charge' (unknown)")
    assert snapshot(db) == before


@pytest.mark.parametrize("answer", ["", "ch_1", "{'id': 1}", "{", "NaN", "[Infinity]"])
def test_an_answer_that_is_not_json_is_refused(answer: str, held: Message, dsn: str, db: Db) -> None:
    before = snapshot(db)
    refused(parked(dsn, "settle", held.id, "--effect", "charge", "--answer", answer), "JSON")
    assert snapshot(db) == before


def test_an_answer_that_differs_from_the_recorded_one_is_refused(dsn: str, db: Db, opened: Opened) -> None:
    message, provider = order(), Provider()

    def lose(*_: Any) -> None:
        raise Reject("after the charge")

    consumer = charging(provider)
    original = consumer.handlers["order.placed"].call

    def charge_then_reject(message: Message, once: Any) -> None:
        original(message, _Ending(once, lose))

    opened(effectful(charge_then_reject)).deliver(delivery(message))
    assert reasons(db) == ["rejected"]
    before = snapshot(db)
    said_no(parked(dsn, "settle", message.id, "--effect", "charge", "--answer", '{"id": "ch_2"}'), "never replaced", "ch_1")
    said_no(parked(dsn, "settle", message.id, *NOT_HAPPENED, "--force"), "did happen", "redrive the message")
    assert snapshot(db) == before


class _Ending:
    """`once`, but whoever asks for the transaction is ended."""

    def __init__(self, once: Any, end: Callable[..., None]) -> None:
        self.effect, self.transaction = once.effect, end


@pytest.mark.parametrize("reason", ["", "  "])
@every_decision
def test_a_reason_that_is_empty_is_refused(words: tuple[str, ...], reason: str, held: Message, dsn: str, db: Db) -> None:
    before = snapshot(db)
    verb, *rest = words
    refused(parked(dsn, verb, held.id, *rest, "--reason", reason), "--reason is empty", "say in a few words why")
    assert snapshot(db) == before


def test_a_discard_without_a_reason_and_a_decider_without_a_name_are_refused(held: Message, dsn: str, db: Db) -> None:
    refused(parked(dsn, "discard", held.id), "--reason")
    refused(parked(dsn, "discard", held.id, *DISCARD, "--by", " "), "--by: name who decides")
    assert reasons(db) == ["unknown"]


@every_decision
def test_half_an_id_is_refused_with_the_whole_ones_that_it_may_be(
    words: tuple[str, ...], held: Message, dsn: str, db: Db
) -> None:
    verb, *rest = words
    for typed in (held.id[:8], held.id[:-1].upper(), ""):
        refused(parked(dsn, verb, typed, *rest), "is not a whole id; type one of", held.id)
    said_no(parked(dsn, verb, "0198", *rest), "nothing is parked")
    assert reasons(db) == ["unknown"]


def test_words_that_do_not_belong_together_are_refused(held: Message, dsn: str, db: Db) -> None:
    settle = ("settle", held.id, "--effect", "charge")
    refused(parked(dsn, *settle), "one of the arguments --answer --from-lookup --did-not-happen is required")
    refused(parked(dsn, *settle, "--answer", "1", "--did-not-happen"), "not allowed with")
    refused(parked(dsn, *settle, "--answer", "1", "--force"), "--force and --yes belong to --did-not-happen")
    refused(parked(dsn, *settle, "--did-not-happen", "--refused"), "--refused belongs to --answer")
    refused(parked(dsn, *settle, "--from-lookup", "--refused"), "--refused belongs to --answer")
    assert reasons(db) == ["unknown"]


def test_another_fingerprint_is_said_to_be_another(held: Message, dsn: str) -> None:
    done = parked(dsn, "redrive", held.id, "--fingerprint", "00ff")
    said_no(done, "has another fingerprint", held.fingerprint().hex()[:12])


# ---- --did-not-happen ------------------------------------------------------------------------------------------------


def test_inside_the_window_only_force_does_it(dsn: str, db: Db, opened: Opened) -> None:
    message, provider = order(), Provider()
    provider.before.append(ProviderError(500, replayed=True))
    opened(charging(provider)).deliver(delivery(message))
    done = parked(dsn, "settle", message.id, *NOT_HAPPENED)
    said_no(done, "may still act under the key of effect 'charge' (for another 23 h 59 min)", "wait until then", "--force")
    assert parked(dsn, "settle", message.id, *NOT_HAPPENED, "--force").returncode == 0
    assert "did not happen charge (forced)" in parked(dsn, "decisions").stdout
    assert [intent.generation for intent in rows.intents(db, message)] == [2]


def test_where_nobody_can_type_it_needs_yes(held: Message, dsn: str, db: Db) -> None:
    before = snapshot(db)
    refused(parked(dsn, "settle", held.id, "--effect", "charge", "--did-not-happen"), "say --yes")
    assert snapshot(db) == before


@pytest.mark.parametrize(
    ("typed", "code"), [("charge\n", 0), ("  charge  \n", 0), ("yes\n", 1), ("\n", 1), ("\x04", 1), ("\x03", 130)], ids=repr
)
def test_at_a_terminal_the_effects_name_is_typed(typed: str, code: int, held: Message, dsn: str, db: Db) -> None:
    printed, ended_with = at_a_terminal(
        "parked", "settle", held.id, "--effect", "charge", "--did-not-happen", "--database", dsn, typed=typed
    )
    assert ended_with == code, printed
    assert "if it did happen after all, it happens twice" in printed
    assert "Traceback" not in printed
    if code == 0:
        assert f"{held.id} calls 'charge' under a new key (token 3)" in printed
    else:
        assert reasons(db) == ["unknown"]
    if code == 1:
        assert "not confirmed: nothing was decided" in printed


def at_a_terminal(*arguments: str, typed: str) -> tuple[str, int]:
    """The command with a terminal of its own; `typed` once it asks. What was printed, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "onceward", *arguments], environment())  # noqa: S606
    printed = b""
    try:
        while chunk := os.read(terminal, 4096):
            printed += chunk
            if printed.endswith(b"type 'charge' to go on: "):
                os.write(terminal, typed.encode())
    except OSError:  # Linux: nobody is left at the other end
        pass
    os.close(terminal)
    return printed.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the handler's look-up -------------------------------------------------------------------------------------------


def test_what_the_look_up_finds_is_settled(held: Message, shop: Path, dsn: str, db: Db) -> None:
    provider_knows(shop, **{key_of(held): {"id": "ch_7"}})
    words = ("settle", held.id, "--effect", "charge", "--from-lookup", "--handlers", "shop:charges")
    done = parked(dsn, *words, cwd=shop)
    assert done.returncode == 0, done
    assert [(intent.answer, intent.refused) for intent in rows.intents(db, held)] == [({"id": "ch_7"}, False)]


def test_a_refusal_that_the_look_up_finds_is_settled_as_one(held: Message, shop: Path, dsn: str, db: Db) -> None:
    provider_knows(shop, refused={"code": "declined"})
    words = ("settle", held.id, "--effect", "charge", "--from-lookup", "--handlers", "shop:charges")
    assert "its provider refused 'charge'" in parked(dsn, *words, cwd=shop).stdout
    assert [(intent.answer, intent.refused) for intent in rows.intents(db, held)] == [({"code": "declined"}, True)]


def test_what_the_look_up_finds_keeps_it_from_not_having_happened(held: Message, shop: Path, dsn: str, db: Db) -> None:
    provider_knows(shop, **{key_of(held): {"id": "ch_7"}})
    before = snapshot(db)
    done = parked(dsn, "settle", held.id, *NOT_HAPPENED, "--handlers", "shop:charges", cwd=shop)
    said_no(done, "the look-up found 'charge', so it did happen", "ch_7", "--from-lookup")
    assert snapshot(db) == before
    provider_knows(shop)
    assert parked(dsn, "settle", held.id, *NOT_HAPPENED, "--handlers", "shop:charges", cwd=shop).returncode == 0


def test_a_look_up_that_finds_nothing_settles_nothing(held: Message, shop: Path, dsn: str, db: Db) -> None:
    provider_knows(shop)
    words = ("settle", held.id, "--effect", "charge", "--from-lookup", "--handlers", "shop:charges")
    said_no(parked(dsn, *words, cwd=shop), "found nothing: nothing was settled", "--did-not-happen")
    assert reasons(db) == ["unknown"]


@pytest.mark.parametrize(
    ("handlers", "words"),
    [
        (None, "name its Consumer, as in --handlers shop.consumers:charges"),
        ("shop", "MODULE:NAME"),
        ("no_such_shop:charges", "there is no module 'no_such_shop'"),
        ("shop:chargess", "has no 'chargess'"),
        ("shop:nothing", "it must be a Consumer"),
        ("shop:ledger", "the message is parked for payments, and these are the handlers of ledger"),
        ("shop:no_lookup", "the effect 'charge' has no look-up: ask the provider yourself for the key ow1:"),
    ],
)
def test_handlers_that_cannot_look_up_are_refused(
    handlers: str | None, words: str, held: Message, shop: Path, dsn: str, db: Db
) -> None:
    before = snapshot(db)
    named = () if handlers is None else ("--handlers", handlers)
    refused(parked(dsn, "settle", held.id, "--effect", "charge", "--from-lookup", *named, cwd=shop), words)
    assert snapshot(db) == before


def test_a_look_up_that_fails_decides_nothing(held: Message, shop: Path, dsn: str, db: Db) -> None:
    provider_knows(shop, error="the provider is down")
    before = snapshot(db)
    for words in (("--from-lookup",), ("--did-not-happen", "--yes")):
        done = parked(dsn, "settle", held.id, "--effect", "charge", *words, "--handlers", "shop:charges", cwd=shop)
        refused(done, "the provider is down", "nothing was decided")
    assert snapshot(db) == before


def test_of_several_consumers_one_is_named(held: Message, dsn: str, db: Db, opened: Opened) -> None:
    db.execute("UPDATE onceward.inbox SET consumer = 'ledger'")
    db.execute("UPDATE onceward.parked SET consumer = 'ledger'")

    def reject(_message: Message, _tx: object) -> None:
        raise Reject("no")

    opened(transactional(reject)).deliver(delivery(held))
    for verb, *rest in DECISIONS.values():
        refused(parked(dsn, verb, held.id, *rest), "--consumer ledger | --consumer payments")
    assert parked(dsn, "discard", held.id, *DISCARD, "--consumer", "ledger").returncode == 0
    assert (rows.state(db, held), rows.state(db, held, "ledger")) == ("parked", "discarded")
