"""The judge: each kind of harm is seen, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from onceward_proof.prove import checker
from onceward_proof.prove.checker import Evidence, judge

GOOD = Evidence(
    ordered={"A": 100, "B": 250},
    charges=(("ch_1", "A", 100), ("ch_2", "B", 250)),
    placed={"A": (100, "paid", "ch_1"), "B": (250, "paid", "ch_2")},
    balances={"A": 100, "B": 250},
    parked=frozenset(),
)


def changed(**changes: object) -> Evidence:
    fields = {name: getattr(GOOD, name) for name in ("ordered", "charges", "placed", "balances", "parked")}
    return Evidence(**(fields | changes))


def test_what_is_right_is_clean() -> None:
    verdict = judge(GOOD)
    assert verdict.clean
    assert verdict.money == {"charged": 350, "paid": 350, "booked": 350}


def test_a_second_charge_is_a_double_charge() -> None:
    verdict = judge(changed(charges=(*GOOD.charges, ("ch_3", "A", 100))))
    assert verdict.double_charged == ("A",)
    assert not verdict.clean


def test_a_charge_without_a_committed_order_is_a_phantom() -> None:
    assert judge(changed(charges=(*GOOD.charges, ("ch_9", "Z", 1)))).phantom == ("ch_9",)


def test_an_order_that_was_never_paid_is_lost() -> None:
    verdict = judge(changed(placed={"A": GOOD.placed["A"], "B": (250, "placed", None)}))
    assert verdict.lost_first_hop == ("B",)


def test_an_order_that_was_never_even_placed_is_lost() -> None:
    assert judge(changed(placed={"A": GOOD.placed["A"]})).lost_first_hop == ("B",)


def test_a_parked_order_is_not_lost_but_named() -> None:
    verdict = judge(
        changed(
            charges=GOOD.charges[:1],
            placed={"A": GOOD.placed["A"], "B": (250, "placed", None)},
            balances={"A": 100, "B": 0},
            parked=frozenset({"B"}),
        )
    )
    assert verdict.parked == ("B",)
    assert verdict.clean


def test_a_paid_order_that_was_never_booked_is_lost_on_the_second_hop() -> None:
    assert judge(changed(balances={"A": 100, "B": 0})).lost_second_hop == ("B",)


def test_a_balance_above_the_amount_is_a_doubled_write() -> None:
    assert judge(changed(balances={"A": 200, "B": 250})).doubled_writes == ("A",)


def test_an_order_paid_by_a_charge_that_the_ledger_lacks_is_wrong() -> None:
    placed = {"A": (100, "paid", "ch_unknown"), "B": GOOD.placed["B"]}
    assert judge(changed(placed=placed)).wrong_charge == ("A",)


def test_sums_that_differ_are_not_clean() -> None:
    assert not judge(changed(balances={"A": 90, "B": 250})).clean


@pytest.mark.parametrize("module", ["onceward", "payments"])
def test_the_judge_shares_no_code_with_the_accused(module: str) -> None:
    tree = ast.parse(Path(checker.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." * node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] == module or name.startswith(".")]
