"""Runs the passages, or a planted bug, and says what was seen: on a terminal, and as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onceward.errors import UsageError
from onceward_proof.explorer.passages import ASSUMED, DEEPER, PASSAGES
from onceward_proof.explorer.planted import PLANTED, Planted
from onceward_proof.explorer.search import Bound, Found, Passage, Space, search
from onceward_proof.explorer.story import tell

Say = Callable[[str], None]


class Explored(NamedTuple):
    """What one passage came to. `story`: the shortest way to a broken promise; empty when all are kept."""

    passage: Passage
    found: Found
    story: tuple[str, ...]


def explore(say: Say, *, states_max: int = 0, file: Path | None = None, passages: Sequence[Passage] = PASSAGES) -> int:
    """Every passage is tried to its end, or until `states_max` states (0: no limit). Returns 1 on a violation, else 0."""
    started = time.perf_counter()
    done: list[Explored] = []
    for passage in passages:
        left = states_max - sum(explored.found.states for explored in done) if states_max else 0
        if states_max and left <= 0:
            break
        done.append(_explore(passage, left))
        _say_explored(say, done[-1])
    document = as_json(done, time.perf_counter() - started, complete=len(done) == len(passages))
    _say_sum(say, document)
    if file is not None:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        say(f"JSON: {file}")
    return 1 if document["violations"] else 0


def chosen(*, deep: bool) -> Sequence[Passage]:
    return DEEPER if deep else PASSAGES


def _explore(passage: Passage, states_max: int) -> Explored:
    space = Space(passage)
    found = search(space, states_max=states_max, progress=_progress(passage.name))
    _clear_line()
    return Explored(passage, found, tuple(tell(space, found.way)) if found.broken else ())


def as_json(done: list[Explored], seconds: float, *, complete: bool) -> dict[str, Any]:
    """The evidence, for programs."""
    bounds = [explored.passage.bound for explored in done]
    return {
        "states": sum(explored.found.states for explored in done),
        "seconds": round(seconds, 2),
        "exhausted": complete and all(explored.found.exhausted for explored in done),
        "violations": [
            {"invariant": explored.found.broken, "passage": explored.passage.name, "story": list(explored.story)}
            for explored in done
            if explored.found.broken
        ],
        "bound": {name: max((getattr(bound, name) for bound in bounds), default=0) for name in Bound._fields},
        "assumed": list(ASSUMED),
        "passages": [
            {
                "name": explored.passage.name,
                "bound": explored.passage.bound._asdict(),
                "states": explored.found.states,
                "moves": explored.found.moves,
                "seconds": round(explored.found.seconds, 2),
                "exhausted": explored.found.exhausted,
            }
            for explored in done
        ],
    }


# ---- planted bugs ----------------------------------------------------------------------------------------------------


def explore_planted(name: str, say: Say, *, file: Path | None = None) -> int:
    """The planted bug (or `all`) is found, and its story told; `list` names them. Returns 0 when found, else 1."""
    if name == "list":
        for known, bug in PLANTED.items():
            say(f"{known:26} {bug.what}")
        return 0
    if name != "all" and name not in PLANTED:
        raise UsageError(f"--planted: there is no bug {name!r}; there are: {', '.join(PLANTED)} (or all, or list)")
    chosen = PLANTED if name == "all" else {name: PLANTED[name]}
    results = {known: find(known, bug) for known, bug in chosen.items()}
    for known, explored in results.items():
        _say_planted(say, known, chosen[known], explored)
    if file is not None:
        file.write_text(json.dumps([_planted_json(*item) for item in results.items()], indent=2) + "\n", encoding="utf-8")
        say(f"JSON: {file}")
    missed = [known for known, explored in results.items() if not explored.found.broken]
    say(f"{len(results) - len(missed)} of {len(results)} planted bugs found" + "".join(f"; missed: {m}" for m in missed))
    return 1 if missed else 0


def find(name: str, bug: Planted) -> Explored:
    """The shortest way in which this bug breaks its promise."""
    passage = bug.passage(name)
    space = Space(passage)
    found = search(space, only=bug.promise)
    return Explored(passage, found, tuple(tell(space, found.way)) if found.broken else ())


def _planted_json(name: str, explored: Explored) -> dict[str, Any]:
    found = explored.found
    return {"planted": name, "found": bool(found.broken), "invariant": found.broken, "story": list(explored.story)}


def _say_planted(say: Say, name: str, bug: Planted, explored: Explored) -> None:
    say(f"{name}: {bug.what}")
    if explored.found.broken:
        _say_story(say, explored)
    else:
        say(f"  NOT FOUND in {explored.found.states:,} states")
    say("")


# ---- words -----------------------------------------------------------------------------------------------------------


def _say_explored(say: Say, explored: Explored) -> None:
    found, bound = explored.found, explored.passage.bound
    how = "all of them" if found.exhausted else "not all of them"
    say(f"{explored.passage.name}: {found.states:,} states ({how}) in {found.seconds:.1f} s; {_bound_words(bound)}")
    if found.broken:
        _say_story(say, explored)


def _bound_words(bound: Bound) -> str:
    counts = zip(("worker", "message", "fault", "redrive", "relay"), bound, strict=True)
    return ", ".join(_counted(number, what) for what, number in counts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _say_story(say: Say, explored: Explored) -> None:
    say(f"  BROKEN after {len(explored.story)} steps: {explored.found.broken}")
    for number, sentence in enumerate(explored.story, 1):
        say(f"  {number:3}. {sentence}")


def _say_sum(say: Say, document: dict[str, Any]) -> None:
    begun = len(document["passages"])
    how = (
        "exhaustive within these bounds" if document["exhausted"] else f"stopped early, in passage {begun}: not exhaustive"
    )
    violations = f"violations: {len(document['violations'])}" if document["violations"] else "no violation"
    say(f"assumed: {'; '.join(document['assumed'])}")
    say(f"{document['states']:,} distinct states in {document['seconds']:.1f} s, {how}; {violations}")


def _progress(name: str) -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(states: int, frontier: int) -> None:
        sys.stderr.write(f"\r\x1b[K{name}: {states:,} states, {frontier:,} at this depth")
        sys.stderr.flush()

    return show


def _clear_line() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
