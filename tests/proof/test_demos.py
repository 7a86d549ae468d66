"""Every demonstration shows what it claims; and with the piece taken out that it is about, it says that it does not.

The demonstrations run as a user would run them, in processes of their own, two at a time: one for each
of the tests that will be run, in their order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import in_memory
from tests.proof.prove_run import ROOT, sabotaged
from tests.proof.test_prove_can_fail import ALWAYS_TAKEN, FENCE, FINISH, TAKE

from onceward_proof.demos import DEMOS, FORMER_NAMES

SECONDS_MAX = 60
IN_WINDOW = "\n       AND clock_timestamp() < started_at + make_interval(secs => %(callable_seconds)s) AS callable"
POSTPONE = "UPDATE {schema}.outbox\n   SET attempts = attempts + 1, error = %(error)s,\n"
POSTPONE += "       retry_at = clock_timestamp() + make_interval(secs => %(delay_seconds)s)\n"

# Demonstration -> (what is taken out, file, was, becomes), and the claim that must fail.
SABOTAGES = {
    "double-charge": (("sql/inbox.sql", TAKE, ALWAYS_TAKEN), "turned away before any code"),
    "crash-after-commit": (("sql/inbox.sql", TAKE, ALWAYS_TAKEN), "every account is booked once"),
    "dropped-publish": (("sql/outbox.sql", POSTPONE, "DELETE FROM {schema}.outbox\n"), "both orders were charged"),
    "lost-confirmation": (("outbox.py", '        id=row["id"],\n', ""), "the card charged once"),
    "select-then-act": (("sql/inbox.sql", TAKE, ALWAYS_TAKEN), "of the two, one took the message"),
    "textbook": (("inbox.py", 'if row.state != "pending":', "if True:"), "resumed: charged once, paid"),
    "zombie": (("sql/inbox.sql", FINISH + FENCE, FINISH), "refused at the domain write"),
    "key-expired": (("sql/intents.sql", IN_WINDOW, " AS callable"), "one charge for each order"),
}


@dataclass(frozen=True)
class Shown:
    """What one demonstration ended with."""

    code: int
    said: str
    warned: str
    document: Mapping[str, Any]

    def evidence(self, side: str, name: str) -> Any:
        return self.document["evidence"][side][name]

    def broken(self) -> list[str]:
        return [claim["what"] for claim in self.document["claims"] if not claim["held"]]


def temporary_folder() -> str:
    with in_memory():
        return tempfile.gettempdir()


TEMPORARY = temporary_folder()


def onceward(*arguments: str, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "PYTHONWARNINGS": "default", "TMPDIR": TEMPORARY}
    command = [sys.executable, "-m", "onceward", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


def show(name: str, source: Path = ROOT) -> Shown:
    done = onceward("demo", name, "--fast", "--json", source=source)
    return Shown(done.returncode, done.stdout + done.stderr, done.stderr, json.loads(done.stdout or "{}"))


def show_sabotaged(name: str, folder: Path) -> Shown:
    return show(name, sabotaged(folder, *SABOTAGES[name][0]))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Shown]]]:
    """One run for each of this module's tests that will be run."""
    wanted: dict[str, Future[Shown]] = {}
    with ThreadPoolExecutor(max_workers=2) as pool:
        for item in request.session.items:
            if item.path == Path(__file__) and isinstance(item, pytest.Function) and "demo" in _parameters(item):
                name = _parameters(item)["demo"]
                if item.originalname.startswith("test_with"):
                    wanted[f"sabotaged {name}"] = pool.submit(
                        show_sabotaged, name, tmp_path_factory.mktemp(name) / "scratch"
                    )
                elif name not in wanted:
                    wanted[name] = pool.submit(show, name)
        yield wanted


def _parameters(item: pytest.Function) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _check_double_charge(shown: Shown) -> None:
    assert shown.evidence("naive", "cents_charged") == 10_000
    assert len(shown.evidence("naive", "charge_ids")) == 2
    told = [step["who"] for step in shown.document["steps"]]
    assert told[:7] == ["worker-1", "worker-1", "worker-1", "queue", "worker-2", "worker-2", "worker-1"]
    assert shown.evidence("hardened", "cents_charged") == shown.evidence("hardened", "cents_ordered") == 5000


def _check_crash_after_commit(shown: Shown) -> None:
    assert (shown.evidence("naive", "cents_booked"), shown.evidence("naive", "wrong_balances")) == (55_000, 1)
    assert (shown.evidence("hardened", "cents_booked"), shown.evidence("hardened", "wrong_balances")) == (50_000, 0)
    rates = [shown.evidence("hardened", f"dedup_check_hit_rate_{when}") for when in ("before", "after")]
    assert rates == [0.0, round(1 / 11, 4)]


def _check_dropped_publish(shown: Shown) -> None:
    assert (shown.evidence("naive", "lost"), shown.evidence("hardened", "lost")) == (2, 0)
    assert [shown.evidence("hardened", f"outbox_rows_{when}") for when in ("at_the_worst", "left")] == [2, 0]


def _check_lost_confirmation(shown: Shown) -> None:
    counts = ("messages", "message_ids")
    assert [shown.evidence("naive", name) for name in counts] == [2, 2]
    assert [shown.evidence("hardened", name) for name in counts] == [2, 1]
    assert [len(shown.evidence(side, "charge_ids")) for side in ("naive", "hardened")] == [2, 1]


def _check_select_then_act(shown: Shown) -> None:
    assert [len(shown.evidence(side, "charge_ids")) for side in ("naive", "hardened")] == [2, 1]
    assert shown.evidence("hardened", "claimed") == shown.evidence("hardened", "turned_away_in_flight") == 1


def _check_textbook(shown: Shown) -> None:
    assert [shown.evidence(side, "charges") for side in ("naive", "hardened")] == [0, 1]
    assert [shown.evidence(side, "lost") for side in ("naive", "hardened")] == [1, 0]


def _check_zombie(shown: Shown) -> None:
    assert [shown.evidence(side, "order_paid_events") for side in ("naive", "hardened")] == [2, 1]
    assert shown.evidence("hardened", "zombie_refused") == 1


def _check_key_expired(shown: Shown) -> None:
    assert shown.evidence("naive", "charges_per_order") == {"O-123": 2}
    assert shown.evidence("hardened", "charges_per_order") == {"O-123": 1, "O-124": 1}
    assert shown.evidence("hardened", "parked") == ["O-124 unknown"]


CHECKS = {
    "double-charge": _check_double_charge,
    "crash-after-commit": _check_crash_after_commit,
    "dropped-publish": _check_dropped_publish,
    "lost-confirmation": _check_lost_confirmation,
    "select-then-act": _check_select_then_act,
    "textbook": _check_textbook,
    "zombie": _check_zombie,
    "key-expired": _check_key_expired,
}


def test_every_demo_is_checked_and_sabotaged() -> None:
    assert list(DEMOS) == list(CHECKS) == list(SABOTAGES)


@pytest.mark.parametrize("demo", DEMOS)
def test_a_demo_shows_what_it_claims(demo: str, runs: dict[str, Future[Shown]]) -> None:
    shown = runs[demo].result()
    assert shown.code == 0, shown.said
    assert (shown.document["demo"], shown.document["ok"], shown.broken()) == (demo, True, [])
    assert shown.warned == ""
    assert all(step["what"] and step["who"] and step["seconds"] >= 0 for step in shown.document["steps"])
    seconds = [step["seconds"] for step in shown.document["steps"]]
    assert seconds == sorted(seconds), "its steps are not told in the order in which they happened"
    CHECKS[demo](shown)


@pytest.mark.parametrize("demo", SABOTAGES)
def test_with_its_fix_taken_out_a_demo_says_so(demo: str, runs: dict[str, Future[Shown]]) -> None:
    shown = runs[f"sabotaged {demo}"].result()
    assert shown.code == 1, shown.said
    assert shown.document["ok"] is False
    assert [what for what in shown.broken() if what.startswith("naive")] == []
    assert any(SABOTAGES[demo][1] in what for what in shown.broken()), shown.said
    assert shown.document["missed"] == ""


def test_an_unknown_demo_is_answered_with_the_list() -> None:
    for arguments in (["nonsense"], []):
        done = onceward("demo", *arguments)
        assert done.returncode == 2
        assert all(name in done.stderr for name in DEMOS)


@pytest.mark.parametrize(("former", "name"), FORMER_NAMES.items())
def test_a_demo_still_answers_to_its_former_name(former: str, name: str) -> None:
    shown = show(former)
    assert (shown.code, shown.document["demo"]) == (0, name)


def test_the_list_names_every_demo() -> None:
    done = onceward("demo", "--list", "--json")
    assert (done.returncode, [entry["name"] for entry in json.loads(done.stdout)]) == (0, list(DEMOS))
    assert all(name in onceward("demo", "--list").stdout for name in DEMOS)
