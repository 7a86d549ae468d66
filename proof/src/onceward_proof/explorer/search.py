"""Breadth first over a space of worlds: the first path to a broken one is a shortest one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from onceward_proof.explorer.promises import Promise
from onceward_proof.explorer.space import StateSpace

PROGRESS_EVERY: Final = 20_000
Progress = Callable[[int, int], None]  # states so far, and those of this depth


class SearchResult(NamedTuple):
    """How much was seen; if a world was broken, which promise, and the worlds on the path to it, the first included."""

    states: int
    moves: int
    seconds: float
    exhausted: bool
    broken: Promise | None = None
    path: tuple[int, ...] = ()


def search(
    space: StateSpace, *, states_max: int = 0, only: Promise | None = None, progress: Progress | None = None
) -> SearchResult:
    """Every world of the space is judged, nearest first. `only`: one promise to look at; `states_max`: 0 is no limit."""
    # Nothing here is a cycle, and there is much of it: the collector would only walk through it again and again.
    gc.disable()
    try:
        return _Search(space, progress or (lambda _states, _frontier: None)).run(states_max, only)
    finally:
        gc.enable()


class _Search:
    """One search: which worlds were met, and from where each was reached first."""

    def __init__(self, space: StateSpace, progress: Progress) -> None:
        self.space = space
        self.progress = progress
        self.predecessors: dict[int, int] = {}  # the first world is its own
        self.moves = 0
        self.started = time.perf_counter()

    def run(self, states_max: int, only: Promise | None) -> SearchResult:
        for world in self._worlds():
            broken = self.space.broken(world)
            if broken is not None and only in (None, broken):
                return self._result(exhausted=False)._replace(broken=broken, path=self._path(world))
            if len(self.predecessors) == states_max:
                return self._result(exhausted=False)
        return self._result(exhausted=True)

    def _worlds(self) -> Iterator[int]:
        predecessors, successors = self.predecessors, self.space.successors
        first = self.space.first()
        predecessors[first] = first
        frontier = [first]
        yield first
        while frontier:
            reached: list[int] = []
            for done, world in enumerate(frontier):
                if not done % PROGRESS_EVERY:
                    self.progress(len(predecessors), len(frontier))
                for after in successors(world):
                    self.moves += 1
                    if after not in predecessors:
                        predecessors[after] = world
                        reached.append(after)
                        yield after
            frontier = reached

    def _result(self, *, exhausted: bool) -> SearchResult:
        return SearchResult(len(self.predecessors), self.moves, time.perf_counter() - self.started, exhausted)

    def _path(self, world: int) -> tuple[int, ...]:
        path = [world]
        while self.predecessors[path[-1]] != path[-1]:
            path.append(self.predecessors[path[-1]])
        return tuple(reversed(path))
