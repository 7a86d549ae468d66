"""A toy world around the real protocol: `moves` gives every world that may come next.

`onceward.delivery.step` is the code on trial, unchanged. What it commands is carried out by a few lines each, written anew
from design.md, section 3, and not from the SQL: if both say the same, it was understood the same way twice. What goes wrong
costs one of the `faults` that are left; what merely takes its time (a lease without its holder, a window) costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from tests.support.toy_rows import transact
from tests.support.toy_world import (
    CALLABLE,
    EXPIRED,
    FORGOTTEN,
    GONE,
    HELD,
    LIMITS,
    NEVER_REDRIVEN,
    OUTSIDE,
    VISIBLE,
    Move,
    Outcome,
    Rules,
    Worker,
    World,
    charge,
    faulty,
    gone,
    put,
    remember,
    with_worker,
)

from onceward import protocol as p
from onceward.delivery import start
from onceward.state import Shape
from onceward.transport import Settlement


def moves(world: World, rules: Rules) -> Iterator[Move]:
    """Every next world, with the name of what happens on the way to it."""
    yield from _world_moves(world, rules)
    for index, worker in enumerate(world.workers):
        if worker is None:
            yield from _receive(world, index, rules)
            continue
        if world.faults:
            yield f"{index} crashes", gone(faulty(world), index)
        if isinstance(worker.command, p.Settle):
            yield from _settle(world, index, worker, worker.command.settlement)
        else:
            yield from _work(world, index, worker, rules)


def _work(world: World, index: int, worker: Worker, rules: Rules) -> Iterator[Move]:
    """What the worker's command comes to, and what its handler makes of that."""
    for fault, after, event in perform(world, index, worker, rules):
        left = world.faults - (fault != "")
        if left < 0:
            continue
        for error, advanced in advance(worker, type(event).__name__, event, rules):
            if left >= (error != ""):
                paid = after._replace(faults=left - (error != ""))
                name = f"{index} {type(worker.command).__name__} -> {type(event).__name__} {fault} {error}".rstrip()
                yield name, with_worker(paid, index, advanced)


# ---- what happens by itself ------------------------------------------------------------------------------------------


def _world_moves(world: World, rules: Rules) -> Iterator[Move]:
    row = world.row
    if row is not None and row.state == "pending" and not row.lapsed:
        held = any(w is not None and w.state.token == row.token for w in world.workers)
        lapsed = world._replace(row=row._replace(lapsed=True))
        if world.faults or not held:
            yield "the lease lapses", faulty(lapsed) if held else lapsed
    for copy, (where, _) in enumerate(world.queue):
        if where == HELD:
            held = any(w is not None and w.copy == copy for w in world.workers)
            if world.faults or not held:
                again = put(world, copy, VISIBLE)
                yield "redelivery", faulty(again) if held else again
    yield from _provider_moves(world, rules)
    parked = row is not None and row.state == "parked" and not world.open and world.parked not in NEVER_REDRIVEN
    if row is not None and parked and world.redrives:
        redriven = row._replace(state="pending", token=row.token + 1, forgiven=row.token + 1, lapsed=True)
        queue = (*world.queue, (VISIBLE, 0))
        left = world.redrives - 1
        yield "redrive", world._replace(row=redriven, attempts=0, parked="", queue=queue, redrives=left)


def _provider_moves(world: World, rules: Rules) -> Iterator[Move]:
    flying = [key for key, stored in world.keys if stored == "flying"]
    for key in flying:
        yield "the provider charges at last", charge(world, key)
    calling = any(w is not None and w.state.at == "calling" for w in world.workers)
    if world.age == EXPIRED and not calling and not flying:  # the margin is longer than the longest call
        yield "the provider forgets", world._replace(age=FORGOTTEN, keys=())
    elif world.age in (CALLABLE, FORGOTTEN) and not world.open:  # no transaction is open just when its id leaves the window
        yield "time passes", world._replace(age=OUTSIDE if rules.shape == "transactional" else world.age + 1)


def _receive(world: World, index: int, rules: Rules) -> Iterator[Move]:
    for copy, (where, _) in enumerate(world.queue):
        if where == VISIBLE:
            held = put(world, copy, HELD, received=True)
            state, command = rules.step(start(rules.shape, LIMITS), p.Received(held.queue[copy][1]))
            yield f"{index} receives", with_worker(held, index, Worker(copy, state, command, "start"))


# ---- the handler -----------------------------------------------------------------------------------------------------


@cache
def advance(worker: Worker, _kind: str, event: p.Event, rules: Rules) -> tuple[tuple[str, Worker], ...]:
    """The worker after `event`, once its next command is not the handler's turn any more; named where the handler erred.

    `_kind` is there for the cache: two events without fields are equal tuples.
    """
    state, command = rules.step(worker.state, event)
    after = worker._replace(state=state, command=command)
    if not isinstance(command, p.Run | p.Resume | p.Interrupt):
        return (("", after),)
    found: list[tuple[str, Worker]] = []
    for error, said, place in _handler(worker.place, command, rules.shape):
        further = advance(after._replace(place=place), type(said).__name__, said, rules)
        found += [(error or later, advanced) for later, advanced in further if not (error and later)]
    return tuple(found)


def _handler(place: str, command: p.Command, shape: Shape) -> list[tuple[str, p.Event, str]]:
    """What the handler may do: first as it should, then as it should not."""
    failed = p.Raised("failed", "x")
    if isinstance(command, p.Interrupt):
        raised = p.Raised("refused" if command.error == "refused" else "failed", "x")
        swallowed = (p.FinishAsked(), "finishing") if place == "asked" else (p.Returned(), "left")
        return [("", raised, "left"), ("swallows it", *swallowed)]
    if place == "start":
        first = (p.Returned(), "left") if shape == "transactional" else (p.EffectAsked(), "asked")
        return [("", *first), ("raises", failed, "left"), ("defers", p.Raised("deferred", "x", 1.0), "left")]
    places: dict[str, list[tuple[str, p.Event, str]]] = {
        "asked": [("", p.FinishAsked(), "finishing"), ("raises", failed, "left")],
        "finishing": [("", p.BlockEnded(), "ended"), ("raises inside", p.BlockRaised(), "broke")],
        "broke": [("", failed, "left"), ("swallows it", p.Returned(), "left")],
        "ended": [("", p.Returned(), "left"), ("raises late", failed, "left")],
    }
    return places[place]


# ---- what a worker does ----------------------------------------------------------------------------------------------


def perform(world: World, index: int, worker: Worker, rules: Rules) -> list[Outcome]:
    """What the worker's command may come to; nothing, while it waits for a lock or for the provider."""
    match worker.command:
        case p.Call():
            return _call(world, worker, rules)
        case p.LookUp():
            found = rules.lookup and world.charges > 0
            return [("", world, p.Answered("c1") if found else p.NotFound()), ("fails", world, p.Failed("look-up"))]
    return transact(world, index, worker, rules)


def _settle(world: World, index: int, worker: Worker, settlement: Settlement) -> Iterator[Move]:
    """The worker's last move. Settling is by message, not fenced (as pgmq's is), so it may hit another's delivery."""
    left = gone(world, index)
    if settlement.action == "leave" or world.queue[worker.copy][0] == GONE:
        yield f"{index} leaves", left
        return
    if world.faults:
        yield f"{index} leaves, its settlement is lost", faulty(left)
    where = GONE if settlement.action == "ack" else VISIBLE
    yield f"{index} settles: {settlement.action}", put(left, worker.copy, where)


def _call(world: World, worker: Worker, rules: Rules) -> list[Outcome]:
    key = "key" if rules.key_stable else f"key {worker.state.token}"
    stored = dict(world.keys).get(key)
    if stored == "flying":
        return [("busy", world, p.Later(1.0))]
    if stored == "500":
        return [("", world, p.Replayed())]
    if stored is not None:
        return [("", world, p.Answered(stored, refused=stored == "refused"))]
    charged = charge(world, key)
    return [
        ("", charged, p.Answered(f"c{charged.charges}")),
        ("times out after its effect", charged, p.Failed("timeout")),
        ("fails before", world, p.Failed("connection")),
        ("refuses", remember(world, key, "refused"), p.Answered("refused", refused=True)),
        ("500 before its effect", remember(world, key, "500"), p.Failed("500")),
        ("500 after its effect", remember(charged, key, "500"), p.Failed("500")),
        ("hangs", remember(world, key, "flying"), p.Failed("timeout")),
    ]
