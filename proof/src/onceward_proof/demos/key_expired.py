"""The provider keeps an idempotency key for a day. A later retry is a new request to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any, Final

from onceward_proof.demos.demonstration import UNASKED, Evidence, Side, Step, wait_until
from onceward_proof.demos.roles import blind_charge
from onceward_proof.demos.worker_process import WorkerProcess
from onceward_proof.prove.faults import Boundary
from onceward_proof.workers.reports import Note, Point, Report, Word
from onceward_proof.workers.worker import profile

OTHER: Final = {"id": "O-124", "amount": 5000}
DAY_AND_HOUR_SECONDS: Final = 25 * 3600
# The provider's promise, an hour told as 0.2 s: the database's clock, which judges an intent's age, is never faked.
HOUR_SECONDS: Final = 0.2
WINDOW_SECONDS: Final = 24 * HOUR_SECONDS


def naive(side: Side) -> Evidence:
    side.heading(
        "Naive: the right key, and a blind retry",
        "The message's id is the idempotency key, as it should be. The retry comes 25 hours later.",
    )
    one = side.start(blind_charge, "worker-1", Boundary.RESPONSE)
    side.place()
    _killed_after_the_charge(side, one, "O-123")
    _wait_a_day(side)
    two = side.start(blind_charge, "worker-2")
    side.see(two, Note.RECEIVED, "receives the message (delivery {it.count}), and calls with the same key")
    side.see(two, Boundary.RESPONSE, "does not know the key: a new charge, {it.charge}", who="provider")
    two.expect(Boundary.ACK_AFTER)
    side.claim("naive: the same key, two charges", len(side.charges()) == 2)
    return _evidence(side, orders=1)


def hardened(side: Side) -> Evidence:
    callable_seconds = profile(WINDOW_SECONDS).callable_seconds
    side.heading(
        "Hardened: past the window, look up, or hold; never call",
        "The provider's clock is moved by 25 h. Ours is the database's, which nobody fakes: so our profile of the",
        f"provider is scaled, 1 h = {HOUR_SECONDS:g} s: a key is good for {callable_seconds / HOUR_SECONDS:g} h "
        f"({callable_seconds:g} s).",
        "O-123: the provider can be asked. O-124: it cannot.",
    )
    one = _start(side, "worker-1", Boundary.RESPONSE)
    other = _start(side, "worker-2", Boundary.RESPONSE, queue=UNASKED, lookup=False)
    side.place()
    _killed_after_the_charge(side, one, "O-123")
    side.place(OTHER, queue=UNASKED)
    _killed_after_the_charge(side, other, "O-124", is_start=False)
    began = time.monotonic()
    _wait_a_day(side)
    wait_until(began + callable_seconds + 0.1)
    three = _start(side, "worker-3")
    four = _start(side, "worker-4", queue=UNASKED, lookup=False)
    _tell_ends(side, three.expect(Note.FOUND, Boundary.RESPONSE), four.expect(Point.PARKED, Boundary.RESPONSE))
    three.expect(Boundary.ACK_AFTER)
    four.expect(Boundary.ACK_AFTER)
    return _judge(side)


def _start(side: Side, name: str, *gates: Word, **setting: Any) -> WorkerProcess:
    """The hardened charge, at a provider that forgets keys in seconds."""
    return side.start("charge", name, *gates, window_seconds=WINDOW_SECONDS, **setting)


def _tell_ends(side: Side, asked: Report, unasked: Report) -> None:
    ends = []
    if asked.word is Note.FOUND:
        ends.append(Step(asked.at, "worker-3", f"O-123: too old to call. Asks the provider: {asked.charge}, recorded"))
    if unasked.word is Point.PARKED:
        ends.append(Step(unasked.at, "worker-4", f"O-124: too old to call, nobody to ask: parked as {unasked.reason}"))
    side.tell_in_order(*ends)


def _judge(side: Side) -> Evidence:
    parked = _parked(side)
    for row in parked:
        side.tell("operator", f"onceward parked list: {row['subject']}  {row['reason']}  {row['detail']}")
    side.claim("hardened: one charge for each order", side.charges_per_order() == {"O-123": 1, "O-124": 1})
    side.claim("hardened: the one that could be looked up is paid", side.look(_STATUS_123) == "paid")
    side.claim(
        "hardened: the other is held as unknown, and `onceward parked list` names it",
        [(row["subject"], row["reason"]) for row in parked] == [("O-124", "unknown")],
    )
    side.claim("hardened: its intent says so too", side.look(_UNKNOWN) == 1)
    return _evidence(side, orders=2) | {"parked": [f"{row['subject']} {row['reason']}" for row in parked]}


_STATUS_123: Final = "SELECT status FROM orders WHERE id = 'O-123'"
_UNKNOWN: Final = "SELECT count(*) FROM onceward.intents WHERE state = 'unknown'"


def _killed_after_the_charge(side: Side, worker: WorkerProcess, order: str, *, is_start: bool = True) -> None:
    what = f"{order}: charges the card: {{it.charge}}. SIGKILL, before it can record that"
    side.see(worker, Boundary.RESPONSE, what, is_start=is_start)
    worker.kill()


def _wait_a_day(side: Side) -> None:
    side.provider.admin("clock", {"advance_seconds": DAY_AND_HOUR_SECONDS})
    side.tell("provider", "25 hours later (its clock is moved): it has forgotten the key")


def _parked(side: Side) -> list[dict[str, Any]]:
    """What the command says, as an operator would run it."""
    command = [sys.executable, "-m", "onceward", "parked", "list", "--json", "--database", side.dsn]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(listed.stdout)
    return rows


def _evidence(side: Side, *, orders: int) -> Evidence:
    return {"orders": orders, "charge_ids": side.charges(), "charges_per_order": side.charges_per_order()}
