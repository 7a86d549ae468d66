"""What the explorer saw of the passages, or of planted bugs: on a terminal, and as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from onceward.errors import UsageError
from onceward_proof.explorer.passages import ASSUMED, PASSAGES, Bound, Passage
from onceward_proof.explorer.planted_bugs import PLANTED, PlantedBug
from onceward_proof.explorer.promises import Promise
from onceward_proof.explorer.search import SearchResult, search
from onceward_proof.explorer.space import StateSpace
from onceward_proof.explorer.story import tell
from onceward_proof.report.made import made

Say = Callable[[str], None]


class PassageResult(NamedTuple):
    """What one passage came to. `story`: the shortest path to a broken promise; empty when all are kept."""

    passage: Passage
    search: SearchResult
    story: list[str]


def explore(say: Say, *, states_max: int = 0, file: Path | None = None, passages: Sequence[Passage] = PASSAGES) -> int:
    """Every passage is tried to its end, or until `states_max` states (0: no limit). Returns 1 on a violation, else 0."""
    started = time.perf_counter()
    results: list[PassageResult] = []
    for passage in passages:
        budget = states_max - sum(result.search.states for result in results)
        # 0 means no limit, so a budget that is used up must not be passed on.
        if states_max and budget <= 0:
            break
        results.append(explore_passage(passage, states_max=budget if states_max else 0))
        _say_result(say, results[-1])
    document = as_json(results, time.perf_counter() - started, complete=len(results) == len(passages))
    _say_sum(say, document)
    if file is not None:
        _write(say, file, {"made": made(with_postgres=False)} | document)
    return 1 if document["violations"] else 0


def explore_passage(passage: Passage, *, states_max: int = 0, only: Promise | None = None) -> PassageResult:
    """One passage is tried, and the path to a broken promise told. `only`: the one promise that is looked at."""
    space = StateSpace(passage)
    result = search(space, states_max=states_max, only=only, progress=partial(_show_progress, passage.name))
    _show_line("")
    return PassageResult(passage, result, tell(space, result.path) if result.broken else [])


def _write(say: Say, file: Path | None, document: Any) -> None:
    if file is not None:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        say(f"JSON: {file}")


def as_json(results: list[PassageResult], seconds: float, *, complete: bool) -> dict[str, Any]:
    """The evidence, for programs. Every passage goes at least as far as `bound`, and each as far as its own says."""
    bounds = [result.passage.bound for result in results]
    return {
        "states": sum(result.search.states for result in results),
        "seconds": round(seconds, 2),
        "exhausted": complete and all(result.search.exhausted for result in results),
        "violations": [
            {"invariant": result.search.broken, "passage": result.passage.name, "story": result.story}
            for result in results
            if result.search.broken
        ],
        # The smallest of each: the largest would be a world that no passage has been to.
        "bound": {name: min((getattr(bound, name) for bound in bounds), default=0) for name in Bound._fields},
        "assumed": list(ASSUMED),
        "passages": [
            {
                "name": result.passage.name,
                "bound": result.passage.bound._asdict(),
                "states": result.search.states,
                "moves": result.search.moves,
                "seconds": round(result.search.seconds, 2),
                "exhausted": result.search.exhausted,
            }
            for result in results
        ],
    }


def explore_planted(name: str, say: Say, *, file: Path | None = None) -> int:
    """The planted bug (or `all`) is found, and its story told; `list` names them. Returns 0 when found, else 1."""
    if name == "list":
        for known, bug in PLANTED.items():
            say(f"{known:26} {bug.what}")
        return 0
    if name != "all" and name not in PLANTED:
        raise UsageError(f"--planted: there is no bug {name!r}; there are: {', '.join(PLANTED)} (or all, or list)")
    results = {known: find(known, bug) for known, bug in PLANTED.items() if name in ("all", known)}
    for known, result in results.items():
        _say_planted(say, known, result)
    _write(say, file, [_planted_json(known, result) for known, result in results.items()])
    missed = [known for known, result in results.items() if not result.search.broken]
    say(f"{len(results) - len(missed)} of {len(results)} planted bugs found" + "".join(f"; missed: {m}" for m in missed))
    return 1 if missed else 0


def find(name: str, bug: PlantedBug) -> PassageResult:
    """The shortest path on which this bug breaks its promise."""
    return explore_passage(bug.passage(name), only=bug.promise)


def _planted_json(name: str, result: PassageResult) -> dict[str, Any]:
    broken = result.search.broken
    return {"planted": name, "found": bool(broken), "invariant": broken or "", "story": result.story}


def _say_planted(say: Say, name: str, result: PassageResult) -> None:
    say(f"{name}: {PLANTED[name].what}")
    if result.search.broken:
        _say_story(say, result)
    else:
        say(f"  NOT FOUND in {result.search.states:,} states")
    say("")


def _say_result(say: Say, result: PassageResult) -> None:
    how = "all of them" if result.search.exhausted else "not all of them"
    counts = zip(("worker", "message", "fault", "redrive", "relay"), result.passage.bound, strict=True)
    bound = ", ".join(_counted(number, noun) for noun, number in counts)
    say(f"{result.passage.name}: {result.search.states:,} states ({how}) in {result.search.seconds:.1f} s; {bound}")
    if result.search.broken:
        _say_story(say, result)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _say_story(say: Say, result: PassageResult) -> None:
    say(f"  BROKEN after {len(result.story)} steps: {result.search.broken}")
    for number, sentence in enumerate(result.story, 1):
        say(f"  {number:3}. {sentence}")


def _say_sum(say: Say, document: dict[str, Any]) -> None:
    how = "exhaustive within these bounds"
    if not document["exhausted"]:
        how = f"stopped early, in passage {len(document['passages'])}: not exhaustive"
    violations = f"violations: {len(document['violations'])}" if document["violations"] else "no violation"
    say(f"assumed: {'; '.join(document['assumed'])}")
    say(f"{document['states']:,} distinct states in {document['seconds']:.1f} s, {how}; {violations}")


def _show_progress(name: str, states: int, frontier: int) -> None:
    _show_line(f"{name}: {states:,} states, {frontier:,} at this depth")


def _show_line(text: str) -> None:
    """In place of the line that is shown, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
