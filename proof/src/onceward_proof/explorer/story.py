"""The way to a broken world, in plain words.

The search keeps worlds without names; the way is walked once more with names (worker 1 and 2, message A and B), so that who
does what is the same one all the way through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from onceward_proof.explorer.cell import Cell, Move, arrived
from onceward_proof.explorer.outbox import PostMove, added
from onceward_proof.explorer.search import NOBODY, POST_AT, POST_MASK, Space, cell_moves, post_moves

MESSAGES: Final = ("A", "B")


class Named(NamedTuple):
    """Who is who: workers by message, and lanes, each with its number."""

    cells: tuple[int, int]
    post: int
    workers: tuple[tuple[tuple[Any, int], ...], tuple[tuple[Any, int], ...]] = ((), ())
    lanes: tuple[tuple[Any, int], ...] = ()


def tell(space: Space, way: tuple[int, ...]) -> list[str]:
    """One sentence per step."""
    lanes = tuple((lane, number) for number, lane in enumerate(space.passage.post.lanes, 1))
    first = space.first()
    named = Named((first.first, first.second), first.post, lanes=lanes)
    told: list[str] = []
    for after in way[1:]:
        sentence, named = next(step for step in _steps(space, named) if _is(space, step[1], after))
        told.append(sentence)
    return told


def _is(space: Space, named: Named, world: int) -> bool:
    left_out = (1 << POST_AT + POST_MASK.bit_length()) - 1
    return space.canonical(*named.cells, named.post) == world & left_out


def _steps(space: Space, named: Named) -> Iterator[tuple[str, Named]]:
    for message in (0, 1):
        number = named.cells[message]
        if number != NOBODY:
            for move in cell_moves(space.cells[number]):
                yield _cell_step(space, named, message, move)
    for post_move in post_moves(space.posts[named.post]):
        yield _post_step(space, named, post_move)


def _cell_step(space: Space, named: Named, message: int, move: Move) -> tuple[str, Named]:
    cell = space.cells[named.cells[message]]
    who, workers = _renamed(cell.workers, named.workers[message], move.actor, move.worker, _free(named))
    after, emits = space.with_rows(move)
    cells = list(named.cells)
    cells[message] = space.cell_number(after)
    post = space.post_number(added(space.posts[named.post], message, emits))
    people = (workers, named.workers[1]) if message == 0 else (named.workers[0], workers)
    sentence = cell_words(cell, move, f"worker {who}", MESSAGES[message])
    return sentence, named._replace(cells=(cells[0], cells[1]), post=post, workers=people)


def _free(named: Named) -> int:
    """The number of a worker that has nothing to do."""
    busy = {number for people in named.workers for _, number in people}
    return min({1, 2, 3} - busy)


def _renamed(
    there: tuple[Any, ...], people: tuple[tuple[Any, int], ...], index: int, after: Any, free: int
) -> tuple[int, tuple[tuple[Any, int], ...]]:
    """The number of who acted, and everybody's afterwards."""
    rest = list(people)
    who = free
    if index >= 0:
        acted = next(person for person in rest if person[0] == there[index])
        rest.remove(acted)
        who = acted[1]
    if after is not None:
        rest.append((after, who))
    return who, tuple(rest)


def _post_step(space: Space, named: Named, move: PostMove) -> tuple[str, Named]:
    post = space.posts[named.post]
    who, lanes = _renamed(post.lanes, named.lanes, move.actor, move.lane, 0)
    cells = list(named.cells)
    for message, payload in move.arrivals:
        cells[message] = space.cell_number(arrived(space.cells[cells[message]], payload))
    after = named._replace(cells=(cells[0], cells[1]), post=space.post_number(move.post), lanes=lanes)
    return post_words(move, f"relay {who}"), after


# ---- words -----------------------------------------------------------------------------------------------------------

_HAPPENS: Final = {
    "crash": "{who} crashes",
    "flush": "the server flushes what is committed of {m}",
    "server crash": "the server crashes: what it had said was committed of {m} is taken back",
    "leave": "{who} leaves {m} as it is: its lease will lapse at the queue",
    "ack": "{who} acknowledges {m}",
    "release": "{who} gives {m} back to the queue",
    "receive": "{who} receives {m}",
    "other payload": "another payload arrives under the id of {m}",
    "charged at last": "the provider charges {m} at last",
    "key expires": "time passes: the key of {m} may not be sent any more",
    "key forgotten": "time passes: the provider has forgotten the key of {m}",
    "id is old": "time passes: the id of {m} has left the dedup window",
    "upkeep": "upkeep drops the partition of {m}",
    "redrive": "a person redrives {m}",
}
_LAPSES: Final = {"held": ", though its worker still works", "free": ""}

_DOES: Final = {
    ("Take", "Taken"): "takes {m}",
    ("Take", "Duplicate"): "finds {m} done or parked: a duplicate",
    ("Take", "InFlight"): "finds {m} in another's hands",
    ("Take", "Conflict"): "finds {m} with another payload: a conflict",
    ("Take", "OutsideWindow"): "finds the id of {m} outside the window, and unseen",
    ("Intend", "Intended"): "commits the intent of {m}",
    ("Intend", "Recorded"): "reads the recorded answer of {m}",
    ("Intend", "Expired"): "finds the intent of {m} past the provider's window",
    ("Call", "Answered"): "calls the provider for {m} and is answered",
    ("Call", "Failed"): "calls the provider for {m}",
    ("Call", "Cancelled"): "calls the provider for {m}",
    ("Call", "Unreadable"): "calls the provider for {m}",
    ("Call", "Later"): "calls the provider for {m}",
    ("Call", "Replayed"): "calls the provider for {m} and gets the saved 500",
    ("LookUp", "Failed"): "looks {m} up at the provider",
    ("LookUp", "Unreadable"): "looks {m} up at the provider",
    ("LookUp", "Answered"): "looks {m} up at the provider and finds it",
    ("LookUp", "NotFound"): "looks {m} up at the provider and does not find it",
    ("Record", "Recorded"): "has the answer of {m} recorded",
    ("Record", "TwoAnswers"): "meets a second answer of {m}",
    ("Finish", "Finishing"): "begins the finish of {m}",
    ("Commit", "Committed"): "commits {m}",
    ("Commit", "Ambiguous"): "sends COMMIT for {m}",
    ("Commit", "Aborted"): "sends COMMIT for {m}",
    ("Commit", "ForeignCommit"): "finds the transaction of {m} ended",
    ("Fail", "Counted"): "counts a failed attempt, or a lost session, of {m}",
    ("Fail", "Parked"): "counts a failed attempt, or a lost session, of {m} and parks it",
    ("Park", "Parked"): "parks {m}",
    ("GiveBack", "GivenBack"): "gives its claim on {m} back, uncounted",
}
_TRIES: Final = {
    "Take": "take {m}",
    "Intend": "start the effect of {m}",
    "Record": "record the answer of {m}",
    "Finish": "finish {m}",
    "Commit": "commit {m}",
    "Fail": "count a failed attempt of {m}",
    "Park": "park {m}",
    "GiveBack": "give its claim on {m} back",
}


def cell_words(cell: Cell, move: Move, who: str, message: str) -> str:
    kind, *rest = move.words
    if kind == "work":
        return _work_words(cell, move, who, message)
    if kind == "settlement lost":
        return f"{who} sends its settlement ({rest[0]}) of {message}, and it is lost"
    if kind == "lapse":
        return f"the lease of {message} lapses{_LAPSES[rest[0]]}"
    if kind == "redelivery":
        return f"the queue delivers {message} again{_LAPSES[rest[0]]}"
    if kind == "receive" and rest[0] == "1":
        return f"{who} receives the other payload of {message}"
    return _HAPPENS[kind].format(who=who, m=message)


def _work_words(cell: Cell, move: Move, who: str, message: str) -> str:
    _, command, event, fault, error = move.words
    sentence = f"{who} {_doing(cell, move, command, event).format(m=message)}"
    row = move.worker.open if move.worker is not None and move.worker.open else move.cell.books.row
    if event == "Taken" and row is not None:
        sentence += f" (row {row.state}, token {row.token})"
    parked = move.cell.books.parked
    if event == "Parked" and parked != cell.books.parked:
        [reason] = (after for before, after in zip(cell.books.parked, parked, strict=True) if before is not after and after)
        sentence += f" ({reason.value})"
    if fault:
        sentence += f": {fault}"
    return f"{sentence}; its handler {error}" if error else sentence


def _doing(cell: Cell, move: Move, command: str, event: str) -> str:
    intent, rules = move.cell.books.intent, cell.rules
    if event == "Intended" and intent is None:
        return "goes on to the effect of {m} without an intent"
    if (command, event) == ("Record", "Recorded") and (intent is None or intent.state != "done"):
        return "has the answer of {m}, and does not record it"
    does = _DOES.get((command, event))
    if does is None:
        tries = _TRIES.get(command, f"{command}: {event}")
        return f"may not {tries}: it lost its lease" if event == "FencedOff" else f"tries to {tries}"
    return f"acknowledges {{m}} first, then {does}" if command == "Commit" and rules.ack_before_commit else does


_RELAYS: Final = {
    "wake": "{who} wakes",
    "relay crash": "{who} crashes",
    "relay is stopped": "{who} is told to stop, and publishes nothing more",
    "relay loses its locks": "{who}'s session is ended by the server: it holds no locks any more, and does not know",
    "relay loses the database": "{who} loses the database",
    "relay cannot mark": "{who} cannot mark: its session is gone",
    "relay marks, reply lost": "{who} deletes what was confirmed and commits, and the reply is lost",
}


def post_words(move: PostMove, who: str) -> str:
    kind, *rest = move.words
    match kind:
        case "retry due":
            return f"the retry of the event of {MESSAGES[int(rest[0])]} is due"
        case "relay takes":
            rows = ", ".join(_row_words(row) for row in rest)
            return f"{who} takes {rows or 'nothing'}"
        case "relay publishes":
            return f"{who} publishes: {_results_words(rest)}"
        case "relay publishes, late":
            return f"{who} publishes, and its time is over: {_results_words(rest)}"
        case "sink lost":
            return f"{who} loses the sink{' after it stored: ' if rest else ''}{_results_words(rest)}"
        case "relay marks":
            return f"{who} deletes {rest[0]} row(s), postpones {rest[1]}, and commits"
    return _RELAYS[kind].format(who=who)


def _results_words(results: list[str]) -> str:
    return ", ".join(f"{_row_words(row)} {said}" for row, said in (result.split(" ", 1) for result in results))


def _row_words(row: str) -> str:
    what = "the event of" if row.endswith("out") else "again"
    return f"{what} {MESSAGES[int(row[0])]}"
