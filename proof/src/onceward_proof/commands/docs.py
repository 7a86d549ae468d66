"""`onceward docs refresh`: the tables of docs/guarantees.md, from the runs that are kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onceward.commands.arguments import say, warn
from onceward.errors import UsageError

EXAMPLES = """\
examples:
  onceward prove --seed 1 --json docs/evidence/prove.json
  onceward prove --ablate --orders 300 --seed 7 --json docs/evidence/ablation.json
  onceward explore --json docs/evidence/explore.json
  onceward prove --every-syscall --json docs/evidence/syscalls.json
  onceward prove --for 30m --seed 31 --json docs/evidence/soak.json
  onceward docs refresh
  onceward docs refresh --check        exit 1 when a table is not what its evidence says,
                                       or the core is not the one that made the evidence
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser("docs", help="write the tables of the documentation from runs", epilog=EXAMPLES)
    parser.add_argument("action", choices=["refresh"])
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where guarantees.md is (default: docs)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something would change")
    parser.set_defaults(perform=docs)


def docs(arguments: Any) -> int:
    from onceward_proof.report.docs import outdated, refresh  # noqa: PLC0415 - only when it is asked for

    file = arguments.folder / "guarantees.md"
    if not file.exists():
        raise UsageError(f"there is no {file}: call it from the checkout, or name the folder with --folder")
    evidence = arguments.folder / "evidence"
    before = file.read_text(encoding="utf-8")
    after = refresh(before, evidence)
    old = outdated(evidence)
    for run in old:
        warn(f"{run}, then `onceward docs refresh`")
    if before == after:
        say(f"{file}: {'its tables are what its evidence says' if old else 'as it should be'}")
        return 1 if old and arguments.check else 0
    if arguments.check:
        say(f"{file}: its tables are not what docs/evidence says: run `onceward docs refresh`")
        return 1
    file.write_text(after, encoding="utf-8")
    say(f"{file}: written")
    return 0
