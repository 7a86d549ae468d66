"""The schedule: made from a seed, written, read, replayed; and the orders that it is made for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proof.prove_run import write_schedule

from onceward.errors import UsageError
from onceward_proof.prove.faults import AIMED, GLOBAL, PASSAGES, PLACING_MS_MAX, aimed_faults, kills, timed_faults
from onceward_proof.prove.schedule import Aimed, Schedule, make_schedule, read_schedule
from onceward_proof.prove.workload import make_orders, read_orders
from onceward_proof.workers.setting import QUEUE_NAMES, QueueName

ONE_ORDER = """{"version": 1, "seed": 1, "queue": "pgmq", "orders": [{"id": "A", "amount": 1}],
 "aimed": [{"fault": "%s", "order": "%s"}], "timed": []}"""


def schedule_of(orders: int, seed: int) -> Schedule:
    return make_schedule(make_orders(orders, seed), seed, "pgmq")


def test_the_same_seed_makes_the_same_schedule_and_another_seed_another() -> None:
    assert schedule_of(200, 7) == schedule_of(200, 7)
    assert schedule_of(200, 7) != schedule_of(200, 8)


def test_a_thousand_orders_meet_every_fault_and_more_than_three_hundred_kills() -> None:
    schedule = schedule_of(1000, 1)
    planned = schedule.planned()
    assert set(planned) == {*AIMED, *GLOBAL, "kill-random"}
    assert kills(planned) >= 300
    assert planned["kill-random"] >= 50


@pytest.mark.parametrize("queue", QUEUE_NAMES)
def test_a_schedule_has_all_faults_of_its_queue_and_no_other(queue: QueueName, tmp_path: Path) -> None:
    schedule = make_schedule(make_orders(120, 3), 3, queue)
    assert set(schedule.planned()) == {*aimed_faults(queue), *timed_faults(queue)}
    write_schedule(schedule, tmp_path / "schedule.json")
    assert read_schedule(tmp_path / "schedule.json") == schedule


@settings(max_examples=40, deadline=None)
@given(st.integers(min_value=1, max_value=400), st.integers(min_value=0, max_value=10_000))
def test_the_faults_of_an_order_can_all_be_reached(orders: int, seed: int) -> None:
    chains: dict[str, list[str]] = {}
    for entry in schedule_of(orders, seed).aimed:
        chains.setdefault(entry.order, []).append(entry.fault)
    for chain in chains.values():
        places = [(AIMED[name].boundary, AIMED[name].message_type) for name in chain]
        assert len(places) == len(set(places)), "two faults at one passage"
        assert [PASSAGES[name] for name in chain] == sorted(PASSAGES[name] for name in chain)
        assert sum(name.startswith("kill") for name in chain) <= 3
        assert not any(AIMED[name].last for name in chain[:-1]), "a fault after the order is lost or held"


def test_a_written_schedule_is_read_back_the_same(tmp_path: Path) -> None:
    schedule = schedule_of(120, 3)
    write_schedule(schedule, tmp_path / "schedule.json")
    assert read_schedule(tmp_path / "schedule.json") == schedule
    assert '    {"fault": "kill-' in (tmp_path / "schedule.json").read_text(encoding="utf-8"), "one fault per line"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a schedule"),
        ('{"version": 99}', "version 99"),
        ("[]", "version None"),
        ('{"version": 1, "seed": 1}', "orders"),
        (ONE_ORDER % ("meteor", "A"), "unknown fault 'meteor'"),
        (ONE_ORDER % ("kill-at-request", "B"), "unknown order 'B'"),
        (ONE_ORDER % ("cut-at-ack-charge", "A"), "cut-at-ack-charge cannot happen on pgmq"),
        ((ONE_ORDER % ("kill-at-request", "A")).replace("pgmq", "pigeon"), "unknown queue 'pigeon'"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_schedule_is_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_schedule(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,price\nA,1\n", "missing: amount"),
        ("", "line 1 must name the columns"),
        ("id,amount\n", "holds no orders"),
        ("id,amount\nA,100\nA,200\n", r"line 3: the order 'A' is there already, in line 2"),
        ("id,amount\nA,0\n", "line 2: the amount must be from 1"),
        ("id,amount\nA,-5\n", "line 2: the amount must be from 1"),
        ("id,amount\nA,12.50\n", "line 2: the amount must be a whole number"),
        ("id,amount\n,12\n", "line 2: an order's id"),
        ("id,amount\nA\n", "line 2: the amount must be a whole number"),
    ],
)
def test_a_wrong_orders_file_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "orders.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_orders(tmp_path / "orders.csv")


def test_orders_are_read_from_a_csv_with_other_columns_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("\ufeffid,who,amount\nA-1,Ann,1200\nÄ-2,Bo,5\n", encoding="utf-8")
    assert [tuple(order) for order in read_orders(tmp_path / "orders.csv")] == [("A-1", 1200), ("Ä-2", 5)]


def test_a_missing_orders_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_orders(tmp_path / "none.csv")


def test_a_schedule_of_version_1_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(ONE_ORDER % ("kill-at-request", "A"), encoding="utf-8")
    assert read_schedule(tmp_path / "s.json").aimed == (Aimed("kill-at-request", "A"),)


def test_a_fault_at_a_random_instant_keeps_that_instant(tmp_path: Path) -> None:
    """Drawn with the schedule, and not while it runs: a replay strikes at the same one."""
    schedule = schedule_of(200, 7)
    delays = [entry.delay_ms for entry in schedule.aimed if entry.fault == "kill-while-placing"]
    assert len(set(delays)) == len(delays) > 1
    assert all(0 <= delay <= PLACING_MS_MAX for delay in delays)
    assert {entry.delay_ms for entry in schedule.aimed if entry.fault != "kill-while-placing"} == {0.0}
    write_schedule(schedule, tmp_path / "s.json")
    armed = read_schedule(tmp_path / "s.json").armed().values()
    assert sorted(fault.delay_ms for fault in armed if fault.delay_ms) == sorted(delays)
