"""What happens to a message by itself: leases lapse, copies come again, clocks pass, upkeep drops, people redrive.

What merely takes its time (a lease without its holder, a window) costs nothing; what goes wrong costs a fault.
"""

from __future__ import annotations

from collections.abc import Iterator

from onceward.protocol import words as p
from onceward.protocol.delivery import Place, start
from onceward_proof.explorer import tables
from onceward_proof.explorer.cell import (
    CALLABLE,
    EXPIRED,
    FORGOTTEN,
    HELD,
    LIMITS,
    REASONS_FOR_PEOPLE,
    VISIBLE,
    Cell,
    Move,
    Worker,
    arrived,
    charge,
    put,
    replaced,
)


def happen(cell: Cell) -> Iterator[Move]:
    yield from _lapse(cell)
    yield from _come_again(cell)
    yield from _receive(cell)
    yield from _provider(cell)
    yield from _clocks(cell)
    yield from _redrive(cell)
    for index in range(len(cell.workers)):
        yield Move(("crash",), replaced(cell, index, None), 1, actor=index)
    yield from _server(cell)
    if cell.rules.other_payload and not cell.other:
        yield Move(("other payload",), arrived(cell, 1)._replace(other=True), 1)


def _server(cell: Cell) -> Iterator[Move]:
    """A crash of the server takes back what it said was committed and had not flushed: where a session lied, something."""
    if cell.flushed is None:
        return
    yield Move(("flush",), cell._replace(flushed=None))
    books, writes = cell.flushed
    workers = tuple(worker._replace(open=None) for worker in cell.workers)
    yield Move(("server crash",), cell._replace(flushed=None, books=books, writes=writes, workers=workers), 1)


def _lapse(cell: Cell) -> Iterator[Move]:
    row = cell.books.row
    if row is not None and row.state == "pending" and not row.lapsed:
        held = any(worker.state.token == row.token for worker in cell.workers)
        books = cell.books._replace(row=row._replace(lapsed=True))
        yield Move(("lapse", "held" if held else "free"), cell._replace(books=books), int(held))


def _come_again(cell: Cell) -> Iterator[Move]:
    for number, copy in enumerate(cell.copies):
        if copy.where == HELD:
            held = any(worker.copy == number for worker in cell.workers)
            yield Move(("redelivery", "held" if held else "free"), put(cell, number, VISIBLE), int(held))


def _receive(cell: Cell) -> Iterator[Move]:
    for number, copy in enumerate(cell.copies):
        if copy.where == VISIBLE:
            held = put(cell, number, HELD, received=True)
            state, command = cell.rules.step(start(cell.rules.shape, LIMITS), p.Received(held.copies[number].deliveries))
            worker = Worker(number, copy.payload, state, command, "start")
            yield Move(("receive", str(copy.payload)), held._replace(workers=(*held.workers, worker)), worker=worker)


def _provider(cell: Cell) -> Iterator[Move]:
    flying = [key for key, stored in cell.keys if stored == "flying"]
    for key in flying:
        yield Move(("charged at last",), charge(cell, key))
    calling = any(worker.state.at is Place.CALLING for worker in cell.workers)
    if cell.key_age == CALLABLE and (cell.books.intent is not None or cell.keys):
        yield Move(("key expires",), cell._replace(key_age=EXPIRED))
    elif cell.key_age == EXPIRED and not calling and not flying:  # the margin is longer than the longest call
        yield Move(("key forgotten",), cell._replace(key_age=FORGOTTEN, keys=()))


def _clocks(cell: Cell) -> Iterator[Move]:
    """The dedup window (days) is far longer than any call or transaction: none is open just when an id leaves it.

    It is longer than the provider's window too. Upkeep never drops what is pending, parked or without an answer. Under
    `longer_window` the id is old only for the process by whose window upkeep goes; the workers take it like any other.
    """
    calling = any(worker.state.at is Place.CALLING for worker in cell.workers)
    if not cell.old:
        if not cell.locked and not calling:
            yield Move(("id is old",), cell._replace(old=True))
        return
    row, intent = cell.books.row, cell.books.intent
    finished = (row is None or row.state == "done") and (intent is None or intent.state == "done")
    if not cell.dropped and not cell.locked and finished:
        yield Move(("upkeep",), cell._replace(dropped=True, books=cell.books._replace(row=None, intent=None)))


def _redrive(cell: Cell) -> Iterator[Move]:
    row = cell.books.row
    if row is None or cell.locked or cell.books.parked[row.payload] in REASONS_FOR_PEOPLE:
        return
    books = tables.redrive(cell.books)
    if books is not None:
        yield Move(("redrive",), cell._replace(books=books), 0, 1, (f"in{row.payload}",))
