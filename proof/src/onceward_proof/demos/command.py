"""`onceward demo`: run one demonstration, and judge whether what it claims did happen."""

from __future__ import annotations

import json
import sys
from importlib import import_module

from rich.console import Console

from onceward_proof.demos import DEMOS
from onceward_proof.demos.demonstration import Evidence, open_sides
from onceward_proof.demos.narrator import Narrator
from onceward_proof.demos.worker_process import Missed
from onceward_proof.workers.fork import end_of


def run_demo(name: str, *, fast: bool = False, as_json: bool = False) -> int:
    """0: all that it claims was seen. 1: not so."""
    module, title = DEMOS[name]
    script = import_module(f"onceward_proof.demos.{module}")
    narrator = Narrator(Console(highlight=False, quiet=as_json), fast=fast)
    narrator.console.print(f"[bold]{name}[/bold]: {title}")
    evidence: dict[str, Evidence] = {"naive": {}, "hardened": {}}
    missed = ""
    with open_sides(narrator) as sides:
        try:
            for side in sides:
                evidence[side.name] = getattr(script, side.name)(side)
                side.kill_workers()
        except Missed as error:
            missed = str(error)
            sys.stderr.write(end_of(sides[0].log))
    claims = [claim for side in sides for claim in side.claims]
    ok = not missed and bool(claims) and all(held for _, held in claims)
    narrator.evidence(evidence["naive"], evidence["hardened"])
    for what, held in claims:
        narrator.verdict(what, held)
    if missed:
        narrator.verdict(f"the story broke off: {missed}", False)
    if as_json:
        document = {
            "demo": name,
            "steps": narrator.steps,
            "evidence": evidence,
            "claims": [{"what": what, "held": held} for what, held in claims],
            "missed": missed,
            "ok": ok,
        }
        print(json.dumps(document, indent=2))
    return 0 if ok else 1
