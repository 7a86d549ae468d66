"""The judge: each kind of harm is seen, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final, NamedTuple

import pytest
from tests.support.planted import with_bug

from onceward_proof.prove import checker
from onceward_proof.prove.checker import Evidence, judge

GOOD = Evidence(
    ordered={"A": 100, "B": 250},
    charges=(("ch_1", "A", 100), ("ch_2", "B", 250)),
    placed={"A": (100, "paid", "ch_1"), "B": (250, "paid", "ch_2")},
    balances={"A": 100, "B": 250},
    parked=frozenset(),
)


COUNTED: Final = (
    "double_charged", "phantom", "lost_first_hop", "lost_second_hop", "doubled_writes", "wrong_charge", "parked",
)  # fmt: skip
SUMS: Final = {"charged": 350, "paid": 350, "booked": 350}


def changed(**changes: object) -> Evidence:
    fields = {name: getattr(GOOD, name) for name in ("ordered", "charges", "placed", "balances", "parked")}
    return Evidence(**(fields | changes))


class Case(NamedTuple):
    """Evidence of one thing that went wrong; all that must be counted of it, and the sums that it moves."""

    evidence: Evidence
    counted: dict[str, tuple[str, ...]]
    money: Mapping[str, int] = MappingProxyType({})  # where it differs from SUMS


UNPAID: Final = (250, "placed", None)
WAITING: Final = {"A": GOOD.placed["A"], "B": UNPAID}  # B is placed, and not paid
HALF: Final = {"charged": 100, "paid": 100, "booked": 100}
CASES: Final = {
    "all is well": Case(GOOD, {}),
    "a second charge": Case(
        changed(charges=(*GOOD.charges, ("ch_3", "A", 100))), {"double_charged": ("A",)}, {"charged": 450}
    ),
    "a second charge of another amount": Case(
        changed(charges=(*GOOD.charges, ("ch_3", "A", 1))), {"double_charged": ("A",)}, {"charged": 351}
    ),
    "a charge for no order that was ever placed": Case(
        changed(charges=(*GOOD.charges, ("ch_9", "Z", 1))), {"phantom": ("ch_9",)}, {"charged": 351}
    ),
    "a charge of nothing for no order": Case(changed(charges=(*GOOD.charges, ("ch_9", "Z", 0))), {"phantom": ("ch_9",)}),
    "a charge for an order that was never committed": Case(
        changed(placed={"A": GOOD.placed["A"]}, balances={"A": 100}),
        {"phantom": ("ch_2",), "lost_first_hop": ("B",)},
        {"paid": 100, "booked": 100},
    ),
    "placed, never paid": Case(
        changed(charges=GOOD.charges[:1], placed=WAITING, balances={"A": 100, "B": 0}), {"lost_first_hop": ("B",)}, HALF
    ),
    "never even placed": Case(
        changed(charges=GOOD.charges[:1], placed={"A": GOOD.placed["A"]}, balances={"A": 100}),
        {"lost_first_hop": ("B",)},
        HALF,
    ),
    "charged, and never marked as paid": Case(
        changed(placed=WAITING, balances={"A": 100, "B": 0}), {"lost_first_hop": ("B",)}, {"paid": 100, "booked": 100}
    ),
    "parked before the payment": Case(
        changed(charges=GOOD.charges[:1], placed=WAITING, balances={"A": 100, "B": 0}, parked=frozenset({"B"})),
        {"parked": ("B",)},
        HALF,
    ),
    "parked although it was charged": Case(
        changed(placed=WAITING, balances={"A": 100, "B": 0}, parked=frozenset({"B"})),
        {"parked": ("B",)},
        {"paid": 100, "booked": 100},
    ),
    "parked before the booking": Case(
        changed(balances={"A": 100, "B": 0}, parked=frozenset({"B"})), {"parked": ("B",)}, {"booked": 100}
    ),
    "paid, never booked": Case(changed(balances={"A": 100, "B": 0}), {"lost_second_hop": ("B",)}, {"booked": 100}),
    "paid, without an account": Case(changed(balances={"A": 100}), {"lost_second_hop": ("B",)}, {"booked": 100}),
    "booked twice": Case(changed(balances={"A": 200, "B": 250}), {"doubled_writes": ("A",)}, {"booked": 450}),
    "booked a little too much": Case(changed(balances={"A": 101, "B": 250}), {"doubled_writes": ("A",)}, {"booked": 351}),
    "booked for an order that nobody placed": Case(
        changed(balances={**GOOD.balances, "Z": 1}), {"doubled_writes": ("Z",)}, {"booked": 351}
    ),
    "booked too little": Case(changed(balances={"A": 90, "B": 250}), {}, {"booked": 340}),
    "paid by a charge that is not there": Case(
        changed(placed={"A": (100, "paid", "ch_unknown"), "B": GOOD.placed["B"]}), {"wrong_charge": ("A",)}
    ),
    "paid by no charge at all": Case(
        changed(placed={"A": (100, "paid", None), "B": GOOD.placed["B"]}), {"wrong_charge": ("A",)}
    ),
    "paid by another order's charge": Case(
        changed(placed={"A": (100, "paid", "ch_2"), "B": GOOD.placed["B"]}), {"wrong_charge": ("A",)}
    ),
    "charged another amount": Case(
        changed(charges=(("ch_1", "A", 99), GOOD.charges[1])), {"wrong_charge": ("A",)}, {"charged": 349}
    ),
}


def wrong(module: ModuleType) -> list[str]:
    """The cases that this module counts otherwise, or in which it is content with what is not clean."""
    return [name for name, case in CASES.items() if _counts_otherwise(module, case)]


def _counts_otherwise(module: ModuleType, case: Case) -> bool:
    found = module.judge(case.evidence)
    counted = {name: getattr(found, name) for name in COUNTED if getattr(found, name)}
    harmless = not set(counted) - {"parked"} and len(set(found.money.values())) == 1
    return (counted, dict(found.money), found.clean) != (case.counted, SUMS | dict(case.money), harmless)


@pytest.mark.parametrize("name", CASES)
def test_what_went_wrong_is_counted_as_that_and_as_nothing_else(name: str) -> None:
    evidence, counted, money = CASES[name]
    found = judge(evidence)
    assert {name: getattr(found, name) for name in COUNTED if getattr(found, name)} == counted
    assert found.money == SUMS | dict(money)


def test_orders_and_charges_are_counted() -> None:
    verdict = judge(changed(charges=(*GOOD.charges, ("ch_3", "A", 100))))
    assert (verdict.orders, verdict.charges) == (2, 3)


def test_whatever_was_doubled_lost_or_wrong_is_harmed_and_what_is_parked_is_not() -> None:
    names = {name: judge(case.evidence).harmed for name, case in CASES.items()}
    assert {name for name, harmed in names.items() if not harmed} == {
        "all is well", "parked before the payment", "parked before the booking", "booked too little",
        "a charge for no order that was ever placed", "a charge of nothing for no order", "parked although it was charged",
    }  # fmt: skip


def test_sums_that_differ_are_not_clean() -> None:
    assert judge(GOOD).clean
    assert not judge(CASES["booked too little"].evidence).clean
    assert not judge(CASES["a charge for no order that was ever placed"].evidence).clean


def test_why_an_order_is_parked_is_passed_on() -> None:
    reasons = {"B": frozenset({"unknown"})}
    assert judge(changed(parked=frozenset({"B"}), park_reasons=reasons)).park_reasons == reasons


PLANTED: Final = {
    "two charges are one": ("if count > 1)", "if count > 2)"),
    "only charges of one amount are a double charge": (
        "Counter(order_id for _, order_id, _ in e.charges)",
        "Counter(o for _, o, amount in e.charges if amount == e.ordered.get(o))",
    ),
    "a phantom is what was never ordered": ("if order_id not in e.placed),", "if order_id not in e.ordered),"),
    "no charge is a phantom": ("if order_id not in e.placed),", "if False),"),
    "an order that was never placed is not lost": ("_sorted(set(e.ordered) - paid", "_sorted(set(e.placed) - paid"),
    "whatever was charged is not lost": (
        "_sorted(set(e.ordered) - paid - e.parked)", "_sorted(set(e.ordered) - paid - e.parked - set(per_order))",
    ),
    "what is placed is paid": ('in e.placed.items() if status == "paid"}', 'in e.placed.items() if status}'),
    "a parked order is lost before its payment": ("set(e.ordered) - paid - e.parked", "set(e.ordered) - paid"),
    "a parked order is lost before its booking": ("paid - booked - e.parked", "paid - booked"),
    "hop two is not looked at": ("_sorted(paid - booked - e.parked)", "()"),
    "an account that is there is booked": ("if balance > 0}", "if balance >= 0}"),
    "twice is not yet a doubled write": ("balance > e.ordered.get(", "balance > 2 * e.ordered.get("),
    "what nobody ordered may be booked": ("e.ordered.get(order_id, 0)", "e.ordered.get(order_id, balance)"),
    "any charge pays": ('if status == "paid" and amounts.get(str(charge_id)) != (order_id, amount)', "if False"),
    "a charge of another order pays": ("!= (order_id, amount)", "not in amounts.values()"),
    "a charge of another amount pays": (
        "amounts.get(str(charge_id)) != (order_id, amount)", "amounts.get(str(charge_id), ('', 0))[0] != order_id",
    ),
    "what is parked is not named": ("parked=_sorted(e.parked),", "parked=(),"),
    "what was charged is taken from the orders": (
        '"charged": sum(amount for _, _, amount in e.charges)', '"charged": sum(e.ordered.values())',
    ),
    "what was paid is all that was placed": ('e.placed.values() if status == "paid"),', "e.placed.values()),"),
    "what was booked is what was paid": (
        '"booked": sum(e.balances.values())', '"booked": sum(e.placed[order][0] for order in booked if order in e.placed)',
    ),
    "clean is only that no order is harmed": (" and not self.phantom and self.money", " and self.money"),
    "clean does not ask for the books": ('== self.money["paid"] == self.money["booked"]', '== self.money["paid"]'),
    "clean does not ask for the provider": ('self.money["charged"] == self.money["paid"] ==', 'self.money["paid"] =='),
    "clean does not ask for harm": ("return not self.harmed and not", "return not"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_planted_in_the_checker_is_noticed(bug: str) -> None:
    assert wrong(with_bug(checker, *PLANTED[bug]))


def test_nothing_is_noticed_where_no_bug_is_planted() -> None:
    assert wrong(with_bug(checker, "def judge(", "def judge(")) == []


@pytest.mark.parametrize("module", ["onceward", "payments"])
def test_the_judge_shares_no_code_with_the_accused(module: str) -> None:
    tree = ast.parse(Path(checker.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." * node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] == module or name.startswith(".")]
