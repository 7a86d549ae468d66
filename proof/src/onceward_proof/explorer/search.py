"""Breadth first over worlds: the first way to a broken one is a shortest one.

A world is two cells, the outbox, and what may still go wrong; each part is interned, so a world is one integer. The moves
of a part are worked out once, by the production `step`. Worlds that differ only in names (of workers, lanes, messages) are
one.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from onceward_proof.explorer import outbox
from onceward_proof.explorer.cell import Cell, Move, Worker, arrived
from onceward_proof.explorer.outbox import Post, PostMove
from onceward_proof.explorer.outside import happen
from onceward_proof.explorer.promises import CellFacts, PostFacts, broken_between, facts, post_facts
from onceward_proof.explorer.worker import work

CELL_BITS: Final = 22  # a world fits into 64 bits
POST_BITS: Final = 14
MASK: Final = (1 << CELL_BITS) - 1
POST_MASK: Final = (1 << POST_BITS) - 1
POST_AT: Final = 2 * CELL_BITS
LEFT_AT: Final = POST_AT + POST_BITS
NOBODY: Final = 0  # the cell of a message that there is not
PROGRESS_EVERY: Final = 20_000


class Bound(NamedTuple):
    """How far is tried: exhaustive means every world within this."""

    workers: int = 2
    messages: int = 2
    faults: int = 2
    redrives: int = 1
    lanes: int = 0  # of the relay; 0: no relay, what is redriven is in the queue at once


class Passage(NamedTuple):
    """One space of worlds: where it begins, and its bound."""

    name: str
    cells: tuple[Cell, ...]
    post: Post
    bound: Bound


class World(NamedTuple):
    """One world, its parts by number."""

    first: int
    second: int
    post: int
    faults: int
    redrives: int

    def packed(self) -> int:
        left = self.faults << 2 | self.redrives
        return self.first | self.second << CELL_BITS | self.post << POST_AT | left << LEFT_AT


class Found(NamedTuple):
    """How much was seen, and, if a world was broken: which promise, and the worlds on the way to it (packed)."""

    states: int
    moves: int
    seconds: float
    exhausted: bool
    broken: str = ""
    way: tuple[int, ...] = ()


class LocalMove(NamedTuple):
    """A move of one cell, as the search needs it."""

    faults: int
    redrives: int
    workers: int  # how many more are busy after it
    cell: int
    emits: tuple[str, ...]


class LocalPostMove(NamedTuple):
    """A move of the outbox, as the search needs it."""

    faults: int
    post: int
    arrivals: tuple[tuple[int, int], ...]


class Space:
    """The parts of one passage's worlds, numbered, with their moves. Grows as it is explored."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.cells: list[Cell] = []
        self.busy: list[int] = []
        self.facts: list[CellFacts] = []
        self.posts: list[Post] = []
        self.post_facts: list[PostFacts] = []
        self._cell_numbers: dict[Cell, int] = {}
        self._worker_numbers: dict[Worker, int] = {}
        self._post_numbers: dict[Post, int] = {}
        self._moves: dict[tuple[int, bool], list[LocalMove]] = {}
        self._post_moves: dict[int, list[LocalPostMove]] = {}
        self._turned: dict[int, int] = {}
        self._added: dict[tuple[int, int, tuple[str, ...]], int] = {}
        self._arrived: dict[tuple[int, int], int] = {}
        self._between: dict[tuple[int, int, int], str] = {}
        self.cell_number(Cell(copies=(), writes=(1, 0)))  # NOBODY

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def cell_number(self, cell: Cell) -> int:
        if len(cell.workers) > 1:
            cell = cell._replace(workers=tuple(sorted(cell.workers, key=self._worker_number)))
        number = self._cell_numbers.setdefault(cell, len(self.cells))
        if number == len(self.cells):
            _check(number, CELL_BITS)
            self.cells.append(cell)
            self.busy.append(len(cell.workers))
            self.facts.append(facts(cell))
        return number

    def _worker_number(self, worker: Worker) -> int:
        return self._worker_numbers.setdefault(worker, len(self._worker_numbers))

    def post_number(self, post: Post) -> int:
        number = self._post_numbers.setdefault(post, len(self.posts))
        if number == len(self.posts):
            _check(number, POST_BITS)
            self.posts.append(post)
            self.post_facts.append(post_facts(post))
        return number

    # ---- moves of the parts ------------------------------------------------------------------------------------------

    def moves(self, number: int, *, faulty: bool) -> list[LocalMove]:
        """With `faulty`, also those that cost a fault."""
        known = self._moves.get((number, faulty))
        if known is None:
            known = [self._local(number, move) for move in cell_moves(self.cells[number]) if faulty or not move.faults]
            self._moves[number, faulty] = known
        return known

    def _local(self, number: int, move: Move) -> LocalMove:
        cell, emits = self.with_rows(move)
        after = self.cell_number(cell)
        return LocalMove(move.faults, move.redrives, self.busy[after] - self.busy[number], after, emits)

    def with_rows(self, move: Move) -> tuple[Cell, tuple[str, ...]]:
        """The cell and what enters the outbox. Without a relay there is none: what is redriven is in the queue at once."""
        if self.passage.post.lanes:
            return move.cell, move.emits
        cell = move.cell
        for kind in move.emits:
            if kind != "out":
                cell = arrived(cell, int(kind[-1]))
        return cell, ()

    def post_moves(self, number: int) -> list[LocalPostMove]:
        known = self._post_moves.get(number)
        if known is None:
            known = [
                LocalPostMove(move.faults, self.post_number(move.post), move.arrivals)
                for move in outbox.relay(self.posts[number])
            ]
            self._post_moves[number] = known
        return known

    def turned(self, number: int) -> int:
        known = self._turned.get(number)
        if known is None:
            known = self._turned[number] = self.post_number(outbox.turned(self.posts[number]))
        return known

    def added(self, number: int, message: int, kinds: tuple[str, ...]) -> int:
        known = self._added.get((number, message, kinds))
        if known is None:
            known = self.post_number(outbox.added(self.posts[number], message, kinds))
            self._added[number, message, kinds] = known
        return known

    def arrived(self, number: int, payload: int) -> int:
        known = self._arrived.get((number, payload))
        if known is None:
            known = self._arrived[number, payload] = self.cell_number(arrived(self.cells[number], payload))
        return known

    # ---- worlds ------------------------------------------------------------------------------------------------------

    def first(self) -> World:
        cells = [self.cell_number(cell) for cell in self.passage.cells]
        second = cells[1] if len(cells) > 1 else NOBODY
        bound = self.passage.bound
        return World(cells[0], second, self.post_number(self.passage.post), bound.faults, bound.redrives)

    def canonical(self, first: int, second: int, post: int) -> int:
        """The one world that stands for this one and its mirror image, without what may still go wrong."""
        if first < second or second == NOBODY:
            return first | second << CELL_BITS | post << POST_AT
        turned = self.turned(post)
        if first == second:
            return first | second << CELL_BITS | min(post, turned) << POST_AT
        return second | first << CELL_BITS | turned << POST_AT

    def successors(self, world: int) -> Iterator[int]:
        first, second, post = world & MASK, world >> CELL_BITS & MASK, world >> POST_AT & POST_MASK
        left = world >> LEFT_AT
        faults, redrives = left >> 2, left & 3
        room = self.passage.bound.workers - self.busy[first] - self.busy[second]
        canonical, faulty = self.canonical, faults > 0
        for cost, redriven, more, after, emits in self.moves(first, faulty=faulty):
            if cost <= faults and redriven <= redrives and more <= room:
                rows = self.added(post, 0, emits) if emits else post
                yield canonical(after, second, rows) | (left - (cost << 2) - redriven) << LEFT_AT
        for cost, redriven, more, after, emits in () if second == NOBODY else self.moves(second, faulty=faulty):
            if cost <= faults and redriven <= redrives and more <= room:
                rows = self.added(post, 1, emits) if emits else post
                yield canonical(first, after, rows) | (left - (cost << 2) - redriven) << LEFT_AT
        for cost, rows, arrivals in self.post_moves(post):
            if cost <= faults:
                cells = [first, second]
                for message, payload in arrivals:
                    cells[message] = self.arrived(cells[message], payload)
                yield canonical(cells[0], cells[1], rows) | (left - (cost << 2)) << LEFT_AT

    def broken(self, world: int) -> str:
        """The first promise that this world breaks; '' when it keeps them all."""
        first, second, post = world & MASK, world >> CELL_BITS & MASK, world >> POST_AT & POST_MASK
        return (
            self.facts[first].broken
            or self.facts[second].broken
            or self.post_facts[post].broken
            or self._broken_between(0, first, post)
            or self._broken_between(1, second, post)
        )

    def _broken_between(self, message: int, cell: int, post: int) -> str:
        if cell == NOBODY:
            return ""
        known = self._between.get((message, cell, post))
        if known is None:
            relayed = bool(self.passage.post.lanes)
            known = broken_between(message, self.facts[cell], self.post_facts[post], relayed=relayed)
            self._between[message, cell, post] = known
        return known

    def is_quiet(self, world: int) -> bool:
        """Nobody works, and nothing is left in the queue and the outbox."""
        first, second, post = world & MASK, world >> CELL_BITS & MASK, world >> POST_AT & POST_MASK
        return self.facts[first].quiet and self.facts[second].quiet and self.post_facts[post].quiet

    def redrives(self, world: int) -> int:
        """How many redrives are left."""
        return world >> LEFT_AT & 3


def _check(number: int, bits: int) -> None:
    if number >> bits:
        raise OverflowError("this bound is too wide: a world does not fit into 64 bits any more")


def cell_moves(cell: Cell) -> Iterator[Move]:
    """Every way on for one message."""
    yield from happen(cell)
    for index in range(len(cell.workers)):
        yield from work(cell, index)


def post_moves(post: Post) -> Iterator[PostMove]:
    return outbox.relay(post)


# ---- the search ------------------------------------------------------------------------------------------------------

Progress = Callable[[int, int], None]  # states so far, and those of this depth
Goal = Callable[[Space, int], bool]
STUCK: Final = "stuck: from here it can never end"


def search(
    space: Space, *, states_max: int = 0, only: str = "", goal: Goal | None = None, progress: Progress | None = None
) -> Found:
    """Every world of the space is judged, nearest first. `only`: the promise that is looked at ('': all).

    `goal`: from every world, one that meets it must be reachable (this takes more memory). `states_max`: 0 is no limit.
    """
    gc.disable()  # nothing here is a cycle, and there is much of it
    try:
        return _Search(space, states_max, only, goal, progress or (lambda _states, _frontier: None)).run()
    finally:
        gc.enable()


class _Search:
    """One search: which worlds were met, and where each came from."""

    def __init__(self, space: Space, states_max: int, only: str, goal: Goal | None, progress: Progress) -> None:
        self.space = space
        self.states_max = states_max
        self.only = only
        self.goal = goal
        self.progress = progress
        self.came: dict[int, int] = {}
        self.moves = 0
        self.edges = array("Q"), array("Q")
        self.started = time.perf_counter()

    def run(self) -> Found:
        first = self.space.first().packed()
        self.came[first] = first
        frontier = [first]
        if self._wrong(first):
            return self._found(exhausted=False, world=first)
        while frontier:
            frontier, broken = self._deeper(frontier)
            if broken is not None:
                return self._found(exhausted=False, world=broken)
            if self.states_max and len(self.came) >= self.states_max:
                return self._found(exhausted=not frontier)
        stuck = None if self.goal is None else self._stuck(self.goal)
        return self._found(exhausted=True, world=stuck, broken=STUCK if stuck is not None else "")

    def _deeper(self, frontier: list[int]) -> tuple[list[int], int | None]:
        """The worlds one move further, or the first of them that is broken."""
        came, successors = self.came, self.space.successors
        found: list[int] = []
        for done, world in enumerate(frontier):
            if not done % PROGRESS_EVERY:
                self.progress(len(came), len(frontier))
            for after in successors(world):
                self.moves += 1
                if self.goal is not None:
                    self.edges[0].append(world)
                    self.edges[1].append(after)
                if after not in came:
                    came[after] = world
                    if self._wrong(after):
                        return found, after
                    found.append(after)
            if self.states_max and len(came) >= self.states_max:
                break
        return found, None

    def _wrong(self, world: int) -> bool:
        broken = self.space.broken(world)
        return bool(broken) and self.only in ("", broken)

    def _found(self, *, exhausted: bool, world: int | None = None, broken: str = "") -> Found:
        seconds = time.perf_counter() - self.started
        if world is None:
            return Found(len(self.came), self.moves, seconds, exhausted)
        way = [world]
        while self.came[way[-1]] != way[-1]:
            way.append(self.came[way[-1]])
        promise = broken or self.space.broken(world)
        return Found(len(self.came), self.moves, seconds, exhausted, promise, tuple(reversed(way)))

    def _stuck(self, goal: Goal) -> int | None:
        """The first world from which no goal can be reached."""
        before: dict[int, list[int]] = {}
        for world, after in zip(*self.edges, strict=True):
            before.setdefault(after, []).append(world)
        good = {world for world in self.came if goal(self.space, world)}
        todo = list(good)
        while todo:
            for world in before.get(todo.pop(), ()):
                if world not in good:
                    good.add(world)
                    todo.append(world)
        return next((world for world in self.came if world not in good), None)
