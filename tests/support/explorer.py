"""Explores every world that the toy can come to, breadth first: the first way to a broken one is a shortest one."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from tests.support.toy import moves
from tests.support.toy_world import Rules, World

Judge = Callable[[World], str]  # what is wrong with a world; '' when nothing is


class Explored(NamedTuple):
    """How much was seen, and, if a world was broken: how, and the way to it."""

    worlds: int
    moves: int
    broken: str = ""
    way: tuple[str, ...] = ()

    def __str__(self) -> str:
        seen = f"{self.worlds} worlds, {self.moves} moves"
        return f"{seen}: {self.broken}, by\n    " + "\n    ".join(self.way) if self.broken else seen


class Found(NamedTuple):
    """A world that was reached, and from where: `came` is the number of the world before it."""

    world: World
    name: str
    came: int


def explore(first: World, rules: Rules, judge: Judge, *, goal: Callable[[World], bool]) -> Explored:
    """Every world is judged; and from every one, `goal` must be reachable: nothing is stuck for ever.

    Worlds that differ only in which worker is which are the same.
    """
    gc.disable()  # nothing here is a cycle, and there is much of it
    try:
        return _explore(first, rules, judge, goal)
    finally:
        gc.enable()


def _explore(first: World, rules: Rules, judge: Judge, goal: Callable[[World], bool]) -> Explored:
    found = [Found(first, "", 0)]
    numbers = {_same(first): 0}
    before: list[list[int]] = [[]]
    todo = deque([0])
    moved = 0
    while todo:
        number = todo.popleft()
        world = found[number].world
        wrong = judge(world)
        if wrong:
            return Explored(len(found), moved, wrong, _way(found, number))
        for name, after in moves(world, rules):
            moved += 1
            same = _same(after)
            next_number = numbers.setdefault(same, len(found))
            if next_number == len(found):
                found.append(Found(after, name, number))
                before.append([])
                todo.append(next_number)
            before[next_number].append(number)
    stuck = _stuck(found, before, goal)
    if stuck is not None:
        return Explored(len(found), moved, "stuck", (*_way(found, stuck), str(found[stuck].world)))
    return Explored(len(found), moved)


def _same(world: World) -> World:
    """The one of its two mirror images that stands for both."""
    left, right = world.workers
    if hash(left) <= hash(right):
        return world
    turned = None if world.open is None else (1 - world.open[0], world.open[1])
    return world._replace(workers=(right, left), open=turned)


def _way(found: list[Found], number: int) -> tuple[str, ...]:
    names: list[str] = []
    while number:
        names.append(found[number].name)
        number = found[number].came
    return tuple(reversed(names))


def _stuck(found: list[Found], before: list[list[int]], goal: Callable[[World], bool]) -> int | None:
    """The first world from which no goal can be reached."""
    todo = [number for number, entry in enumerate(found) if goal(entry.world)]
    good = set(todo)
    while todo:
        fresh = [number for number in before[todo.pop()] if number not in good]
        good.update(fresh)
        todo += fresh
    return next((number for number in range(len(found)) if number not in good), None)
