"""Breadth first over a space of worlds: the first path to a broken one is a shortest one."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

from onceward_proof.explorer.space import StateSpace

PROGRESS_EVERY: Final = 20_000
STUCK: Final = "stuck: from here it can never end"
Progress = Callable[[int, int], None]  # states so far, and those of this depth
Goal = Callable[[StateSpace, int], bool]


class SearchResult(NamedTuple):
    """How much was seen; if a world was broken, which promise, and the worlds on the path to it, the first included."""

    states: int
    moves: int
    seconds: float
    exhausted: bool
    broken: str = ""
    path: tuple[int, ...] = ()


def search(
    space: StateSpace, *, states_max: int = 0, only: str = "", goal: Goal | None = None, progress: Progress | None = None
) -> SearchResult:
    """Every world of the space is judged, nearest first. `only`: the promise that is looked at ('': all).

    `goal`: from every world, one that meets it must be reachable (this takes more memory). `states_max`: 0 is no limit.
    """
    # Nothing here is a cycle, and there is much of it: the collector would only walk through it again and again.
    gc.disable()
    try:
        return _Search(space, states_max, only, goal, progress or (lambda _states, _frontier: None)).run()
    finally:
        gc.enable()


class _Search:
    """One search: which worlds were met, and from where each was reached first."""

    def __init__(self, space: StateSpace, states_max: int, only: str, goal: Goal | None, progress: Progress) -> None:
        self.space = space
        self.states_max = states_max
        self.only = only
        self.goal = goal
        self.progress = progress
        self.predecessors: dict[int, int] = {}  # the first world is its own
        self.moves = 0
        self.edges = array("Q"), array("Q")
        self.started = time.perf_counter()

    def run(self) -> SearchResult:
        first = self.space.first()
        self.predecessors[first] = first
        frontier = [first]
        if self._is_wrong(first):
            return self._result(exhausted=False, world=first)
        while frontier:
            frontier, broken = self._deeper(frontier)
            if broken is not None:
                return self._result(exhausted=False, world=broken)
            if self.states_max and len(self.predecessors) >= self.states_max:
                return self._result(exhausted=not frontier)
        stuck = None if self.goal is None else self._stuck(self.goal)
        return self._result(exhausted=True, world=stuck, broken=STUCK if stuck is not None else "")

    def _deeper(self, frontier: list[int]) -> tuple[list[int], int | None]:
        """The worlds one move further, or the first of them that is broken."""
        predecessors, successors = self.predecessors, self.space.successors
        reached: list[int] = []
        for done, world in enumerate(frontier):
            if not done % PROGRESS_EVERY:
                self.progress(len(predecessors), len(frontier))
            for after in successors(world):
                self.moves += 1
                if self.goal is not None:
                    self.edges[0].append(world)
                    self.edges[1].append(after)
                if after not in predecessors:
                    predecessors[after] = world
                    if self._is_wrong(after):
                        return reached, after
                    reached.append(after)
            if self.states_max and len(predecessors) >= self.states_max:
                break
        return reached, None

    def _is_wrong(self, world: int) -> bool:
        broken = self.space.broken(world)
        return bool(broken) and self.only in ("", broken)

    def _result(self, *, exhausted: bool, world: int | None = None, broken: str = "") -> SearchResult:
        seconds = time.perf_counter() - self.started
        if world is None:
            return SearchResult(len(self.predecessors), self.moves, seconds, exhausted)
        path = [world]
        while self.predecessors[path[-1]] != path[-1]:
            path.append(self.predecessors[path[-1]])
        promise = broken or self.space.broken(world)
        return SearchResult(len(self.predecessors), self.moves, seconds, exhausted, promise, tuple(reversed(path)))

    def _stuck(self, goal: Goal) -> int | None:
        """The first world from which no goal can be reached."""
        before: dict[int, list[int]] = {}
        for world, after in zip(*self.edges, strict=True):
            before.setdefault(after, []).append(world)
        helped = {world for world in self.predecessors if goal(self.space, world)}
        unread = list(helped)
        while unread:
            for world in before.get(unread.pop(), ()):
                if world not in helped:
                    helped.add(world)
                    unread.append(world)
        return next((world for world in self.predecessors if world not in helped), None)
