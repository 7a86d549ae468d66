"""`onceward docs refresh`: the tables of the pages in docs, from the runs that are kept beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onceward.commands.arguments import say, warn
from onceward.errors import UsageError
from onceward_proof.report.kept_runs import KEPT_RUNS

EXAMPLES = "\n".join(
    (
        "examples:",
        *(f"  {command} --json docs/evidence/{run}.json" for run, command in KEPT_RUNS.items()),
        "  onceward docs refresh",
        "  onceward docs refresh --check        exit 1 when a table is not what its",
        "                                       evidence says, when a run is missing, or",
        "                                       when the core is not the one that made it",
        "",
    )
)


def add_commands(commands: Any) -> None:
    parser = commands.add_parser("docs", help="write the tables of the documentation from runs", epilog=EXAMPLES)
    parser.add_argument("action", choices=["refresh"])
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where pages and evidence are (default: docs)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something would change")
    parser.set_defaults(perform=docs)


def docs(arguments: Any) -> int:
    from onceward_proof.report.docs import marked_pages, missing, outdated, refresh  # noqa: PLC0415 - only when it is asked for

    pages = marked_pages(arguments.folder)
    if not pages:
        raise UsageError(
            f"no page in {arguments.folder} has a table: call it from the checkout, or name the folder (--folder)"
        )
    evidence = arguments.folder / "evidence"
    old = missing(evidence) + outdated(evidence)
    for run in old:
        warn(f"{run}, then `onceward docs refresh`")
    wrong = False
    for page in pages:
        before = page.read_text(encoding="utf-8")
        after = refresh(before, evidence)
        wrong = wrong or before != after
        if before == after:
            say(f"{page}: {'its tables are what its evidence says' if old else 'as it should be'}")
        elif arguments.check:
            say(f"{page}: its tables are not what docs/evidence says: run `onceward docs refresh`")
        else:
            page.write_text(after, encoding="utf-8")
            say(f"{page}: written")
    return 1 if arguments.check and (old or wrong) else 0
