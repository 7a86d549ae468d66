"""The provider keeps an idempotency key for a day. Whoever retries later is a new customer to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any, Final

from onceward_proof.demos.actor import Actor, Told
from onceward_proof.demos.parts import HOUR_SECONDS, SCALED
from onceward_proof.demos.stage import Side, Stage, wait_until

OTHER: Final = {"id": "O-124", "amount": 5000}
DAY_AND_HOUR_SECONDS: Final = 25 * 3600


def perform(stage: Stage) -> None:
    stage.narrator.scene(
        "Naive: the right key, and a blind retry",
        "The message's id is the idempotency key, as it should be. The retry comes 25 hours later.",
    )
    _naive(stage, stage.naive)
    stage.exeunt()
    hours = SCALED.callable_seconds / HOUR_SECONDS
    stage.narrator.scene(
        "Hardened: past the window, look up, or hold; never call",
        "The provider's clock is moved by 25 h. Ours is the database's, which nobody fakes: so our profile of the",
        f"provider is scaled, 1 h = {HOUR_SECONDS:g} s: a key is good for {hours:g} h ({SCALED.callable_seconds:g} s).",
        "O-123: the provider can be asked. O-124: it cannot.",
    )
    _hardened(stage, stage.hardened)


def _naive(stage: Stage, side: Side) -> None:
    tell = stage.narrator.tell
    one = side.cast("blind-charge", "worker-1", "charged")
    side.place()
    _killed_after_the_charge(stage, one, "O-123")
    _wait_a_day(stage)
    two = side.cast("blind-charge", "worker-2")
    again = two.expect("received")
    tell("worker-2", f"receives the message (delivery {again['count']}), and calls with the same key", again["at"])
    charged = two.expect("charged")
    tell("provider", f"does not know the key: a new charge, {charged['charge']}", charged["at"])
    two.expect("acked")
    stage.evidence["naive"] = _evidence(side, orders=1)
    stage.claim("naive: the same key, two charges", len(side.charges()) == 2)


def _hardened(stage: Stage, side: Side) -> None:
    one = side.cast("scaled-charge", "worker-1", "charged")
    other = side.cast("scaled-charge", "worker-2", "charged", queue="unasked", lookup=False)
    side.place()
    _killed_after_the_charge(stage, one, "O-123")
    side.place(OTHER, queue="unasked")
    _killed_after_the_charge(stage, other, "O-124", start_clock=False)
    began = time.monotonic()
    _wait_a_day(stage)
    wait_until(began + SCALED.callable_seconds + 0.1)
    three = side.cast("scaled-charge", "worker-3")
    four = side.cast("scaled-charge", "worker-4", queue="unasked", lookup=False)
    _tell_ends(stage, three.expect("found", "charged"), four.expect("consumer.parked", "charged"))
    three.expect("acked")
    four.expect("acked")
    _judge(stage, side)


def _tell_ends(stage: Stage, asked: Told, unasked: Told) -> None:
    ends = []
    if asked["event"] == "found":
        ends.append((asked["at"], "worker-3", f"O-123: too old to call. Asks the provider: {asked['charge']}, recorded"))
    if unasked["event"] == "consumer.parked":
        ends.append((unasked["at"], "worker-4", f"O-124: too old to call, nobody to ask: parked as {unasked['reason']}"))
    for at, who, what in sorted(ends):
        stage.narrator.tell(who, what, at)


def _judge(stage: Stage, side: Side) -> None:
    parked = _parked(side)
    for row in parked:
        stage.narrator.tell("operator", f"onceward parked list: {row['subject']}  {row['reason']}  {row['detail']}")
    stage.evidence["hardened"] = _evidence(side, orders=2) | {"parked": [f"{p['subject']} {p['reason']}" for p in parked]}
    stage.claim("hardened: one charge for each order", side.charges_per_order() == {"O-123": 1, "O-124": 1})
    stage.claim("hardened: the one that could be looked up is paid", side.look(_STATUS_123) == "paid")
    stage.claim(
        "hardened: the other is held as unknown, and `onceward parked list` names it",
        [(row["subject"], row["reason"]) for row in parked] == [("O-124", "unknown")],
    )
    stage.claim("hardened: its intent says so too", side.look(_UNKNOWN) == 1)


_STATUS_123: Final = "SELECT status FROM orders WHERE id = 'O-123'"
_UNKNOWN: Final = "SELECT count(*) FROM onceward.intents WHERE state = 'unknown'"


def _killed_after_the_charge(stage: Stage, worker: Actor, order: str, *, start_clock: bool = True) -> None:
    charged = worker.expect("charged")
    worker.kill()
    if start_clock:
        stage.narrator.start_clock(at=charged["at"])
    what = f"{order}: charges the card: {charged['charge']}. SIGKILL, before it can record that"
    stage.narrator.tell(worker.name, what, charged["at"])


def _wait_a_day(stage: Stage) -> None:
    stage.provider.admin("clock", {"advance_seconds": DAY_AND_HOUR_SECONDS})
    stage.narrator.tell("provider", "25 hours later (its clock is moved): it has forgotten the key")


def _parked(side: Side) -> list[dict[str, Any]]:
    """What the command says, as an operator would run it."""
    command = [sys.executable, "-m", "onceward", "parked", "list", "--json", "--database", side.dsn]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(said.stdout)
    return rows


def _evidence(side: Side, *, orders: int) -> dict[str, Any]:
    return {"orders": orders, "charge_ids": side.charges(), "charges_per_order": side.charges_per_order()}
