"""One sabotage per guarantee: with one clause taken out, the very check that the ordinary test makes must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.database import test_decision_races, test_decisions, test_untimed_ids, test_untimed_pruning
from tests.support import checks
from tests.support.deliveries import order, untimed
from tests.support.rows import write_effect
from tests.support.shop import SHAPES, transactional
from tests.support.waiting import Background

from onceward import decisions, session, untimed_rows
from onceward.consumer import OpenConsumer
from onceward.decisions import DecisionKind
from onceward.message import Message
from onceward.statements import statements

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
FENCE = " AND state = 'pending' AND token = %(token)s"
fails = pytest.raises(AssertionError)


def test_without_the_fence_of_the_finish_a_zombie_commits(opened: Opened, db: Db, background: Background) -> None:
    with fails:
        checks.check_a_late_finisher_writes_nothing(opened, db, background, statements={"inbox_finish": (FENCE, "")})


def test_without_the_guard_a_foreign_commit_is_taken_for_ours(
    opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT is sent without a look at the transaction."""
    monkeypatch.setattr(session, "COMMIT_GUARDED", "COMMIT")

    def work(message: Message, tx: Db) -> None:
        write_effect(tx, message)
        tx.execute("COMMIT; BEGIN")

    with fails:
        checks.check_a_foreign_commit_is_parked(opened, db, transactional(work), order(), 1)


def test_without_the_write_once_rule_the_first_answer_is_lost(opened: Opened, db: Db) -> None:
    weakened = {"intent_record": (" AND state IN ('pending', 'unknown')", "")}
    with fails:
        checks.check_one_answer_is_kept(opened, db, statements=weakened)


def test_without_the_fence_of_a_failure_a_zombie_gives_anothers_claim_away(opened: Opened, db: Db) -> None:
    with fails:
        checks.check_a_zombie_fails_nothing(opened, db, statements={"fail_held": (FENCE, "")})


def test_without_the_fence_of_a_park_a_zombie_parks_anothers_message(opened: Opened, db: Db) -> None:
    with fails:
        checks.check_a_zombie_parks_nothing(opened, db, statements={"park_held": (FENCE, "")})


def test_without_state_and_token_a_take_over_has_two_winners(
    opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    lock = connect(autocommit=False)
    weakened = {"inbox_take_over": (FENCE, "")}
    with fails:
        checks.check_a_take_over_has_one_winner(opened, db, lock, background, "transactional", statements=weakened)


@pytest.mark.parametrize("shape", ["transactional", "effectful"])
def test_without_the_lease_in_the_take_over_a_living_one_is_taken_over(
    shape: str, opened: Opened, db: Db, connect: Callable[..., Db], background: Background
) -> None:
    holder = connect(autocommit=False)
    weakened = {"inbox_take_over": ("lease_until <= clock_timestamp()\n", "true\n")}
    with fails:
        checks.check_a_lease_extended_meanwhile_is_not_taken_over(
            opened, db, holder, background, shape, statements=weakened
        )


@pytest.mark.parametrize("shape", ["transactional", "effectful"])
def test_with_the_textbooks_zero_rows_so_skip_a_crashed_claim_is_lost(shape: str, opened: Opened, db: Db) -> None:
    weakened = {"inbox_read": ("i.state, ", "'done' AS state, ")}
    with fails:
        checks.check_a_crashed_claim_is_taken_over(opened, db, shape, statements=weakened)


def test_without_the_lease_in_the_intent_an_effect_starts_after_it(opened: Opened, db: Db) -> None:
    weakened = {"intent_insert": (" AND i.lease_until > clock_timestamp()", "")}
    with fails:
        checks.check_no_effect_starts_under_a_lapsed_lease(opened, db, statements=weakened)


def test_without_the_rule_of_heads_two_relays_break_the_order(dsn: str, db: Db, background: Background) -> None:
    """SKIP LOCKED alone: the second relay skips the head that the first holds, and sends what is behind it."""
    heads = statements()["outbox_lock_heads"]
    if "NOT EXISTS" not in heads:
        raise LookupError("the rule of heads")
    weakened = {"outbox_lock_heads": heads.replace("NOT EXISTS", "true OR NOT EXISTS")}
    with fails:
        checks.check_a_key_is_not_overtaken(dsn, db, background, statements=weakened)


def weaken_decisions(monkeypatch: pytest.MonkeyPatch, name: str, part: str, replacement: str) -> None:
    texts: dict[str, Any] = dict(statements())
    if part not in texts[name]:
        raise LookupError(f"{name} has no {part!r}")
    texts[name] = texts[name].replace(part, replacement)
    monkeypatch.setattr(decisions, "statements", lambda _schema: texts)


def test_without_the_window_a_new_key_is_used_while_the_former_one_may_act(
    opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken_decisions(monkeypatch, "decide_intents", "make_interval(secs => window_seconds)", "interval '0'")
    with fails:
        test_decisions.test_inside_the_providers_window_it_is_not_called_under_a_new_key(opened, db)


def test_without_a_new_key_the_effect_is_called_under_the_former_one(
    opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken_decisions(monkeypatch, "reopen_intent", "key = %(key)s", "key = key")
    with fails:
        test_decisions.test_what_did_not_happen_is_called_once_under_a_new_key(False, opened, db)


def test_with_effects_that_a_discard_leaves_open_a_late_answer_is_not_seen(
    opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken_decisions(
        monkeypatch, "discard_inbox", "SET state = 'discarded'\n  FROM over", "SET state = t.state\n  FROM over"
    )
    with fails:
        test_decision_races.test_an_answer_after_a_discard_parks_the_message_again(opened, db)


def test_without_the_lock_of_the_parked_row_two_people_discard(
    opened: Opened, db: Db, connect: Callable[..., Db], background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken_decisions(monkeypatch, "decide_read", "FOR UPDATE OF p", "")
    with fails:
        test_decision_races.test_of_two_people_at_once_the_second_hears_what_the_first_has_decided(
            DecisionKind.DISCARD, DecisionKind.DISCARD, opened, db, connect, background
        )


def test_without_the_mark_of_its_beginning_an_effect_without_keys_is_called_twice(opened: Opened, db: Db) -> None:
    def weakened(*arguments: Any) -> OpenConsumer:
        return checks.weaken(opened(*arguments), intent_begin_unkeyed=("SET state = 'unknown', ", "SET "))

    with fails:
        test_decisions.test_without_keys_what_did_not_happen_is_called_once_more_and_only_once(weakened, db)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_option_in_the_take_an_untimed_id_is_taken_unasked(shape: str, opened: Opened, db: Db) -> None:
    weakened = {"inbox_insert": ("THEN %(untimed_ids)s", "THEN true OR %(untimed_ids)s")}
    message = untimed()
    with fails:
        test_untimed_ids.check_parked_without_a_row(shape, message, opened, db, statements=weakened)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_one_key_for_one_text_a_duplicate_of_an_untimed_id_is_taken_as_new(
    shape: str, opened: Opened, db: Db
) -> None:
    key = "overlay(gen_random_uuid()::text PLACING 'ff' FROM 1)::uuid"
    weakened = {"inbox_insert": ("%(message_id)s, %(fingerprint)s", f"{key}, %(fingerprint)s")}
    with fails:
        test_untimed_ids.check_a_duplicate_is_turned_away(shape, untimed(), opened, db, statements=weakened)


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        ("i.state IN ('done', 'discarded')", "true"),
        ("AND i.taken_at < statement_timestamp() - make_interval(secs => %(window_seconds)s)", ""),
        ("t.state IN ('pending', 'unknown')", "false"),
        (
            "DELETE FROM onceward.intents AS t\n     USING due\n     WHERE",
            "DELETE FROM onceward.intents AS t\n     USING due\n     WHERE false AND",
        ),
        (
            "DELETE FROM onceward.attempts AS a\n     USING due\n     WHERE",
            "DELETE FROM onceward.attempts AS a\n     USING due\n     WHERE false AND",
        ),
    ],
    ids=["state", "window", "effects without an answer", "their effects", "their attempts"],
)
def test_without_a_clause_of_the_pruning_too_much_or_too_little_goes(
    part: str, replacement: str, opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: dict[str, Any] = dict(statements())
    if part not in texts["untimed_prune"]:
        raise LookupError(part)
    texts["untimed_prune"] = texts["untimed_prune"].replace(part, replacement)
    monkeypatch.setattr(untimed_rows, "statements", lambda _schema: texts)
    with fails:
        test_untimed_pruning.check_only_what_is_over_is_pruned(opened, db)


def test_without_a_new_beginning_a_discarded_untimed_message_is_pruned_at_once(
    opened: Opened, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken_decisions(monkeypatch, "discard_inbox", ", taken_at = clock_timestamp()", "")
    with fails:
        test_untimed_pruning.test_a_discarded_message_is_turned_away_for_another_window(opened, db)
