"""A proof that cannot fail proves nothing: with one layer taken out, `prove` must say that hardened broke."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.proof.prove_run import KEY_PER_CALL, prove, sabotaged, write_schedule

from onceward_proof.prove.schedule import Aimed, Schedule
from onceward_proof.prove.workload import make_orders

TAKE = "ON CONFLICT (consumer, message_id) DO NOTHING\nRETURNING token, pg_current_xact_id"
ALWAYS_TAKEN = TAKE.replace("DO NOTHING", "DO UPDATE SET state = excluded.state, token = inbox.token + 1")
KEYED = " WHERE consumer = %(consumer)s AND message_id = %(message_id)s"
FINISH = f"SET state = 'done', lease_until = NULL\n{KEYED}"
FENCE = " AND state = 'pending' AND token = %(token)s"

SABOTAGES = {
    "the inbox takes every delivery as new": ("sql/inbox.sql", TAKE, ALWAYS_TAKEN),
    "the idempotency key is made per call": KEY_PER_CALL,
    "the finish is not fenced, by token and state": ("sql/inbox.sql", FINISH + FENCE, FINISH),
}


# Each layer's own faults, several times: one alone may miss, when the machine is busy and the victim late.
AIMED_AT_LAYERS = ("freeze-after-charge", "kill-after-charge", "kill-before-ack-charge", "kill-before-ack-ledger")


def schedule_file(folder: Path) -> Path:
    orders = make_orders(20, 3)
    aimed = tuple(Aimed(AIMED_AT_LAYERS[n % len(AIMED_AT_LAYERS)], order.id) for n, order in enumerate(orders))
    write_schedule(Schedule(3, "pgmq", tuple(orders), aimed, ()), folder / "schedule.json")
    return folder / "schedule.json"


def test_with_every_layer_in_place_the_same_faults_break_nothing(tmp_path: Path) -> None:
    proof = prove(tmp_path / "r.json", "--schedule", str(schedule_file(tmp_path)), "--variants", "hardened")
    assert proof.document["verdict"] == "inconclusive", proof.out
    hardened = proof.variant("hardened")
    assert not hardened["double_charged_orders"] + hardened["doubled_writes"] + hardened["lost_events"], proof.out


@pytest.mark.parametrize("what", SABOTAGES)
def test_with_a_layer_taken_out_prove_says_broken(what: str, tmp_path: Path) -> None:
    scratch = sabotaged(tmp_path / "scratch", *SABOTAGES[what])
    schedule = str(schedule_file(tmp_path))
    proof = prove(tmp_path / "r.json", "--schedule", schedule, "--variants", "hardened", source=scratch)
    assert (proof.code, proof.document["verdict"]) == (1, "broken"), proof.out
    hardened = proof.variant("hardened")
    assert hardened["double_charged_orders"] or hardened["doubled_writes"], proof.out
