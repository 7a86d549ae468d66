"""A proof that cannot fail proves nothing: with one layer taken out, `prove` must say that hardened broke."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.proof.prove_run import prove, sabotaged

TAKE = "ON CONFLICT (consumer, message_id) DO NOTHING\nRETURNING token, set_config"
ALWAYS_TAKEN = TAKE.replace("DO NOTHING", "DO UPDATE SET state = excluded.state, token = inbox.token + 1")
KEYED = " WHERE consumer = %(consumer)s AND message_id = %(message_id)s"
FINISH = f"SET state = 'done', lease_until = NULL\n{KEYED}"
FENCE = " AND state = 'pending' AND token = %(token)s"
STABLE_KEY = 'return "ow1:" + hashlib'
FRESH_KEY = 'return "ow1:" + __import__("uuid").uuid4().hex or hashlib'

SABOTAGES = {
    "the inbox takes every delivery as new": ("sql/inbox.sql", TAKE, ALWAYS_TAKEN),
    "the idempotency key is made per attempt": ("provider.py", STABLE_KEY, FRESH_KEY),
    "the finish is not fenced, by token and state": ("sql/inbox.sql", FINISH + FENCE, FINISH),
}


@pytest.mark.parametrize("what", SABOTAGES)
def test_with_a_layer_taken_out_prove_says_broken(what: str, tmp_path: Path) -> None:
    scratch = sabotaged(tmp_path / "scratch", *SABOTAGES[what])
    proof = prove(tmp_path / "r.json", "--orders", "60", "--seed", "3", "--variants", "hardened", source=scratch)
    assert (proof.code, proof.document["verdict"]) == (1, "broken"), proof.out
    hardened = proof.variant("hardened")
    assert hardened["double_charged_orders"] or hardened["doubled_writes"], proof.out
