"""The verdict: every clause of it has a run that only this clause refuses, and a bug planted in any of them is noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

import pytest
from tests.proof.test_page import SCHEDULE, a_verdict, hardened, naive
from tests.support.planted import with_bug

from onceward_proof.prove import outcome
from onceward_proof.prove.faults import strikes_from_outside
from onceward_proof.prove.live import Counts
from onceward_proof.prove.run import Result

Change = Callable[[], list[Result]]


def hardened_with(**harm: Any) -> Change:
    """Beside a good naive run, a hardened one with this verdict; O-3 is predicted to be parked."""
    return lambda: [naive(), replace(hardened(), verdict=a_verdict(**({"parked": ("O-3",)} | harm)))]


def naive_with(**harm: Any) -> Change:
    """Beside a good hardened run, a naive one with this in its verdict."""
    return lambda: [replace(naive(), verdict=replace(naive().verdict, **harm)), hardened()]


def missed(result: Result, fault: str) -> Result:
    """The same run, in which `fault` never struck."""
    fired = Counter({name: count for name, count in result.counts.fired.items() if name != fault})
    return replace(result, counts=Counts(fired=fired))


def unseen(result: Result, fault: str) -> Result:
    """The same run, in which `fault` struck, and nothing showed it from outside."""
    fired = Counter({name: count for name, count in SCHEDULE.planned().items() if name != fault})
    return replace(result, counts=Counts(fired=fired, unseen=Counter({fault: 1})))


@dataclass(frozen=True)
class Case:
    """Two runs, one of which is not good in one way; and what must be said of them."""

    results: Change
    verdict: str
    reason: str


MONEY: Final = {"charged": 2_049, "paid": 2_049, "booked": 2_049}
STALLED: Final[Mapping[str, Any]] = {"finished": False, "why_stalled": "outbox: 1"}
CASES: Final = {
    "double charge": Case(
        hardened_with(double_charged=("O-1",)), "broken", "hardened: 1 orders were charged more than once (O-1)"
    ),
    "phantom charge": Case(
        hardened_with(phantom=("ch_9",)), "broken", "hardened: 1 charges have no committed order (ch_9)"
    ),
    "lost on the first hop": Case(
        hardened_with(lost_first_hop=("O-1",)), "broken", "hardened: 1 orders were neither paid nor parked (O-1)"
    ),
    "lost on the second hop": Case(
        hardened_with(lost_second_hop=("O-1",)), "broken", "hardened: 1 paid orders were never booked, nor parked (O-1)"
    ),
    "doubled write": Case(
        hardened_with(doubled_writes=("O-1",)), "broken", "hardened: 1 accounts hold more than was paid (O-1)"
    ),
    "a charge that is not there": Case(
        hardened_with(wrong_charge=("O-1",)),
        "broken",
        "hardened: 1 paid orders name a charge that the provider does not have (O-1)",
    ),
    "one parked too many": Case(
        hardened_with(parked=("O-1", "O-3")),
        "broken",
        "hardened: 1 orders are parked that the schedule does not predict (O-1)",
    ),
    "none parked": Case(hardened_with(parked=()), "broken", "hardened: 1 orders should be parked and are not (O-3)"),
    "one parked too few": Case(
        lambda: [naive(), replace(hardened(), predicted_parked=frozenset({"O-2", "O-3"}))],
        "broken",
        "hardened: 1 orders should be parked and are not (O-2)",
    ),
    "more charged than paid": Case(
        hardened_with(money=MONEY | {"charged": 2_050}),
        "broken",
        "hardened: the sums differ: charged 2050, paid 2049, booked 2049",
    ),
    "less booked than paid": Case(
        hardened_with(money=MONEY | {"booked": 2_048}),
        "broken",
        "hardened: the sums differ: charged 2049, paid 2049, booked 2048",
    ),
    "hardened stalled": Case(
        lambda: [naive(), replace(hardened(), **STALLED)], "broken", "hardened: no progress for 20 s (outbox: 1)"
    ),
    "broken, and naive is missing": Case(
        lambda: hardened_with(double_charged=("O-1",))()[1:],
        "broken",
        "hardened: 1 orders were charged more than once (O-1)",
    ),
    "naive charged nobody twice": Case(
        naive_with(double_charged=()), "inconclusive", "naive: no order was charged twice, so the faults prove nothing"
    ),
    "naive lost nothing": Case(
        naive_with(lost_first_hop=()), "inconclusive", "naive: no event was lost, so the faults prove nothing"
    ),
    "naive stalled": Case(
        lambda: [replace(naive(), **STALLED), hardened()], "inconclusive", "naive: no progress for 20 s (outbox: 1)"
    ),
    "a fault never struck hardened": Case(
        lambda: [naive(), missed(hardened(), "slow-charge")], "inconclusive", "hardened: 1 of slow-charge never struck"
    ),
    "a fault never struck naive": Case(
        lambda: [missed(naive(), "slow-charge"), hardened()], "inconclusive", "naive: 1 of slow-charge never struck"
    ),
    "nobody saw what a fault did": Case(
        lambda: [naive(), unseen(hardened(), "slow-charge")],
        "inconclusive",
        "hardened: 1 of slow-charge struck, and no effect of it was seen from outside",
    ),
    "hardened is missing": Case(lambda: [naive()], "inconclusive", "the hardened variant was not run"),
    "naive is missing": Case(
        lambda: [hardened()],
        "inconclusive",
        "the naive variant was not run: that hardened held proves nothing unless something else breaks",
    ),
}


def wrong(module: ModuleType) -> list[str]:
    """The cases of which this module does not say what must be said, and nothing beside it."""
    expected = {name: (case.verdict, [case.reason]) for name, case in CASES.items()}
    return [name for name, case in CASES.items() if module.judge(case.results()) != expected[name]]


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_not_good_in_one_way_is_refused_for_this_reason_alone(name: str) -> None:
    case = CASES[name]
    assert outcome.judge(case.results()) == (case.verdict, [case.reason])


def test_a_good_run_is_proven() -> None:
    assert outcome.judge([naive(), hardened()]) == ("proven", [])


def test_naive_may_lose_on_either_hop() -> None:
    results = naive_with(lost_first_hop=(), lost_second_hop=("O-2",))()
    assert outcome.judge(results) == ("proven", [])


def test_what_another_variant_comes_to_decides_nothing() -> None:
    third = replace(naive(), variant="textbook", finished=False)
    assert outcome.judge([naive(), hardened(), third]) == ("proven", [])


def tutorial(**harm: Any) -> Result:
    """A run of the tutorials' service, which only what strikes from outside has reached."""
    fired = Counter({name: count for name, count in SCHEDULE.planned().items() if strikes_from_outside(name)})
    verdict = replace(naive().verdict, **({"lost_first_hop": (), "lost_second_hop": ()} | harm))
    return replace(naive(), variant="tutorial", outside_only=True, verdict=verdict, counts=Counts(fired=fired))


def test_a_tutorial_that_doubles_stands_in_for_naive_and_need_not_lose() -> None:
    assert tutorial().faults()["drop-publish-placed"]["unreached"] == 1
    assert outcome.judge([tutorial(), hardened()]) == ("proven", [])
    said = outcome.summary("proven", SCHEDULE, [tutorial(), hardened()])
    assert "the service of the client's tutorials, struck 5 times and from outside only, charged 2 orders twice" in said


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (tutorial(double_charged=()), "tutorial: no order was charged twice, so the faults prove nothing"),
        (missed(tutorial(), "slow-charge"), "tutorial: 1 of slow-charge never struck"),
        (replace(tutorial(), **STALLED), "tutorial: no progress for 20 s (outbox: 1)"),
    ],
)
def test_a_tutorial_that_shows_nothing_proves_nothing(result: Result, reason: str) -> None:
    assert outcome.judge([result, hardened()]) == ("inconclusive", [reason])


def test_beside_naive_a_tutorial_decides_nothing() -> None:
    assert outcome.judge([naive(), tutorial(double_charged=()), hardened()]) == ("proven", [])
    assert outcome.judge([*naive_with(double_charged=())(), tutorial()])[0] == "inconclusive"


def test_what_a_tutorial_does_not_report_is_not_counted_and_what_cannot_reach_it_is_said() -> None:
    variant = outcome.variant_json(tutorial())
    assert (variant["outside_only"], outcome.variant_json(naive())["outside_only"]) == (True, False)
    assert [variant[key] for key in ("deliveries", "redeliveries", "kills_holding")] == [None, None, None]
    cells = {row.name: [cell.text for cell in row.cells] for row in outcome.faults([tutorial(), hardened()])}
    assert cells["drop-publish-placed"] == ["1", "outside only", "1"]
    assert [cell.text for cell in outcome.counted([tutorial(), hardened()])[-1].cells] == [
        "from outside only",
        "everywhere",
    ]
    assert "struck" not in {row.name for row in outcome.counted([naive(), hardened()])}


def test_every_reason_is_said_and_not_only_the_first() -> None:
    verdict, reasons = outcome.judge(hardened_with(double_charged=("O-1",), doubled_writes=("O-1",), parked=())())
    assert (verdict, len(reasons)) == ("broken", 3)


def test_only_a_proven_run_ends_with_exit_code_zero() -> None:
    assert outcome.EXIT_CODES == {"proven": 0, "broken": 1, "inconclusive": 3}


def _without(clause: str) -> tuple[str, str]:
    return clause, ""


STALL_OF_HARDENED: Final = '    if not result.finished:\n        reasons.append(f"{result.variant}: no progress'
PLANTED: Final = {
    "double charges break nothing": _without('        (verdict.double_charged, "orders were charged more than once"),\n'),
    "phantom charges break nothing": _without('        (verdict.phantom, "charges have no committed order"),\n'),
    "hop one breaks nothing": _without('        (verdict.lost_first_hop, "orders were neither paid nor parked"),\n'),
    "hop two breaks nothing": _without('        (verdict.lost_second_hop, "paid orders were never booked, nor parked"),\n'),
    "doubled writes break nothing": _without('        (verdict.doubled_writes, "accounts hold more than was paid"),\n'),
    "paid by a charge that is not there": _without(
        '        (verdict.wrong_charge, "paid orders name a charge that the provider does not have"),\n'
    ),
    "too many parked break nothing": _without(
        '        (parked - predicted, "orders are parked that the schedule does not predict"),\n'
    ),
    "too few parked break nothing": _without('        (predicted - parked, "orders should be parked and are not"),\n'),
    "too few parked are said only where none is": ("(predicted - parked, ", "(predicted - parked if not parked else (), "),
    "the sums are not compared": ("    if len(set(money.values())) > 1:\n", "    if False:\n"),
    "of the sums only charged and paid are compared": (
        "    if len(set(money.values())) > 1:\n",
        '    if money["charged"] != money["paid"]:\n',
    ),
    "of the sums only paid and booked are compared": (
        "    if len(set(money.values())) > 1:\n",
        '    if money["booked"] != money["paid"]:\n',
    ),
    "a run that stalled is proven": (STALL_OF_HARDENED, STALL_OF_HARDENED.replace("not result.finished", "False")),
    "a naive that doubled nothing proves all the same": ("    if not naive.verdict.double_charged:\n", "    if False:\n"),
    "a naive that lost nothing proves all the same": ("    if not naive.verdict.lost and", "    if False and"),
    "a naive that stalled proves all the same": ("    if not naive.finished:\n", "    if False:\n"),
    "hardened need not be run": ("    if hardened is None:\n", "    if False:\n"),
    "naive need not be run": ("    if naive is None:\n", "    if False:\n"),
    "naive is not looked at": ("        reasons += _why_naive_proves_nothing(naive)\n", "        pass\n"),
    "harm is not broken": ("    if broken:\n", "    if False:\n"),
    "harm is broken only beside a naive run": ("    if broken:\n", "    if broken and naive is not None:\n"),
    "a fault that never struck is not said": ('        if fault["unreached"]:\n', "        if False:\n"),
    "a fault whose effect nobody saw is not said": ('        if fault["unseen"]:\n', "        if False:\n"),
    "whether naive was struck is not asked": ("for result in (naive, hardened) if", "for result in (hardened,) if"),
    "whether hardened was struck is not asked": ("for result in (naive, hardened) if", "for result in (naive,) if"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_planted_in_the_verdict_is_noticed(bug: str) -> None:
    was, becomes = PLANTED[bug]
    try:
        noticed = wrong(with_bug(outcome, was, becomes))
    except AttributeError as error:  # it looks at a run that is not there
        noticed = [str(error)]
    assert noticed


def test_nothing_is_noticed_where_no_bug_is_planted() -> None:
    assert wrong(with_bug(outcome, "def judge(", "def judge(")) == []


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_the_sentence_of_a_proven_run_begins_with_what_was_counted_and_under_what() -> None:
    text = outcome.summary("proven", SCHEDULE, [naive(), hardened()])
    assert text.startswith("No double charge, no lost event in 6 faults of 6 kinds (3 SIGKILLs).")
    assert "the naive service charged 2 orders twice and lost 2 orders" in text
    assert text.endswith("as the schedule predicts: 1.")


def test_the_sentence_of_any_other_run_says_what_struck_too() -> None:
    begin = "6 faults of 6 kinds (3 SIGKILLs) struck. "
    assert outcome.summary("broken", SCHEDULE, [naive(), hardened()]).startswith(f"{begin}The hardened consumer broke")
    assert outcome.summary("inconclusive", SCHEDULE, [hardened()]).startswith(f"{begin}This run proves nothing")
    fewer = outcome.summary("inconclusive", SCHEDULE, [missed(hardened(), "slow-charge")])
    assert fewer.startswith("5 faults of 5 kinds (3 SIGKILLs) struck."), "what struck, not what was planned"
