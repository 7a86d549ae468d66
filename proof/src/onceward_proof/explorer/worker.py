"""What a worker's command may come to: the database, the provider, the queue; and what its handler makes of that.

Outcomes come first as they should be, then as they should not: what goes wrong has words of its own and costs a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from onceward.protocol import words as p
from onceward.transport import Settlement
from onceward_proof.explorer import tables
from onceward_proof.explorer.cell import GONE, VISIBLE, Cell, Move, Row, Worker, charge, put, remember, replaced
from onceward_proof.explorer.rules import Rules
from onceward_proof.explorer.tables import Clock, Who


class Outcome(NamedTuple):
    """What a command came to. `fault`: what went wrong, in words; '': nothing."""

    fault: str
    cell: Cell
    event: p.Event
    open: Row | None = None  # the row as this worker's transaction has it afterwards
    emits: tuple[str, ...] = ()


def work(cell: Cell, index: int) -> Iterator[Move]:
    """Every way on for one worker."""
    worker = cell.workers[index]
    if isinstance(worker.command, p.Settle):
        yield from _settle(cell, index, worker, worker.command.settlement)
        return
    for outcome in [_flushed(cell, found) for found in perform(cell, index, worker)]:
        for errors, advanced in advance(worker, outcome.event, cell.rules):
            after = advanced._replace(open=outcome.open)
            words = ("work", type(worker.command).__name__, type(outcome.event).__name__, outcome.fault, errors)
            faults = (outcome.fault != "") + (errors != "")
            yield Move(words, replaced(outcome.cell, index, after), faults, 0, outcome.emits, index, after)


def _flushed(cell: Cell, outcome: Outcome) -> Outcome:
    """What is committed is durable; where a session may lie, the server remembers what it had flushed before."""
    after = outcome.cell
    if not cell.rules.session_lies or (after.books, after.writes) == (cell.books, cell.writes):
        return outcome
    return outcome._replace(cell=after._replace(flushed=cell.flushed or (cell.books, cell.writes)))


def _settle(cell: Cell, index: int, worker: Worker, settlement: Settlement) -> Iterator[Move]:
    """The worker's last move. Settling is by message, not fenced (as pgmq's is), so it may hit another's delivery."""
    left = replaced(cell, index, None)
    if settlement.action == "leave" or cell.copies[worker.copy].where == GONE:
        yield Move(("leave",), left, actor=index)
        return
    where = GONE if settlement.action == "ack" else VISIBLE
    yield Move((settlement.action,), put(left, worker.copy, where), actor=index)
    yield Move(("settlement lost", settlement.action), left, 1, actor=index)


# ---- the handler -----------------------------------------------------------------------------------------------------


@cache
def advance(worker: Worker, event: p.Event, rules: Rules) -> tuple[tuple[str, Worker], ...]:
    """The worker after `event`, once its next command is not the handler's turn any more; named where the handler erred."""
    state, command = rules.step(worker.state, event)
    after = worker._replace(state=state, command=command)
    if not isinstance(command, p.Run | p.Resume | p.Interrupt):
        return (("", after),)
    found: list[tuple[str, Worker]] = []
    for error, said, place in _handler(worker.place, command, rules.shape):
        further = advance(after._replace(place=place), said, rules)
        found += [(error or later, advanced) for later, advanced in further if not (error and later)]
    return tuple(found)


def _handler(place: str, command: p.Command, shape: p.Shape) -> list[tuple[str, p.Event, str]]:
    """What the handler may do: first as it should, then as it should not."""
    failed = p.Raised(p.RaisedKind.FAILED, "x")
    if isinstance(command, p.Interrupt):
        raised = p.Raised(p.RaisedKind.REFUSED, "x") if command.kind is p.Interruption.REFUSED else failed
        swallowed = (p.FinishAsked(), "finishing") if place == "asked" else (p.Returned(), "left")
        return [("", raised, "left"), ("swallows the error", *swallowed)]
    if place == "start":
        first = (p.Returned(), "left") if shape == "transactional" else (p.EffectAsked(), "asked")
        lost = [("loses its session", p.Raised(p.RaisedKind.SESSION_LOST, "x"), "left")] if shape == "transactional" else []
        return [
            ("", *first),
            ("raises", failed, "left"),
            ("defers", p.Raised(p.RaisedKind.DEFERRED, "x", 1.0), "left"),
            *lost,
        ]
    places: dict[str, list[tuple[str, p.Event, str]]] = {
        "asked": [("", p.FinishAsked(), "finishing"), ("raises", failed, "left")],
        "finishing": [("", p.BlockEnded(), "ended"), ("raises inside its transaction", p.BlockRaised(), "broke")],
        "broke": [
            ("", failed, "left"),
            ("swallows the error", p.Returned(), "left"),
            ("had lost its session", p.Raised(p.RaisedKind.SESSION_LOST, "x"), "left"),
        ],
        "ended": [("", p.Returned(), "left"), ("raises late", failed, "left")],
    }
    return places[place]


# ---- commands --------------------------------------------------------------------------------------------------------


def perform(cell: Cell, index: int, worker: Worker) -> list[Outcome]:
    """What the worker's command may come to; while it waits for a lock, only that the wait runs out."""
    match worker.command:
        case p.Call():
            return _call(cell, worker)
        case p.LookUp():
            found = cell.rules.lookup and cell.charges > 0
            answer = p.Answered("c1") if found else p.NotFound()
            outcomes = [Outcome("", cell, answer), Outcome("the look-up fails", cell, p.Failed("look-up"))]
            return [*outcomes, Outcome("what it finds is not JSON", cell, p.Unreadable("x"))] if found else outcomes
        case p.Take():
            return _take(cell, worker)
        case p.Finish():
            return _begin(cell, worker)
        case p.Commit():
            return _commit(cell, worker)
    return _write(cell, index, worker)


def _who(cell: Cell, worker: Worker) -> Who:
    return Who(cell.rules, worker.state.token, worker.state.fresh, worker.payload)


def _clock(cell: Cell) -> Clock:
    return Clock(cell.old, cell.dropped, cell.key_age, cell.locked)


def _committed(cell: Cell, after: Cell, event: p.Event) -> list[Outcome]:
    """One transaction: it did it; the database was lost before; or it did it, and the reply was lost."""
    outcomes = [Outcome("", after, event), Outcome("the database is lost before", cell, p.DatabaseLost())]
    if after != cell:
        outcomes.append(Outcome("it is done, and the reply is lost", after, p.DatabaseLost()))
    return outcomes


def _blocked(cell: Cell) -> list[Outcome]:
    return [Outcome("the wait for the row's lock runs out", cell, p.DatabaseLost())]


def _take(cell: Cell, worker: Worker) -> list[Outcome]:
    row, event = tables.take(cell.books, _who(cell, worker), _clock(cell))
    if row is not None and row.state == "pending":
        return _committed(cell, cell._replace(books=cell.books._replace(row=row)), event)
    lost = Outcome("the database is lost before", cell, p.DatabaseLost())
    return [Outcome("", cell, event, row), lost]


def _begin(cell: Cell, worker: Worker) -> list[Outcome]:
    found = tables.begin(cell.books, _who(cell, worker), _clock(cell))
    if found is None:
        return _blocked(cell)
    row, event = found
    begun = cell if row is None else _audited(cell, worker)
    emits = ("out",) if row is not None and cell.rules.publish_outside else ()
    return [Outcome("", begun, event, row, emits), Outcome("the database is lost before", cell, p.DatabaseLost())]


def _commit(cell: Cell, worker: Worker) -> list[Outcome]:
    row = worker.open
    if row is None:
        raise AssertionError(f"nothing is open: {worker}")
    back = put(cell, worker.copy, GONE) if cell.rules.ack_before_commit else cell
    first, second = back.writes
    writes = (first + 1, second) if worker.payload == 0 else (first, second + 1)
    books = back.books._replace(row=row)
    if cell.rules.record_in_finish and books.intent is not None:
        books = books._replace(intent=books.intent._replace(state="done"))
    done = back._replace(books=books, writes=writes)
    emits = () if cell.rules.publish_outside else ("out",)
    return [
        Outcome("", done, p.Committed(), None, emits),
        Outcome("it is done, and the reply is lost", done, p.Ambiguous(), None, emits),
        Outcome("it is not done, and the reply is lost", back, p.Ambiguous()),
        Outcome("the database is lost before", back, p.DatabaseLost()),
        Outcome("its handler swallowed a database error: the server rolls back", back, p.Aborted()),
        Outcome("its handler had committed by itself", done, p.ForeignCommit(), None, emits),
        Outcome("its handler had rolled back by itself", back, p.ForeignCommit()),
    ]


def _write(cell: Cell, index: int, worker: Worker) -> list[Outcome]:
    """One transaction of ours, after whatever this worker had open is rolled back."""
    if worker.open is not None:
        cell = replaced(cell, index, worker._replace(open=None))
    who, clock = _who(cell, worker), _clock(cell)
    match worker.command:
        case p.Intend():
            result = tables.intend(cell.books, who, clock)
        case p.Record(_, answer, refused):
            return _record(cell, who, answer, refused)
        case p.Fail() as fail:
            result = tables.fail(cell.books, who, clock, session_lost=fail.session_lost)
        case p.Park() as park:
            result = tables.park(cell.books, who, clock, park)
        case p.GiveBack():
            result = tables.give_back(cell.books, who, clock)
        case command:
            raise AssertionError(f"nobody can carry out {command!r}")
    if result is None:
        return _blocked(cell)
    books, event = result
    changed = books.row != cell.books.row and not who.rolled_back and not _is_unfenced(worker.command)
    after = (_audited(cell, worker) if changed else cell)._replace(books=books)
    if cell.rules.call_before_intent and isinstance(event, p.Intended):
        after = after._replace(books=cell.books)
    if after.books.intent is not None and cell.books.intent is None:
        after = after._replace(key_age=0)
    return _committed(cell, after, event)


def _is_unfenced(command: p.Command) -> bool:
    return isinstance(command, p.Park) and command.fence is p.Fence.FOREIGN_COMMIT


def _record(cell: Cell, who: Who, answer: str, refused: bool) -> list[Outcome]:
    rules = cell.rules
    if rules.record_in_finish or (rules.record_fenced and not tables.mine(cell.books, who)):
        return [Outcome("", cell._replace(told=True), p.Recorded(answer, refused))]
    books, event = tables.record(cell.books, answer, refused)
    after = cell._replace(books=books)
    told = after._replace(told=cell.told or isinstance(event, p.Recorded))
    return [Outcome("", told, event), *_committed(cell, after, event)[1:]]


def _audited(cell: Cell, worker: Worker) -> Cell:
    """Called where a worker changes the row as its holder."""
    row = cell.books.row
    trespassing = row is not None and row.token != _who(cell, worker).held
    return cell._replace(trespassed=True) if trespassing else cell


def _call(cell: Cell, worker: Worker) -> list[Outcome]:
    key = "key" if cell.rules.key_stable else f"key {worker.state.token}"
    stored = dict(cell.keys).get(key)
    if stored == "flying":
        return [Outcome("the provider says 409, this key is in use", cell, p.Later(1.0))]
    if stored == "500":
        return [Outcome("", cell, p.Replayed())]
    if stored is not None:
        return [Outcome("", cell, p.Answered(stored, refused=stored == "refused"))]
    charged = charge(cell, key)
    return [
        Outcome("", charged, p.Answered(f"c{charged.charges}")),
        Outcome("the provider charges, and the answer is lost (timeout)", charged, p.Failed("timeout")),
        Outcome("the connection fails before the provider has it", cell, p.Failed("connection")),
        Outcome("the provider charges, and its answer is not JSON", charged, p.Unreadable("x")),
        Outcome("the program is told to end", cell, p.Cancelled("x")),
        Outcome("the card is refused", remember(cell, key, "refused"), p.Answered("refused", refused=True)),
        Outcome("the provider fails before it charged, and saves the 500", remember(cell, key, "500"), p.Failed("500")),
        Outcome("the provider fails after it charged, and saves the 500", remember(charged, key, "500"), p.Failed("500")),
        Outcome("the provider hangs (timeout) and has not charged yet", remember(cell, key, "flying"), p.Failed("timeout")),
    ]
