"""`onceward demo`: run one demonstration, and judge whether what it claims did happen."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

from onceward_proof.alongside import service_folder
from onceward_proof.demos import DEMOS


def demo(name: str, *, fast: bool = False, as_json: bool = False) -> int:
    """0: all that it claims was seen. 1: not so."""
    sys.path.insert(0, str(service_folder()))  # from here on `payments` can be imported
    from onceward_proof.demos.actor import Missed  # noqa: PLC0415
    from onceward_proof.demos.narrator import Narrator  # noqa: PLC0415
    from onceward_proof.demos.stage import open_stage  # noqa: PLC0415

    module, title = DEMOS[name]
    narrator = Narrator(quiet=as_json, fast=fast)
    narrator.say(f"[bold]{name}[/bold]: {title}")
    missed = ""
    with open_stage(narrator) as stage:
        perform = import_module(f"onceward_proof.demos.{module}").perform
        try:
            perform(stage)
        except Missed as error:
            missed = str(error)
            _show_log(stage.log)
    claims, evidence = stage.claims, stage.evidence
    ok = not missed and bool(claims) and all(held for _, held in claims)
    narrator.evidence(evidence["naive"], evidence["hardened"])
    for what, held in claims:
        narrator.verdict(what, held)
    if missed:
        narrator.verdict(f"the story broke off: {missed}", False)
    if as_json:
        document = {
            "demo": name,
            "steps": [step.to_json() for step in narrator.steps],
            "evidence": evidence,
            "claims": [{"what": what, "held": held} for what, held in claims],
            "missed": missed,
            "ok": ok,
        }
        print(json.dumps(document, indent=2))
    return 0 if ok else 1


def _show_log(log: Any) -> None:
    if log.exists():
        sys.stderr.write("".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-20:]))
